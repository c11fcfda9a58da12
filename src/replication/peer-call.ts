import { credentials } from '@grpc/grpc-js';

import { KiteError } from '../errors.js';
import type { Challenge__Output } from './generated/kitefs/v1/Challenge.js';
import { EnvelopeMac } from './peer-secret.js';
import { CHANNEL_OPTIONS, PROTOCOL, Replication } from './wire.js';

/** What the side that calls a peer has in common: a stream that follows it, and one that pulls from it. */

/** A connection to a peer at host:port. */
export const peerClient = (address: string): InstanceType<typeof Replication> =>
  new Replication(address, credentials.createInsecure(), {
    ...CHANNEL_OPTIONS,
    // A connection of its own, which our own backoff opens and closes.
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_retries': 0,
    // Peers are reached directly, whatever http_proxy says.
    'grpc.enable_http_proxy': 0,
  });

export interface Caller {
  readonly clusterId: string;
  readonly nodeId: string;
  readonly secret: string | undefined;
  /** Of the hello that was sent. */
  readonly nonce: Buffer;
  /** Of the peer, for what is said to people. */
  readonly address: string;
}

/**
 * Takes a peer's answer to our hello: MACs of what we send (`up`) and receive (`down`). Throws ERR_REPLICATION_VERSION
 * and ERR_REPLICATION_CLUSTER for a peer that is none of ours.
 */
export function agree(challenge: Challenge__Output, caller: Caller): { up: EnvelopeMac; down: EnvelopeMac } {
  const { clusterId, nodeId, secret, nonce, address } = caller;
  if (challenge.protocol !== PROTOCOL) {
    throw new KiteError(
      'ERR_REPLICATION_VERSION',
      `This node speaks protocol ${PROTOCOL}, ${address} ${challenge.protocol}`,
    );
  }
  if (challenge.clusterId !== clusterId) {
    throw new KiteError(
      'ERR_REPLICATION_CLUSTER',
      `This node is of cluster ${clusterId}, ${address} of ${challenge.clusterId}`,
    );
  }
  const transcript = {
    protocol: PROTOCOL,
    clusterId,
    replicaId: nodeId,
    primaryId: challenge.nodeId,
    replicaNonce: nonce,
    primaryNonce: challenge.nonce,
  };
  return { up: new EnvelopeMac(secret, transcript, 'up'), down: new EnvelopeMac(secret, transcript, 'down') };
}
