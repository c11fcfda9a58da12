import type { LeaseAdapter } from './types.js';

/**
 * A lease without election: the configuration says who is primary, for ever. On the primary itself
 * give no `primary`; elsewhere its address. Replicas must run with `candidate: false`.
 */
export function staticLease(options: {
  clusterId: string;
  highestEpoch: bigint;
  primary?: { advertiseUrl: string; peerAddress: string };
}): LeaseAdapter {
  throw new Error(options.clusterId);
}
