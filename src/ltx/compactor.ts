import { KiteError } from '../errors.js';
import type { LtxDecoder } from './decoder.js';
import type { EncodedLtx, LtxEncoder, LtxSink } from './encoder.js';
import type { LtxHeader, LtxHeaderFields } from './format.js';

export interface CompactOptions {
  /** Leave the database checksums out, as Litestream does in its buckets. */
  readonly noChecksum?: boolean;
  /** What the header says instead of what the inputs would make of it: TXIDs of a bucket, a stamp. */
  readonly as?: Partial<LtxHeaderFields>;
}

/** An input and how far it is. */
interface Source {
  readonly ltx: LtxDecoder;
  /** The smallest size, in pages, of the database from this file on: what lies beyond it was cut off. */
  readonly limit: number;
  /** The page it stands at; Infinity at its end. */
  pgno: number;
}

/**
 * Merges files of a contiguous TXID range, oldest first, into one: the newest copy of each page within the
 * final size. Throws ERR_LTX_NOT_CONTIGUOUS when the range has a gap, the page sizes differ or the checksums do not
 * meet, ERR_LTX_DAMAGED when an input is damaged. Work is done in steps, so that a big merge need not hold its
 * thread. What the sink got counts only once the end was reached: the inputs are known to be right only then.
 */
export class LtxCompactor {
  readonly #encoder: LtxEncoder;
  readonly #sources: Source[] = [];
  readonly #noChecksum: boolean;
  #done: EncodedLtx | undefined;

  constructor(
    inputs: readonly LtxDecoder[],
    encoder: LtxEncoder,
    sink: LtxSink,
    options: CompactOptions = {},
  ) {
    this.#encoder = encoder;
    const first = inputs[0]?.header;
    const last = inputs.at(-1)?.header;
    if (!first || !last) throw new KiteError('ERR_LTX_NOT_CONTIGUOUS', 'no LTX files to compact');
    this.#noChecksum = options.noChecksum ?? inputs.some((ltx) => ltx.header.noChecksum);
    let limit = Infinity;
    for (let i = inputs.length - 1; i >= 0; i--) {
      const ltx = inputs[i]!;
      limit = Math.min(limit, ltx.header.commitPages);
      this.#sources.unshift({ ltx, limit, pgno: 0 });
      if (i > 0) checkFollows(inputs[i - 1]!.header, ltx.header);
    }
    // Where the frames came from and who wrote them means nothing for several files; the epoch is the newest's.
    encoder.begin(
      {
        pageSize: first.pageSize,
        commitPages: last.commitPages,
        minTxid: first.minTxid,
        maxTxid: last.maxTxid,
        timestampMs: last.timestampMs,
        preApplyChecksum: this.#noChecksum ? 0n : first.preApplyChecksum,
        noChecksum: this.#noChecksum,
        epoch: last.epoch,
        clusterTxid: last.clusterTxid,
        clusterChecksum: last.clusterChecksum,
        ...options.as,
      },
      sink,
    );
    for (const source of this.#sources) advance(source);
  }

  /** Merges up to `pages` page numbers. Returns undefined while there are more, then what was written. */
  step(pages: number): EncodedLtx | undefined {
    for (let count = 0; count < pages && !this.#done; count++) {
      let pgno = Infinity;
      for (const source of this.#sources) pgno = Math.min(pgno, source.pgno);
      if (pgno === Infinity) this.#done = this.#finish();
      else this.#merge(pgno);
    }
    return this.#done;
  }

  #merge(pgno: number): void {
    let written = false;
    for (let i = this.#sources.length - 1; i >= 0; i--) {
      const source = this.#sources[i]!;
      if (source.pgno !== pgno) continue;
      if (!written && pgno <= source.limit) {
        this.#encoder.addPage(pgno, source.ltx.page);
        written = true;
      }
      advance(source);
    }
  }

  #finish(): EncodedLtx {
    for (let i = 1; i < this.#sources.length; i++) {
      const { trailer, header: before } = this.#sources[i - 1]!.ltx;
      const { header } = this.#sources[i]!.ltx;
      // Checksums that do not meet are two histories, whatever the TXIDs say.
      if (before.noChecksum || header.noChecksum || trailer.postApplyChecksum === header.preApplyChecksum)
        continue;
      throw new KiteError(
        'ERR_LTX_NOT_CONTIGUOUS',
        `LTX files whose checksums do not meet between TXID ${before.maxTxid} and ${header.minTxid}`,
      );
    }
    const { trailer } = this.#sources.at(-1)!.ltx;
    return this.#encoder.end(this.#noChecksum ? 0n : trailer.postApplyChecksum);
  }
}

function advance(source: Source): void {
  source.pgno = source.ltx.next() ? source.ltx.pgno : Infinity;
}

function checkFollows(before: LtxHeader, header: LtxHeader): void {
  if (before.pageSize !== header.pageSize)
    throw new KiteError(
      'ERR_LTX_NOT_CONTIGUOUS',
      `LTX files of different page sizes, ${before.pageSize} and ${header.pageSize}`,
    );
  if (before.maxTxid + 1n !== header.minTxid)
    throw new KiteError(
      'ERR_LTX_NOT_CONTIGUOUS',
      `an LTX file that starts at TXID ${header.minTxid} after one that ends at ${before.maxTxid}`,
    );
}

/** Compacts without a pause. */
export function compactLtx(
  inputs: readonly LtxDecoder[],
  encoder: LtxEncoder,
  sink: LtxSink,
  options: CompactOptions = {},
): EncodedLtx {
  const compactor = new LtxCompactor(inputs, encoder, sink, options);
  for (;;) {
    const done = compactor.step(4096);
    if (done) return done;
  }
}
