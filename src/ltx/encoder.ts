import type { LtxHeaderFields, LtxTrailer } from './format.js';

/**
 * Takes the next bytes of a file. The chunk is the encoder's own buffer, valid only during the call: write
 * it, or copy it.
 */
export type LtxSink = (chunk: Buffer) => void;

/** What the end of a file says. */
export interface EncodedLtx extends LtxTrailer {
  readonly sizeBytes: number;
}

/**
 * Writes LTX files (v3b), one after another: `begin`, `addPage` in ascending order, `end`. Its buffers are
 * used again from file to file, so a thread keeps one. A file of any size needs about 400 KiB and 10 bytes
 * per page. Every call throws ERR_LTX_INVALID for what the format forbids; the next `begin` then starts afresh.
 */
export class LtxEncoder {
  /** `sink` gets chunks of at most 256 KiB. */
  begin(_header: LtxHeaderFields, _sink: LtxSink): void {
    throw new Error('not yet');
  }

  /**
   * Adds a page. Given `out`, writes the page's checksum to out[at] (high) and out[at + 1] (low): it costs
   * nothing more, the file's own checksum needs the same pass.
   */
  addPage(_pgno: number, _page: Uint8Array, _out?: Uint32Array, _at = 0): void {
    throw new Error('not yet');
  }

  /** Ends the file. `postApplyChecksum` is 0n with noChecksum, bit 63 alone for a deletion. */
  end(_postApplyChecksum: bigint): EncodedLtx {
    throw new Error('not yet');
  }
}

/** A page of a transaction. */
export interface LtxPage {
  readonly pgno: number;
  readonly data: Uint8Array;
}

/** A whole file in memory, for small ones. */
export function encodeLtx(
  _header: LtxHeaderFields,
  _pages: Iterable<LtxPage>,
  _postApplyChecksum: bigint,
): Buffer {
  throw new Error('not yet');
}
