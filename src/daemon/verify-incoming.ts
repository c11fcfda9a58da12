import { KiteError } from '../errors.js';
import { LtxDecoder } from '../ltx/decoder.js';
import type { LogFileMeta } from '../store/log.js';

/**
 * Checks every checksum of a small LTX file from the stream, and that it is what was announced. Throws
 * ERR_LTX_DAMAGED or ERR_LTX_FOREIGN.
 */
export function verifyIncoming(bytes: Buffer, meta: LogFileMeta): void {
  const ltx = LtxDecoder.fromBuffer(bytes);
  while (ltx.next());
  const { header, trailer } = ltx;
  const same =
    bytes.length === meta.sizeBytes &&
    header.minTxid === meta.minTxid &&
    header.maxTxid === meta.maxTxid &&
    header.preApplyChecksum === meta.preApplyChecksum &&
    trailer.postApplyChecksum === meta.postApplyChecksum;
  if (!same) {
    throw new KiteError(
      'ERR_LTX_DAMAGED',
      `the file of TXID ${header.minTxid}-${header.maxTxid} is not what was announced`,
    );
  }
}
