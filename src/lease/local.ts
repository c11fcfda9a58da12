import type { LeaseAdapter } from './types.js';

/**
 * The embedded lease: one row in a SQLite file, for several processes of one host. Throws
 * ERR_LEASE_DUPLICATE_NODE when a process with this node id has it open already.
 */
export function openLocalLease(options: { path: string; nodeId: string }): LeaseAdapter {
  throw new Error(options.path);
}
