import type { Position, TxidRange } from '../ltx/position.js';

/** One file of a database's log: the LTX file itself, whose header's reserved bytes 80-87 hold the epoch. */
export interface LogFile extends TxidRange {
  readonly path: string;
  readonly sizeBytes: number;
  readonly epoch: bigint;
  /** Checksum before minTxid; 0n for a snapshot. */
  readonly preApplyChecksum: bigint;
  /** Checksum after maxTxid. */
  readonly postApplyChecksum: bigint;
  /** Page size of the transaction, bytes. */
  readonly pageSize: number;
  /** Database size after it, pages. 0 = the database was dropped. */
  readonly commitPages: number;
}

/** What a log holds, for another thread that goes on with it. */
export interface LogContents {
  /** First and last TXID of each file, oldest first. */
  readonly txids: BigUint64Array;
  readonly last: LogFile | undefined;
}

/** A position and the epoch of its last transaction: what two histories are compared by (trap 3). */
export interface EpochPosition extends Position {
  readonly epoch: bigint;
}
