import type { LtxDecoder } from './decoder.js';
import type { EncodedLtx, LtxEncoder, LtxSink } from './encoder.js';

export interface CompactOptions {
  /** Leave the database checksums out, as Litestream does in its buckets. */
  readonly noChecksum?: boolean;
}

/**
 * Merges files of a contiguous TXID range, oldest first, into one: the newest copy of each page within the
 * final size. Throws ERR_LTX_NOT_CONTIGUOUS when the range has a gap or the checksums do not meet, ERR_LTX_DAMAGED
 * when an input is damaged. Work is done in steps, so that a big merge need not hold its thread.
 */
export class LtxCompactor {
  constructor(
    _inputs: readonly LtxDecoder[],
    _encoder: LtxEncoder,
    _sink: LtxSink,
    _options: CompactOptions = {},
  ) {
    throw new Error('not yet');
  }

  /** Writes up to `pages` pages. Returns undefined while there is more, and what was written at the end. */
  step(_pages: number): EncodedLtx | undefined {
    throw new Error('not yet');
  }
}

/** Compacts without a pause. */
export function compactLtx(
  _inputs: readonly LtxDecoder[],
  _encoder: LtxEncoder,
  _sink: LtxSink,
  _options: CompactOptions = {},
): EncodedLtx {
  throw new Error('not yet');
}
