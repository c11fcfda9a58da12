import { KiteError } from '../errors.js';
import { checksumOfCrc, DatabaseChecksum, joinHalves } from './checksum.js';
import { Crc64, PageCrc } from './crc64.js';
import {
  brokenTrailerRule,
  CHECKSUM_FLAG,
  HEADER_BYTES,
  isSnapshot,
  PAGE_FLAG_BLOCK,
  PAGE_HEADER_BYTES,
  parseHeader,
  TRAILER_BYTES,
  type LtxHeader,
  type LtxTrailer,
  type LtxVersion,
} from './format.js';
import { LtxInput, type LtxReadAt } from './input.js';
import { LZ4_FRAME_MAGIC, Lz4FrameReader } from './lz4-frame.js';
import { areaOf, blockBound, decompressBlock, SLACK_BYTES, type ByteArea } from './lz4.js';
import { compressPage } from './page-codec.js';
import { INDEX_ENTRY_BYTES, putIndexEntry } from './page-index.js';
import { PageOrder } from './page-order.js';

const LZ4_FRAME_HEADER_BYTES = 7;

export interface DecodeOptions {
  /**
   * Also compress every page again and compare (v3b): then a changed byte is noticed even where it decompresses
   * to the same page, which the file's checksum cannot see. Files of Go's ltx pass; files of writers
   * with another compressor do not.
   */
  readonly exact?: boolean;
}

