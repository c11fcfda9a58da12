import type { LtxHeader, LtxTrailer, LtxVersion } from './format.js';

/**
 * Reads an LTX file of any version from front to end in bounded memory, and checks all of it: `next` until
 * it returns false, and only then is anything that was read known to be right. Throws ERR_LTX_DAMAGED for a
 * file that was cut off or changed, ERR_LTX_FOREIGN for one that is none. A file in memory or an open descriptor:
 *
 *     const ltx = LtxDecoder.fromFile(fd);
 *     while (ltx.next()) use(ltx.pgno, ltx.page);
 *     trust(ltx.trailer);
 */
export class LtxDecoder {
  declare readonly header: LtxHeader;
  /** A deletion without pages looks the same as... see docs/ltx-format.md. */
  declare readonly version: LtxVersion;
  /** The page `next` moved to. */
  declare readonly pgno: number;
  /** Its bytes: the decoder's own buffer, overwritten by `next`. */
  declare readonly page: Buffer;
  /** Its checksum's halves (see checksum.ts), which cost nothing more. */
  declare readonly checksumHigh: number;
  declare readonly checksumLow: number;

  static fromBuffer(_bytes: Uint8Array): LtxDecoder {
    throw new Error('not yet');
  }

  /** Reads from offset 0 of an open file, 256 KiB at a time, by position: the descriptor's own is not moved. */
  static fromFile(_fd: number): LtxDecoder {
    throw new Error('not yet');
  }

  /** Moves to the next page. False at the end: everything has been checked then, and `trailer` is there. */
  next(): boolean {
    throw new Error('not yet');
  }

  /** Only after `next` returned false. */
  get trailer(): LtxTrailer {
    throw new Error('not yet');
  }
}
