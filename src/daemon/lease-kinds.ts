import { randomUUID } from 'node:crypto';
import { describeDestination } from '../backup/open.js';
import type { Config } from '../config/load.js';
import { formatAddress } from '../config/values.js';
import { openLocalLease } from '../lease/local.js';
import { staticLease } from '../lease/static.js';
import type { LeaseOptions } from '../lease/lease.js';
import type { LeaseAdapter } from '../lease/types.js';
import type { DataDirectory } from '../store/data-directory.js';
import { staticClusterId, type JoinedCluster } from './cluster-id.js';

/** The adapter of `lease.type`. */
export async function openLease(config: Config, nodeId: string, highestEpoch: bigint): Promise<LeaseAdapter> {
  switch (config.lease.type) {
    case 'local':
      return openLocalLease({ path: config.lease.path, nodeId });
    case 'static':
      return staticLease({
        clusterId: config.cluster.id ?? staticClusterId(config),
        highestEpoch,
        ...(config.lease.candidate || !config.lease.primary
          ? {}
          : {
              primary: {
                advertiseUrl: config.follow ? describeDestination(config.follow) : config.lease.advertiseUrl,
                peerAddress: formatAddress(config.lease.primary),
              },
            }),
      });
    default: {
      const { url = '', key = '', ...more } = config.lease.consul;
      // Loaded by whom it serves only: its client is a twentieth of the time that a start takes.
      const { openConsulLease } = await import('../lease/consul.js');
      return openConsulLease({ url, key, ...more });
    }
  }
}

/** What every process that takes part in the lease for this node says of itself; it counts as a new incarnation of the node from now on. */
export function leaseIdentity(
  config: Config,
  data: DataDirectory,
  { clusterId, foundedWith }: JoinedCluster,
) {
  const { lease, node, peer, proxy } = config;
  const incarnation = randomUUID();
  return {
    clusterId,
    foundedWith,
    incarnation,
    formerIncarnation: data.replaceProcess(incarnation),
    node: {
      nodeId: data.node.nodeId,
      advertiseUrl: lease.advertiseUrl,
      peerAddress: peer.advertise,
      ...(proxy.advertise && { proxyAddress: formatAddress(proxy.advertise) }),
      instance: proxy.instance,
      candidate: lease.candidate,
      region: node.region,
      priority: node.priority,
    },
    highestEpoch: data.node.epoch,
    ttlMs: lease.ttlMs,
    lockDelayMs: lease.lockDelayMs,
    electionWaitMs: lease.electionWaitMs,
  } satisfies Partial<LeaseOptions>;
}
