import { closeSync, openSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { KiteError } from '../errors.js';
import { LtxDecoder } from '../ltx/decoder.js';
import type { LogFileMeta } from '../store/log.js';

/** Pages between two turns for others: this thread serves the streams of all databases. */
const TURN_PAGES = 256;

/**
 * Checks every checksum of an LTX file on disk, and that it is what was announced, in turns. Rejects with ERR_LTX_DAMAGED
 * or ERR_LTX_FOREIGN.
 */
export async function verifyFile(path: string, meta: LogFileMeta): Promise<void> {
  const fd = openSync(path, 'r');
  try {
    const ltx = LtxDecoder.fromFile(fd);
    while (ltx.next()) if (ltx.pageCount % TURN_PAGES === 0) await nextTurn();
    checkAnnounced(ltx, meta);
  } finally {
    closeSync(fd);
  }
}

/** Whether a file that was read to its end is the one that was announced; throws ERR_LTX_DAMAGED. */
export function checkAnnounced({ header, trailer, sizeBytes }: LtxDecoder, meta: LogFileMeta): void {
  const same =
    sizeBytes === meta.sizeBytes &&
    header.minTxid === meta.minTxid &&
    header.maxTxid === meta.maxTxid &&
    header.preApplyChecksum === meta.preApplyChecksum &&
    trailer.postApplyChecksum === meta.postApplyChecksum;
  if (same) return;
  throw new KiteError(
    'ERR_LTX_DAMAGED',
    `the file of TXID ${header.minTxid}-${header.maxTxid} is not what was announced`,
  );
}
