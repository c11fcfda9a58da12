import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';

import { KiteError } from '../errors.js';

/**
 * Proof that both ends know the cluster's secret, without sending it: both derive keys from it and from
 * two fresh nonces, and every envelope carries a MAC (docs/decisions/004-peer-secret.md).
 */

const SECRET_LENGTH_MIN = 16;
const NONCE_BYTES = 32;
const NO_MAC = Buffer.alloc(0);

export const makeNonce = (): Buffer => randomBytes(NONCE_BYTES);

/** Throws ERR_REPLICATION_SECRET_WEAK for a secret that can be guessed from a recorded handshake. */
export function checkSecret(secret: string | undefined): void {
  if (secret !== undefined && secret.length < SECRET_LENGTH_MIN) {
    throw new KiteError(
      'ERR_REPLICATION_SECRET_WEAK',
      `The peer secret is shorter than ${SECRET_LENGTH_MIN} characters`,
    );
  }
}

/** What both ends of one stream must agree on. */
export interface Transcript {
  readonly protocol: number;
  readonly clusterId: string;
  readonly replicaId: string;
  readonly primaryId: string;
  readonly replicaNonce: Buffer;
  readonly primaryNonce: Buffer;
}

/** MACs of one direction of one stream. Without a secret it adds and demands nothing. */
export class EnvelopeMac {
  readonly #key: Buffer | undefined;
  #sequence = 0n;

  constructor(secret: string | undefined, transcript: Transcript, direction: 'up' | 'down') {
    if (secret === undefined) return;
    if (transcript.replicaNonce.length !== NONCE_BYTES || transcript.primaryNonce.length !== NONCE_BYTES) {
      throw new KiteError('ERR_REPLICATION_MESSAGE', 'a peer sent a nonce of a wrong length');
    }
    // JSON keeps the parts apart, so that no two transcripts give the same text.
    const text = JSON.stringify([
      'kitefs peer',
      direction,
      transcript.protocol,
      transcript.clusterId,
      transcript.replicaId,
      transcript.primaryId,
      transcript.replicaNonce.toString('hex'),
      transcript.primaryNonce.toString('hex'),
    ]);
    this.#key = createHmac('sha256', secret).update(text).digest();
  }

  /** MAC of the next envelope to send. */
  next(body: Buffer): Buffer {
    return this.#key === undefined ? NO_MAC : this.#compute(this.#key, body);
  }

  /** Throws ERR_REPLICATION_SECRET unless `mac` is that of the next envelope received. */
  check(body: Buffer, mac: Buffer): void {
    if (this.#key === undefined && mac.length === 0) return;
    const expected = this.#key === undefined ? NO_MAC : this.#compute(this.#key, body);
    if (mac.length !== expected.length || !timingSafeEqual(mac, expected)) {
      throw new KiteError(
        'ERR_REPLICATION_SECRET',
        'The peer does not prove knowledge of the secret of this cluster',
      );
    }
  }

  #compute(key: Buffer, body: Buffer): Buffer {
    // The sequence number keeps anyone from leaving out, repeating or reordering envelopes.
    const sequence = Buffer.alloc(8);
    sequence.writeBigUInt64BE(this.#sequence++);
    return createHmac('sha256', key).update(sequence).update(body).digest();
  }
}
