import { KiteError } from '../errors.js';
import { checksumOfCrc, joinHalves } from './checksum.js';
import { Crc64, PageCrc } from './crc64.js';
import {
  brokenTrailerRule,
  CHECKSUM_FLAG,
  completeHeader,
  HEADER_BYTES,
  PAGE_FLAG_BLOCK,
  PAGE_HEADER_BYTES,
  TRAILER_BYTES,
  writeHeader,
  type LtxHeader,
  type LtxHeaderFields,
  type LtxTrailer,
} from './format.js';
import { blockBound } from './lz4.js';
import { compressPage } from './page-codec.js';
import { PageOrder } from './page-order.js';
import { INDEX_ENTRY_BYTES, putIndexEntry } from './page-index.js';

const CHUNK_BYTES = 256 * 1024;
const INDEX_START_BYTES = 4096;
/** An index buffer larger than this is not kept for the next file: 100 000 pages. */
const INDEX_KEEP_BYTES = 1 << 20;
const FRAME_OVERHEAD_BYTES = PAGE_HEADER_BYTES + 4;

/**
 * Takes the next bytes of a file. The chunk is the encoder's own buffer, valid only during the call: write
 * it, or copy it.
 */
export type LtxSink = (chunk: Buffer) => void;

/** What the end of a file says. */
export interface EncodedLtx extends LtxTrailer {
  readonly sizeBytes: number;
}

const invalid = (what: string): KiteError => new KiteError('ERR_LTX_INVALID', what);

/**
 * Writes LTX files (v3b), one after another: `begin`, `addPage` in ascending order, `end`. Its buffers are
 * used again from file to file, so a thread keeps one. A file of any size needs about 400 KiB and 10 bytes
 * per page. Every call throws ERR_LTX_INVALID for what the format forbids; the next `begin` then starts afresh.
 */
export class LtxEncoder {
  readonly #chunk = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  readonly #crc = new Crc64();
  #pageCrc = new PageCrc(4096);
  #pageSize = 4096;
  #bound = blockBound(4096);
  #header: LtxHeader | undefined;
  #order = new PageOrder();
  #sink: LtxSink = () => undefined;
  /** Bytes in #chunk, and bytes that the sink took before. */
  #filled = 0;
  #flushed = 0;
  /** The page index as it will be written. */
  #index = Buffer.allocUnsafeSlow(INDEX_START_BYTES);
  #indexLength = 0;