const damaged = (what: string): KiteError => new KiteError('ERR_LTX_DAMAGED', what);

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
  readonly header: LtxHeader;
  readonly version: LtxVersion;
  readonly sizeBytes: number;
  /** The page `next` moved to. */
  pgno = 0;
  /** Its bytes: the decoder's own buffer, overwritten by `next`. */
  readonly page: Buffer;
  /** The halves of its checksum (checksum.ts), which cost next to nothing here. */
  checksumHigh = 0;
  checksumLow = 0;
  /** How many pages `next` has moved to. */
  pageCount = 0;
  readonly #input: LtxInput;
  readonly #pageArea: ByteArea;
  readonly #pageCrc: PageCrc;
  readonly #crc = new Crc64();
  readonly #checksum = new Uint32Array(2);
  readonly #order = new PageOrder();
  /** The rolling checksum of a snapshot's pages; only they can be checked without the database. */
  readonly #database: DatabaseChecksum | undefined;
  /** LZ4 frames: one per page in v2 and v3a, one around all pages in v1. */
  readonly #frames: Lz4FrameReader | undefined;
  readonly #stream: boolean;
  readonly #pageHeader: Buffer;
  /** Whether each page is compressed again and compared. */
  readonly #exact: boolean;
  /** What the index must be, by length and CRC, so that memory does not grow with it. */
  readonly #indexEntry = Buffer.allocUnsafe(INDEX_ENTRY_BYTES);
  readonly #indexCrc = new Crc64();
  #indexLength = 0;
  #trailer: LtxTrailer | undefined;

  private constructor(input: LtxInput, options: DecodeOptions) {
    this.#input = input;
    this.sizeBytes = input.sizeBytes;
    input.need(Math.min(HEADER_BYTES, input.remaining), 'its header');
    const { header, lz4Stream } = parseHeader(
      input.bytes.subarray(0, Math.min(HEADER_BYTES, input.remaining)),
    );
    this.header = header;
    this.#crc.update(input.bytes, 0, HEADER_BYTES);
    input.at += HEADER_BYTES;
    this.#stream = lz4Stream;
    this.version = lz4Stream ? 'v1' : detectVersion(input, header.pageSize);
    this.#pageHeader = Buffer.alloc(this.version === 'v1' || this.version === 'v2' ? 4 : PAGE_HEADER_BYTES);
    if (lz4Stream || this.version === 'v2' || this.version === 'v3a')
      this.#frames = new Lz4FrameReader(input);
    if (lz4Stream) this.#frames?.begin();

    this.#pageArea = areaOf(Buffer.allocUnsafeSlow(header.pageSize + SLACK_BYTES));
    this.page = this.#pageArea.bytes.subarray(0, header.pageSize);
    this.#pageCrc = new PageCrc(header.pageSize);
    this.#order.begin(header);
    if (isSnapshot(header) && !header.noChecksum) this.#database = new DatabaseChecksum();
    this.#exact = options.exact ?? false;
  }

  static fromBuffer(bytes: Uint8Array, options: DecodeOptions = {}): LtxDecoder {
    return new LtxDecoder(LtxInput.ofBuffer(bytes), options);
  }

  /** Reads from offset 0 of an open file, 256 KiB at a time, by position: the descriptor's own is not moved. */
  static fromFile(fd: number, options: DecodeOptions = {}): LtxDecoder {
    return new LtxDecoder(LtxInput.ofFile(fd), options);
  }

  /** Reads a file of `sizeBytes` from front to end by a function: for what comes from elsewhere while it is read. */
  static fromReader(sizeBytes: number, readAt: LtxReadAt, options: DecodeOptions = {}): LtxDecoder {
    return new LtxDecoder(LtxInput.ofReader(sizeBytes, readAt), options);
  }

  /** Moves to the next page. False at the end: everything has been checked then, and `trailer` is there. */
  next(): boolean {
    if (this.#trailer) return false;
    const input = this.#input;
    const start = input.offset;
    const head = this.#pageHeader;
    if (this.#stream) {
      this.#frames!.read(head, 0, head.length);
    } else {
      input.need(head.length, 'its pages');
      input.bytes.copy(head, 0, input.at, input.at + head.length);
      input.at += head.length;
    }
    this.#crc.update(head, 0, head.length);
    const pgno = head.readUInt32BE(0);
    const flags = head.length === PAGE_HEADER_BYTES ? head.readUInt16BE(4) : 0;
    if (pgno === 0 && flags === 0) {
      this.#finish();
      return false;
    }
    const broken = this.#order.add(pgno);
    if (broken) throw damaged(broken);
    if (flags & ~PAGE_FLAG_BLOCK)
      throw damaged(`page ${pgno} of an LTX file with flags 0x${flags.toString(16)}`);

    if (flags === PAGE_FLAG_BLOCK) this.#readBlock(pgno);
    else if (this.#stream) this.#frames!.read(this.page, 0, this.page.length);
    else if (this.version === 'v1') this.#readRaw();
    else this.#readFrame();

    this.pgno = pgno;
    this.pageCount++;
    this.#pageCrc.compute(this.page);
    this.#crc.updatePage(this.#pageCrc);
    checksumOfCrc(pgno, this.#pageCrc, this.#checksum, 0);
    this.checksumHigh = this.#checksum[0]!;
    this.checksumLow = this.#checksum[1]!;
    this.#database?.toggle(this.checksumHigh, this.checksumLow);
    if (this.version !== 'v1') {
      const length = putIndexEntry(this.#indexEntry, 0, pgno, start, input.offset - start);
      this.#indexCrc.update(this.#indexEntry, 0, length);
      this.#indexLength += length;
    }
    return true;
  }

  /** Only after `next` returned false. */
  get trailer(): LtxTrailer {
    if (!this.#trailer) throw new KiteError('ERR_INTERNAL', 'the trailer of an LTX file before its end');
    return this.#trailer;
  }

  #readBlock(pgno: number): void {
    const input = this.#input;
    input.need(4, 'its pages');
    this.#crc.update(input.bytes, input.at, input.at + 4);
    const size = input.bytes.readUInt32BE(input.at);
    if (size > blockBound(this.page.length)) throw damaged(`page ${pgno} of an LTX file in ${size} bytes`);
    input.at += 4;
    input.need(size, 'its pages');
    const { area, at } = input;
    const pageSize = this.page.length;
    if (decompressBlock(area, at, at + size, this.#pageArea, 0, pageSize) !== pageSize)
      throw damaged(`page ${pgno} of an LTX file, which does not decompress to a page`);
    input.at += size;
    if (this.#exact && area.bytes.compare(compressPage(this.page), 0, undefined, at, at + size) !== 0)
      throw damaged(`page ${pgno} of an LTX file, which was compressed by another writer or changed`);
  }

  #readRaw(): void {
    const input = this.#input;
    input.need(this.page.length, 'its pages');
    input.bytes.copy(this.page, 0, input.at, input.at + this.page.length);
    input.at += this.page.length;
  }

  #readFrame(): void {
    const frames = this.#frames;
    if (!frames) throw damaged('an LTX file of mixed versions');
    frames.begin();
    frames.read(this.page, 0, this.page.length);
    frames.finish();
  }

  /** Everything after the pages' closing zeros. */
  #finish(): void {
    const missing = this.#order.end();
    if (missing) throw damaged(missing);
    if (this.#stream) this.#frames!.finish();
    if (this.version !== 'v1') this.#readIndex();
    const input = this.#input;
    input.need(TRAILER_BYTES, 'its trailer');
    const { at, bytes } = input;
    this.#crc.update(bytes, at, at + 8);
    const trailer = {
      postApplyChecksum: bytes.readBigUInt64BE(at),
      fileChecksum: bytes.readBigUInt64BE(at + 8),
    };
    input.at += TRAILER_BYTES;
    if (input.remaining > 0) throw damaged(`${input.remaining} bytes after the end of an LTX file`);
    const computed = CHECKSUM_FLAG | joinHalves(this.#crc.valueHigh, this.#crc.valueLow);
    if (trailer.fileChecksum !== computed) throw damaged('an LTX file whose checksum does not match');
    const broken = brokenTrailerRule(this.header, trailer);
    if (broken) throw damaged(`an LTX file with ${broken}`);
    if (this.#database && this.#database.value !== trailer.postApplyChecksum)
      throw damaged('an LTX snapshot whose post-apply checksum is not that of its pages');
    this.#trailer = trailer;
  }

  /** The index must name exactly the frames that were read. */
  #readIndex(): void {
    const input = this.#input;
    const actual = new Crc64();
    for (let rest = this.#indexLength; rest > 0;) {
      input.need(1, 'its page index');
      const count = Math.min(rest, input.buffered);
      actual.update(input.bytes, input.at, input.at + count);
      this.#crc.update(input.bytes, input.at, input.at + count);
      input.at += count;
      rest -= count;
    }
    input.need(9, 'its page index');
    const { at, bytes } = input;
    const sameBytes = actual.low === this.#indexCrc.low && actual.high === this.#indexCrc.high;
    if (!sameBytes || bytes[at] !== 0 || bytes.readBigUInt64BE(at + 1) !== BigInt(this.#indexLength + 1))
      throw damaged('an LTX file whose page index does not name its pages');
    this.#crc.update(bytes, at, at + 9);
    input.at += 9;
  }
}

/** Which version's pages follow the header; the file itself does not say (docs/ltx-format.md). */
function detectVersion(input: LtxInput, pageSize: number): LtxVersion {
  const rest = input.remaining;
  // Deletions and other files without pages differ only in their length.
  if (rest <= 31) return rest === 20 ? 'v1' : rest === 29 ? 'v2' : 'v3b';
  input.need(4 + 2 + LZ4_FRAME_HEADER_BYTES, 'its pages');
  const { at, bytes } = input;
  if (bytes.readUInt32LE(at + 4) === LZ4_FRAME_MAGIC) return 'v2';
  const flags = bytes.readUInt16BE(at + 4);
  if (flags === 0 && bytes.readUInt32LE(at + 6) === LZ4_FRAME_MAGIC) return 'v3a';
  if (flags === PAGE_FLAG_BLOCK && bytes.readUInt32BE(at + 6) <= blockBound(pageSize)) return 'v3b';
  return (rest - 20) % (4 + pageSize) === 0 ? 'v1' : 'v3b';
}
