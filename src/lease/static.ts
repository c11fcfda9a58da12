import { MemoryLeaseStore } from './memory.js';
import type { LeaseAdapter } from './types.js';

/**
 * A lease without election: the configuration says who is primary, for ever. On the primary itself
 * give no `primary`; elsewhere its address. Replicas must run with `candidate: false`. They cannot learn
 * the epoch here: the `replica` event has the one given, the stream from the primary says the real one.
 */
export function staticLease(options: {
  clusterId: string;
  highestEpoch: bigint;
  primary?: { advertiseUrl: string; peerAddress: string };
}): LeaseAdapter {
  const { clusterId, highestEpoch, primary } = options;
  return new MemoryLeaseStore({
    clusterId,
    epoch: highestEpoch,
    holder: primary && { nodeId: 'static', incarnation: 'static', ...primary },
    heartbeat: 0n,
    ttlMs: 5000,
    positions: {},
    syncSet: [],
    handoffTo: undefined,
  }).connect();
}