  /** `sink` gets chunks of at most 256 KiB. */
  begin(fields: LtxHeaderFields, sink: LtxSink): void {
    this.#header = undefined;
    const header = completeHeader(fields);
    if (header.pageSize !== this.#pageSize) {
      this.#pageSize = header.pageSize;
      this.#pageCrc = new PageCrc(header.pageSize);
      this.#bound = blockBound(header.pageSize);
    }
    this.#order.begin(header);
    this.#sink = sink;
    this.#flushed = 0;
    this.#indexLength = 0;
    writeHeader(header, this.#chunk);
    this.#filled = HEADER_BYTES;
    this.#crc.reset();
    this.#crc.update(this.#chunk, 0, HEADER_BYTES);
    this.#header = header;
  }

  /**
   * Adds a page. Given `out`, writes the page's checksum to out[at] (high) and out[at + 1] (low): it costs
   * next to nothing, since the file's own checksum needs the same pass over the page.
   */
  addPage(pgno: number, page: Uint8Array, out?: Uint32Array, at = 0): void {
    if (!this.#header) throw invalid('an LTX page outside of any file');
    if (page.length !== this.#pageSize)
      throw invalid(`an LTX page of ${page.length} bytes where ${this.#pageSize} belong`);
    const broken = this.#order.add(pgno);
    if (broken) throw invalid(broken);

    if (this.#filled + FRAME_OVERHEAD_BYTES + this.#bound > CHUNK_BYTES) this.#flush();
    const chunk = this.#chunk;
    const start = this.#filled;
    const blockStart = start + FRAME_OVERHEAD_BYTES;
    const size = compressPage(page).copy(chunk, blockStart);
    chunk.writeUInt32BE(pgno, start);
    chunk.writeUInt16BE(PAGE_FLAG_BLOCK, start + 4);
    chunk.writeUInt32BE(size, start + PAGE_HEADER_BYTES);
    this.#filled = blockStart + size;

    this.#pageCrc.compute(page);
    this.#crc.update(chunk, start, blockStart);
    this.#crc.updatePage(this.#pageCrc);
    if (out) checksumOfCrc(pgno, this.#pageCrc, out, at);

    if (this.#indexLength + INDEX_ENTRY_BYTES > this.#index.length) {
      const larger = Buffer.allocUnsafeSlow(this.#index.length * 2);
      this.#index.copy(larger, 0, 0, this.#indexLength);
      this.#index = larger;
    }
    const frameBytes = FRAME_OVERHEAD_BYTES + size;
    this.#indexLength = putIndexEntry(
      this.#index,
      this.#indexLength,
      pgno,
      this.#flushed + start,
      frameBytes,
    );
  }

  /** Ends the file. `postApplyChecksum` is 0n with noChecksum, bit 63 alone for a deletion. */
  end(postApplyChecksum: bigint): EncodedLtx {
    const header = this.#header;
    if (!header) throw invalid('the end of no LTX file');
    this.#header = undefined;
    const broken =
      this.#order.end() ?? brokenTrailerRule(header, { postApplyChecksum, fileChecksum: CHECKSUM_FLAG });
    if (broken) throw invalid(broken);

    const tail = Buffer.alloc(PAGE_HEADER_BYTES);
    this.#put(tail);
    const index = this.#index.subarray(0, this.#indexLength);
    for (let at = 0; at < index.length; at += CHUNK_BYTES) this.#put(index.subarray(at, at + CHUNK_BYTES));
    const end = Buffer.alloc(1 + 8 + TRAILER_BYTES);
    end.writeBigUInt64BE(BigInt(index.length + 1), 1);
    end.writeBigUInt64BE(postApplyChecksum, 9);
    this.#put(end.subarray(0, 17));
    const fileChecksum = CHECKSUM_FLAG | joinHalves(this.#crc.valueHigh, this.#crc.valueLow);
    end.writeBigUInt64BE(fileChecksum, 17);
    this.#put(end.subarray(17));
    this.#flush();
    if (this.#index.length > INDEX_KEEP_BYTES) this.#index = Buffer.allocUnsafeSlow(INDEX_START_BYTES);
    this.#sink = () => undefined;
    return { postApplyChecksum, fileChecksum, sizeBytes: this.#flushed };
  }

  #put(bytes: Buffer): void {
    if (this.#filled + bytes.length > CHUNK_BYTES) this.#flush();
    this.#crc.update(bytes, 0, bytes.length);
    this.#filled += bytes.copy(this.#chunk, this.#filled);
  }

  #flush(): void {
    if (this.#filled === 0) return;
    this.#sink(this.#chunk.subarray(0, this.#filled));
    this.#flushed += this.#filled;
    this.#filled = 0;
  }
}

/** A page of a transaction. */
export interface LtxPage {
  readonly pgno: number;
  readonly data: Uint8Array;
}

/** A whole file in memory, for small ones. Uses the given encoder, or one of its own. */
export function encodeLtx(
  header: LtxHeaderFields,
  pages: Iterable<LtxPage>,
  postApplyChecksum: bigint,
  encoder = new LtxEncoder(),
): Buffer {
  const chunks: Buffer[] = [];
  encoder.begin(header, (chunk) => chunks.push(Buffer.from(chunk)));
  for (const page of pages) encoder.addPage(page.pgno, page.data);
  encoder.end(postApplyChecksum);
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
}
