import type { SnapshotSource } from '../replication/store.js';
import type { Capture } from './capture.js';

/** The log of one database as the first copy reads it. */
export interface CopyLog {
  /** Files after a TXID, oldest first; undefined when the log no longer reaches back to it. */
  filesAfterTxid(txid: bigint): readonly { readonly path: string; readonly maxTxid: bigint }[] | undefined;
}

/**
 * Copies a database that goes on being written (trap 8: only pages that match the committed checksums) and
 * returns it as one snapshot LTX at a position of the log. Needs room for one copy in `tmpDir`. Rejects
 * with ERR_CAPTURE_COPY when the database changes faster than it can be copied.
 */
export function buildSnapshot(
  _capture: Capture,
  _name: string,
  _log: CopyLog,
  _tmpDir: string,
): Promise<SnapshotSource> {
  throw new Error('not yet');
}
