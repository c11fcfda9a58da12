import { closeSync, openSync, readSync } from 'node:fs';

import { KiteError } from '../errors.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { HEADER_BYTES, parseHeader, type LtxHeader } from '../ltx/format.js';
import { samePosition } from '../ltx/position.js';
import type { Log } from '../store/log.js';
import { PageChecksums, type JournalVersions } from '../store/page-checksums.js';
import type { LogFile } from '../store/types.js';

/** Of files that are not what they should be; a disk that cannot be read is another matter. */
const DAMAGE: ReadonlySet<string> = new Set(['ERR_LTX_DAMAGED', 'ERR_LTX_FOREIGN', 'ERR_STORE_LOG_DAMAGED']);

/** The page checksums at the end of a log. */
export interface RecoveredChecksums {
  readonly checksums: PageChecksums;
  /** The `checksums` file was flushed at the very end of the log: no page had to be computed. */
  readonly current: boolean;
  /** Bytes 18 and 19 of page 1 as the checksums mean it, when that is known. */
  readonly journalVersions?: JournalVersions;
}

/**
 * Brings the flushed page checksums up to the log's end with what the later files themselves hold, which is
 * exact whatever became of `database`. Starts from nothing when the log begins with a whole database.
 * Returns undefined when neither is possible, or a file that it takes is damaged: then only a full reading can tell.
 */
export function recoverChecksums(log: Log, checksumsPath: string): RecoveredChecksums | undefined {
  const end = log.lastPosition;
  if (!end) return { checksums: new PageChecksums(), current: true };
  const loaded = PageChecksums.load(checksumsPath);
  if (loaded && samePosition(loaded.flush.position, end)) {
    const { checksums, flush } = loaded;
    return { checksums, current: true, journalVersions: flush.journalVersions };
  }
  const missed = loaded && log.filesAfter(loaded.flush.position);
  if (loaded && missed) {
    const done = replay(loaded.checksums, loaded.flush.pageSize, missed);
    if (done?.checksum === end.checksum) return { checksums: done, current: false };
  }
  const all = log.filesAfter({ txid: 0n, checksum: 0n });
  if (!all || all[0]?.minTxid !== 1n) return undefined;
  const done = replay(new PageChecksums(), 0, all);
  return done?.checksum === end.checksum ? { checksums: done, current: false } : undefined;
}

/** The header of a log file. */
export function readLtxHeader(file: LogFile): LtxHeader {
  const fd = openSync(file.path, 'r');
  try {
    const bytes = Buffer.alloc(HEADER_BYTES);
    return parseHeader(bytes.subarray(0, readSync(fd, bytes, 0, HEADER_BYTES, 0))).header;
  } finally {
    closeSync(fd);
  }
}

function replay(
  checksums: PageChecksums,
  startPageSize: number,
  files: readonly LogFile[],
): PageChecksums | undefined {
  try {
    return replayed(checksums, startPageSize, files);
  } catch (error) {
    // Who needs the file itself will say so: here it is one of two ways to the same knowledge.
    if (error instanceof KiteError && DAMAGE.has(error.code)) return undefined;
    throw error;
  }
}

function replayed(checksums: PageChecksums, startPageSize: number, files: readonly LogFile[]): PageChecksums {
  let pageSize = startPageSize;
  for (const file of files) {
    // A file with another page size holds the whole database.
    if (file.pageSize !== pageSize) checksums.clear();
    pageSize = file.pageSize;
    const fd = openSync(file.path, 'r');
    try {
      const ltx = LtxDecoder.fromFile(fd);
      checksums.resize(file.commitPages);
      while (ltx.next()) checksums.set(ltx.pgno, ltx.checksumHigh, ltx.checksumLow);
    } finally {
      closeSync(fd);
    }
  }
  return checksums;
}
