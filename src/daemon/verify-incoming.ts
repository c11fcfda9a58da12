import { LtxDecoder } from '../ltx/decoder.js';
import type { LogFileMeta } from '../store/log.js';
import { checkAnnounced } from './verify-file.js';

/**
 * Checks every checksum of a small LTX file in memory, and that it is what was announced. Throws
 * ERR_LTX_DAMAGED or ERR_LTX_FOREIGN.
 */
export function verifyIncoming(bytes: Buffer, meta: LogFileMeta): void {
  const ltx = LtxDecoder.fromBuffer(bytes);
  while (ltx.next());
  checkAnnounced(ltx, meta);
}
