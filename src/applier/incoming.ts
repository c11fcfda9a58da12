import fs from 'node:fs';

import { KiteError } from '../errors.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { formatPosition } from '../ltx/position.js';
import { READ_VERSION_OFFSET, WAL_VERSION, WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import type { JournalVersions, PageChecksums } from '../store/page-checksums.js';
import type { EpochPosition, LogFile } from '../store/types.js';

/** A page on its way into the WAL. */
export type PageSink = (pgno: number, page: Buffer) => void;

/** Files up to this size are decoded and verified as a whole before anything is written. */
export const SMALL_FILE_BYTES = 512 << 10;

const diverged = (message: string): KiteError => new KiteError('ERR_APPLIER_DIVERGED', message);

export const positionAfter = (file: LogFile): EpochPosition => ({
  txid: file.maxTxid,
  checksum: file.postApplyChecksum,
  epoch: file.epoch,
});

/**
 * Whether a file comes next at `position`: `done` when it was applied before. Throws ERR_APPLIER_DIVERGED when
 * it cannot follow. A snapshot follows anything.
 */
export function follows(position: EpochPosition | undefined, file: LogFile): 'next' | 'done' {
  if (position && file.maxTxid === position.txid && file.postApplyChecksum === position.checksum)
    return 'done';
  if (file.minTxid === 1n) return 'next';
  if (position && file.maxTxid < position.txid) return 'done';
  if (position && file.minTxid === position.txid + 1n && file.preApplyChecksum === position.checksum)
    return 'next';
  const at = position ? formatPosition(position) : 'no known position';
  const before = { txid: file.minTxid - 1n, checksum: file.preApplyChecksum };
  throw diverged(`the database is at ${at}, the next file of the log follows ${formatPosition(before)}`);
}

/**
 * Reads a file, hands its pages on as the replica keeps them (page 1 in WAL mode), and brings the checksums to
 * its end. The file is trusted only when this returns: throws ERR_LTX_DAMAGED for a damaged file, ERR_APPLIER_DIVERGED when
 * the database would not be what the file says. `pause` is called after each page. Returns the primary's
 * journal mode bytes when page 1 was there.
 */
export async function readTransaction(
  file: LogFile,
  checksums: PageChecksums,
  sink: PageSink,
  pause?: () => Promise<void> | undefined,
): Promise<JournalVersions | undefined> {
  const small = file.sizeBytes <= SMALL_FILE_BYTES;
  const fd = small ? undefined : fs.openSync(file.path, 'r');
  try {
    const ltx =
      fd === undefined ? LtxDecoder.fromBuffer(fs.readFileSync(file.path)) : LtxDecoder.fromFile(fd);
    checkHeader(file, ltx);
    if (file.minTxid === 1n) checksums.clear();
    let versions: JournalVersions | undefined;
    while (ltx.next()) {
      const { pgno, page } = ltx;
      if (pgno === 1) {
        versions = { write: page[WRITE_VERSION_OFFSET]!, read: page[READ_VERSION_OFFSET]! };
        const local = Buffer.from(page);
        local.fill(WAL_VERSION, WRITE_VERSION_OFFSET, READ_VERSION_OFFSET + 1);
        sink(pgno, local);
      } else {
        sink(pgno, page);
      }
      checksums.set(pgno, ltx.checksumHigh, ltx.checksumLow);
      const waiting = pause?.();
      if (waiting) await waiting;
    }
    checksums.resize(file.commitPages);
    if (checksums.checksum !== ltx.trailer.postApplyChecksum) {
      throw diverged(`TXID ${file.maxTxid} of the log makes another database here than on the primary`);
    }
    return versions;
  } finally {
    if (fd !== undefined) fs.closeSync(fd);
  }
}

/** What was announced of a file must be what it says itself. */
function checkHeader(file: LogFile, { header }: LtxDecoder): void {
  const same =
    header.minTxid === file.minTxid &&
    header.maxTxid === file.maxTxid &&
    header.pageSize === file.pageSize &&
    header.commitPages === file.commitPages &&
    header.preApplyChecksum === file.preApplyChecksum;
  if (!same) throw new KiteError('ERR_LTX_DAMAGED', `${file.path} is not the file that was announced`);
}
