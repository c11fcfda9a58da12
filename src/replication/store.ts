import type { LeaseHolder } from '../lease/types.js';
import type { EpochPosition, LogFile } from '../store/types.js';

/**
 * What replication needs of the node: the daemon implements it over the log, capture and the applier.
 * The server side (primary) reads; the client side (replica) writes. Replication itself touches no
 * file of the data directory except through this.
 */

/** Who is primary, as a node that is not says to a replica that knocks. */
export type PrimaryHint = Pick<LeaseHolder, 'nodeId' | 'advertiseUrl' | 'peerAddress'>;

/** Something that changed on this node, in the order in which it happened. */
export type StoreChange =
  | { readonly kind: 'transaction'; readonly name: string; readonly file: LogFile }
  | { readonly kind: 'created'; readonly name: string }
  | { readonly kind: 'dropped'; readonly name: string }
  /** Readers of this node now see `appliedPosition(name)`. Needed on replicas only. */
  | { readonly kind: 'applied'; readonly name: string };

/** A whole database at one position, as a snapshot LTX (min TXID 1) of exactly `file.sizeBytes`, read in pieces. */
export interface SnapshotSource {
  readonly file: Omit<LogFile, 'path'>;
  /** Pieces of at most 256 KiB; the source is closed when the iteration ends or is left. */
  chunks(): AsyncIterable<Buffer>;
}

/** What a replica has of a database, as the primary compares it. */
export interface ReplicaPages {
  /** Where the replica stands in this history; TXID 0 when that is not known. */
  readonly txid: bigint;
  /** Of all its pages. */
  readonly checksum: bigint;
  /** Two halves per page from page 1, as many as the primary has pages at most. */
  readonly halves: Uint32Array;
}

/** The page checksums of a replica's database, which stays as it is until `release`. */
export interface ChecksumSource {
  /** TXID 0: its pages are at no position of its log. */
  readonly txid: bigint;
  readonly checksum: bigint;
  readonly pages: number;
  /** In order, 8 bytes per page, pieces of at most 256 KiB. */
  chunks(): AsyncIterable<Buffer>;
  release(): void;
}

/** What the primary has said of a file that need not follow the log of the replica. */
export interface Replacement {
  /** The file is a difference to what the database holds. */
  readonly difference: boolean;
  /** Where the primary's history leaves ours (see ChecksumsWanted); undefined when it does not say. */
  readonly fork: EpochPosition | undefined;
}

/** An LTX file on its way in. Nothing of it is seen by anyone before `finish` resolves. */
export interface IncomingFile {
  write(chunk: Buffer): Promise<void> | void;
  /**
   * Verifies the file (checksums, header as announced, that it follows the log's end or is a snapshot)
   * and adds it to the log; resolves once it is there. `durable` also fsyncs it. Rejects with
   * ERR_REPLICATION_* / ERR_LTX_* and leaves no trace.
   */
  finish(options: { durable: boolean }): Promise<void>;
  abort(): Promise<void>;
}

export interface ReplicationStore {
  readonly nodeId: string;
  readonly clusterId: string;
  /** The highest epoch this node knows; lower ones are refused wherever they arrive. */
  epoch(): bigint;
  /** Names of all databases that exist on this node. */
  databases(): readonly string[];
  /** End of the log of a database (captured or received), or undefined when there is none. */
  position(name: string): EpochPosition | undefined;
  /** Position that readers of this node see (applied); on the primary the same as `position`. */
  appliedPosition(name: string): EpochPosition | undefined;
  subscribe(listener: (change: StoreChange) => void): () => void;

  // Primary
  /** The log's files after `position`, oldest first; undefined when the log does not hold that position (other lineage, or past retention). */
  filesAfter(name: string, position: EpochPosition): readonly LogFile[] | undefined;
  /**
   * Bytes of one log file. Small files (≤ 256 KiB) come from memory when they were just made, and are verified when they come
   * from the disk. Throws ERR_STORE_LOG_DAMAGED for a file that is damaged or gone.
   */
  readFile(file: LogFile): Promise<Buffer> | AsyncIterable<Buffer>;
  /** Keeps log files after `txid` from retention until released. */
  hold(name: string, afterTxid: bigint): { move(afterTxid: bigint): void; release(): void };
  snapshot(name: string): Promise<SnapshotSource>;
  /** End of the log's part of this epoch and earlier ones; undefined when the log does not reach back to it. */
  endOfEpoch(name: string, epoch: bigint): EpochPosition | undefined;
  /** Size of a database's pages and of itself in pages now; undefined when there is none. */
  pagesOf(name: string): { readonly pageSize: number; readonly pages: number } | undefined;
  /** The pages that differ from what a replica has, as an LTX file. Rejects with ERR_CAPTURE_COPY when that cannot be. */
  difference(name: string, replica: ReplicaPages): Promise<SnapshotSource>;

  // Replica
  /**
   * Asked before a file is received. `known`: the log went through where it ends already, because it is a transaction that this
   * node has made (HALT), so that nothing of it is needed. Any other file shows that HALT is over: it is ended first.
   */
  arrives(name: string, file: Omit<LogFile, 'path'>): Promise<'new' | 'known'>;
  /** Makes what the log of a database holds durable. */
  sync(name: string): Promise<void>;
  /**
   * Whether what the log holds can be had from this disk: the log begins with the whole database, or the database was found
   * to stand in it. If not, an fsync of its files is worth nothing to whoever counts on it.
   */
  isGrounded(name: string): boolean;
  /** `replacement`: the file takes the place of what does not belong to the primary's history. */
  receive(name: string, file: Omit<LogFile, 'path'>, replacement?: Replacement): Promise<IncomingFile>;
  /** Names of all databases that the primary is told of: also those of which nothing is of use. */
  announced(): readonly string[];
  /** End of the log when nothing can follow it, because the database is not what the log says; else undefined. */
  needsResync(name: string): { readonly at: EpochPosition | undefined } | undefined;
  /** Stops to apply, so that the pages stay as they are; undefined when there are none of this size. */
  pageChecksums(name: string, pageSize: number): Promise<ChecksumSource | undefined>;
  /**
   * The primary no longer has this database. Unless the log ends with a deletion (commitPages 0), what
   * this node had was not dropped by an application and is set aside in lost+found, never removed.
   */
  drop(name: string, epoch: bigint): Promise<void>;
}
