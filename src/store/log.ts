import type { Position } from '../ltx/position.js';
import type { LostAndFound } from './lost-and-found.js';
import type { EpochPosition, LogFile } from './types.js';

/** What a file of the log says of itself, without where it is. */
export type LogFileMeta = Omit<LogFile, 'path'>;

/** Keeps files after a TXID from retention. */
export interface LogHold {
  move(afterTxid: bigint): void;
  release(): void;
}

/**
 * The log of one database: a chain of LTX files `<min16>-<max16>.ltx`, each of which starts where the
 * one before it ended. One thread writes (capture on a primary, the main thread on a replica); other
 * threads may have a Log of their own on the same folder and are told of new files with `noted`.
 */
export class Log {
  /**
   * Opens the log in `directory` (made when missing). With `repair`, which only the owner does and
   * before other threads open it: removes temporary files and renames torn files at the end to
   * `*.torn`. Throws ERR_STORE_LOG_DAMAGED when a file that was durable is damaged or missing.
   */
  static open(_directory: string, _options: { repair: boolean }): Log {
    throw new Error('coming');
  }

  /** End of the log, or undefined when it is empty. */
  get lastPosition(): EpochPosition | undefined {
    throw new Error('coming');
  }

  /** The last file, or undefined when the log is empty. */
  get lastFile(): LogFile | undefined {
    throw new Error('coming');
  }

  /** The oldest file, or undefined when the log is empty. */
  get firstFile(): LogFile | undefined {
    throw new Error('coming');
  }

  /** How many files there are. */
  get fileCount(): number {
    throw new Error('coming');
  }

  /** A name for a file to be prepared and given to `appendPrepared`; in the log's folder, so that a rename is enough. */
  temporaryPath(): string {
    throw new Error('coming');
  }

  /**
   * Adds a whole LTX file that is in memory. Not durable until `sync`. It must follow the end of the
   * log (TXID, checksum, epoch not lower) or be a snapshot that is newer than everything here, which
   * then replaces it. Throws ERR_STORE_LOG_ORDER, ERR_STORE_FULL; then nothing has changed.
   */
  append(_bytes: Uint8Array, _meta: LogFileMeta): LogFile {
    throw new Error('coming');
  }

  /** As `append`, for a file written to `temporaryPath()`. On an error that file is still there. */
  appendPrepared(_temporaryPath: string, _meta: LogFileMeta): LogFile {
    throw new Error('coming');
  }

  /** Tells this Log of a file that another thread's Log has appended. */
  noted(_file: LogFile): void {
    throw new Error('coming');
  }

  /** Makes everything appended so far durable. Callers that meet share one round of fsyncs. */
  sync(): Promise<void> {
    throw new Error('coming');
  }

  /** Files after a position, oldest first; undefined when the log does not hold that position. */
  filesAfter(_position: Position): LogFile[] | undefined {
    throw new Error('coming');
  }

  /** Whether the history here went through this position (TXID and checksum) and can go on from it. */
  contains(_position: Position): boolean {
    throw new Error('coming');
  }

  /** Keeps the files after `afterTxid` from `removeBefore` until released. */
  hold(_afterTxid: bigint): LogHold {
    throw new Error('coming');
  }

  /** Retention: removes files that end at or before `txid` and are not held; the last file always stays. Returns how many. */
  removeBefore(_txid: bigint): number {
    throw new Error('coming');
  }

  /**
   * Gives up the transactions after `txid`: their files are moved to lost+found, newest first. A file
   * that holds TXIDs on both sides goes too. Returns the folder in lost+found, or undefined when there were none.
   */
  setAsideAfter(_txid: bigint, _lostAndFound: LostAndFound, _reason: string): string | undefined {
    throw new Error('coming');
  }

  /** Makes everything durable and ends use. */
  close(): Promise<void> {
    throw new Error('coming');
  }
}
