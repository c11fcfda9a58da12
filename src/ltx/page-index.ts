import { fstatSync, readSync } from 'node:fs';
import { KiteError } from '../errors.js';
import { PAGE_FLAG_BLOCK, PAGE_HEADER_BYTES, TRAILER_BYTES } from './format.js';
import { LtxInput } from './input.js';
import { Lz4FrameReader } from './lz4-frame.js';
import { areaOf, decompressBlock, SLACK_BYTES } from './lz4.js';

/**
 * The index of pages at the end of a file: for each page its number, the offset of its frame and the frame's
 * size, as unsigned LEB128 varints; then a zero; then the length of all that as a u64.
 */

/** The most that an entry takes: 5 bytes of page number, 8 of an offset below 2^53, 3 of a size. */
export const INDEX_ENTRY_BYTES = 16;
const LENGTH_BYTES = 8;

function putVarint(into: Uint8Array, at: number, value: number): number {
  let rest = value;
  // Beyond 32 bits JavaScript's shifts no longer work.
  for (; rest > 0x7fffffff; rest = Math.floor(rest / 128)) into[at++] = (rest % 128) | 0x80;
  for (; rest > 0x7f; rest >>>= 7) into[at++] = (rest & 0x7f) | 0x80;
  into[at++] = rest;
  return at;
}

/** Writes an entry at `at`; returns where it ends. */
export function putIndexEntry(
  into: Uint8Array,
  at: number,
  pgno: number,
  offset: number,
  sizeBytes: number,
): number {
  return putVarint(into, putVarint(into, putVarint(into, at, pgno), offset), sizeBytes);
}

/** Where a page's frame is in a file. */
export interface PageLocation {
  readonly offset: number;
  readonly sizeBytes: number;
}

const damaged = (what: string): KiteError => new KiteError('ERR_LTX_DAMAGED', what);

/** Reads `length` bytes at `offset` of a file. */
type ReadAt = (offset: number, length: number) => Buffer;

/**
 * The index at the end of a v2, v3a or v3b file, for reading single pages. Nothing is verified but the
 * index's own shape: run the file through LtxDecoder before you trust it.
 */
export class LtxPageIndex {
  readonly #locations: ReadonlyMap<number, PageLocation>;

  private constructor(sizeBytes: number, readAt: ReadAt) {
    const tailOffset = sizeBytes - TRAILER_BYTES - LENGTH_BYTES;
    if (tailOffset < 0) throw damaged('an LTX file too short for a page index');
    const length = Number(readAt(tailOffset, LENGTH_BYTES).readBigUInt64BE(0));
    if (length < 1 || length > tailOffset)
      throw damaged('an LTX file without a page index, or a damaged one');
    this.#locations = parseIndex(readAt(tailOffset - length, length), tailOffset - length);
  }

  static fromBuffer(file: Uint8Array): LtxPageIndex {
    const bytes = Buffer.from(file.buffer, file.byteOffset, file.length);
    return new LtxPageIndex(file.length, (offset, length) => bytes.subarray(offset, offset + length));
  }

  static fromFile(fd: number): LtxPageIndex {
    return new LtxPageIndex(fstatSync(fd).size, (offset, length) => {
      const bytes = Buffer.alloc(length);
      for (let got = 0; got < length;) {
        const count = readSync(fd, bytes, got, length - got, offset + got);
        if (count === 0) throw damaged('an LTX file that was cut off while it was read');
        got += count;
      }
      return bytes;
    });
  }

  get pageCount(): number {
    return this.#locations.size;
  }

  /** Where the frame of a page is, or undefined when the file has not got that page. */
  find(pgno: number): PageLocation | undefined {
    return this.#locations.get(pgno);
  }

  /** The page numbers, ascending. */
  pgnos(): Iterable<number> {
    return this.#locations.keys();
  }
}

/** Takes the index with its closing zero; frames must end at `end` or before. */
function parseIndex(bytes: Buffer, end: number): Map<number, PageLocation> {
  const locations = new Map<number, PageLocation>();
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let weight = 1; weight < 2 ** 49; weight *= 128) {
      const byte = bytes[at++];
      if (byte === undefined) break;
      value += (byte & 0x7f) * weight;
      if (byte < 0x80) return value;
    }
    throw damaged('a damaged page index in an LTX file');
  };
  let last = 0;
  for (let pgno = varint(); pgno !== 0; pgno = varint()) {
    const location = { offset: varint(), sizeBytes: varint() };
    if (pgno <= last || location.offset + location.sizeBytes > end)
      throw damaged('a damaged page index in an LTX file');
    locations.set(pgno, location);
    last = pgno;
  }
  if (at !== bytes.length) throw damaged('a damaged page index in an LTX file');
  return locations;
}

/**
 * Takes the bytes of one frame (v3a or v3b), as the index locates it; returns the page. Throws ERR_LTX_DAMAGED when
 * the frame is another page's or does not hold exactly one page.
 */
export function decodePageFrame(frame: Buffer, pgno: number, pageSize: number): Buffer {
  const start = PAGE_HEADER_BYTES + 4;
  if (frame.length <= start || frame.readUInt32BE(0) !== pgno)
    throw damaged(`not the frame of page ${pgno} where an LTX file's index has it`);
  const area = areaOf(Buffer.alloc(pageSize + SLACK_BYTES));
  const page = area.bytes.subarray(0, pageSize);
  const flags = frame.readUInt16BE(4);
  if (flags === PAGE_FLAG_BLOCK) {
    const fits = frame.readUInt32BE(PAGE_HEADER_BYTES) === frame.length - start;
    if (fits && decompressBlock(areaOf(frame), start, frame.length, area, 0, pageSize) === pageSize)
      return page;
  } else if (flags === 0) {
    const input = LtxInput.ofBuffer(frame.subarray(PAGE_HEADER_BYTES));
    const reader = new Lz4FrameReader(input);
    reader.begin();
    reader.read(page, 0, pageSize);
    reader.finish();
    if (input.remaining === 0) return page;
  }
  throw damaged(`a damaged frame of page ${pgno} in an LTX file`);
}
