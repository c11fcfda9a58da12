import { isPageSize } from '../ltx/format.js';

/**
 * The write-ahead log `-wal` (sqlite.org/fileformat2.html §4, wal.c): a header of 32 bytes, then frames of
 * 24 bytes and a page each. All fields are big-endian. A frame counts when its salts are the header's and
 * its checksum, which runs over all frames before it, is right.
 */

export const WAL_HEADER_BYTES = 32;
export const FRAME_HEADER_BYTES = 24;

const MAGIC = 0x377f0682; // the lowest bit set: checksums read their words big-endian
const FORMAT_VERSION = 3007000;

/** A running checksum: two unsigned 32-bit numbers. */
export interface WalChecksum {
  readonly checksum1: number;
  readonly checksum2: number;
}

/** What a writer says of a new WAL. */
export interface WalHeaderFields {
  /** Byte order of the checksums' words: little-endian wherever SQLite runs on x86 and ARM. */
  readonly bigEndianChecksum: boolean;
  /** Bytes. */
  readonly pageSize: number;
  readonly checkpointSequence: number;
  readonly salt1: number;
  readonly salt2: number;
}

/** The checksum in a header is the start of the frames' running checksum. */
export interface WalHeader extends WalHeaderFields, WalChecksum {}

export interface FrameHeader extends WalChecksum {
  readonly pgno: number;
  /** Database size in pages after the commit that this frame ends; 0 = no commit. */
  readonly commitPages: number;
  readonly salt1: number;
  readonly salt2: number;
}

/** Where frame `frame` (from 1) starts in the file. */
export const frameOffset = (frame: number, pageSize: number): number =>
  WAL_HEADER_BYTES + (frame - 1) * (FRAME_HEADER_BYTES + pageSize);

const asBuffer = (bytes: Uint8Array): Buffer =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Takes the first 32 bytes of `-wal`; undefined when SQLite's recovery would take the WAL for empty. */
export function parseWalHeader(bytes: Uint8Array): WalHeader | undefined {
  if (bytes.length < WAL_HEADER_BYTES) return undefined;
  const header = asBuffer(bytes);
  const magic = header.readUInt32BE(0);
  const pageSize = header.readUInt32BE(8);
  if (magic >>> 1 !== MAGIC >>> 1 || header.readUInt32BE(4) !== FORMAT_VERSION || !isPageSize(pageSize)) {
    return undefined;
  }
  const bigEndianChecksum = (magic & 1) === 1;
  const sum = new WalSum(bigEndianChecksum);
  sum.add(header, 0, 24);
  if (sum.checksum1 !== header.readUInt32BE(24) || sum.checksum2 !== header.readUInt32BE(28))
    return undefined;
  return {
    bigEndianChecksum,
    pageSize,
    checkpointSequence: header.readUInt32BE(12),
    salt1: header.readUInt32BE(16),
    salt2: header.readUInt32BE(20),
    checksum1: sum.checksum1,
    checksum2: sum.checksum2,
  };
}

/** The 32 bytes of a header, and the header with its checksum, which the first frame goes on from. */
export function buildWalHeader(fields: WalHeaderFields): { bytes: Buffer; header: WalHeader } {
  const bytes = Buffer.alloc(WAL_HEADER_BYTES);
  bytes.writeUInt32BE(fields.bigEndianChecksum ? MAGIC | 1 : MAGIC, 0);
  bytes.writeUInt32BE(FORMAT_VERSION, 4);
  bytes.writeUInt32BE(fields.pageSize, 8);
  bytes.writeUInt32BE(fields.checkpointSequence, 12);
  bytes.writeUInt32BE(fields.salt1, 16);
  bytes.writeUInt32BE(fields.salt2, 20);
  const sum = new WalSum(fields.bigEndianChecksum);
  sum.add(bytes, 0, 24);
  bytes.writeUInt32BE(sum.checksum1, 24);
  bytes.writeUInt32BE(sum.checksum2, 28);
  return { bytes, header: { ...fields, checksum1: sum.checksum1, checksum2: sum.checksum2 } };
}

/** Reads the 24 bytes before a frame's page. */
export function parseFrameHeader(bytes: Uint8Array, offset = 0): FrameHeader {
  const header = asBuffer(bytes);
  return {
    pgno: header.readUInt32BE(offset),
    commitPages: header.readUInt32BE(offset + 4),
    salt1: header.readUInt32BE(offset + 8),
    salt2: header.readUInt32BE(offset + 12),
    checksum1: header.readUInt32BE(offset + 16),
    checksum2: header.readUInt32BE(offset + 20),
  };
}

/**
 * Completes a frame whose page is at `offset + 24` in `into` already, and returns the checksum that the next
 * frame goes on from. `before` is the checksum of the frame before it, or of the WAL header.
 */
export function sealFrame(
  into: Buffer,
  offset: number,
  wal: WalHeaderFields,
  frame: { readonly pgno: number; readonly commitPages: number },
  before: WalChecksum,
): WalChecksum {
  into.writeUInt32BE(frame.pgno, offset);
  into.writeUInt32BE(frame.commitPages, offset + 4);
  into.writeUInt32BE(wal.salt1, offset + 8);
  into.writeUInt32BE(wal.salt2, offset + 12);
  const sum = new WalSum(wal.bigEndianChecksum, before);
  sum.add(into, offset, 8);
  sum.add(into, offset + FRAME_HEADER_BYTES, wal.pageSize);
  into.writeUInt32BE(sum.checksum1, offset + 16);
  into.writeUInt32BE(sum.checksum2, offset + 20);
  return { checksum1: sum.checksum1, checksum2: sum.checksum2 };
}

const HOST_IS_LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
const SCRATCH = new Int32Array(65536 / 4);
const SCRATCH_BYTES = new Uint8Array(SCRATCH.buffer);

/** SQLite's WAL checksum (walChecksumBytes): two sums over pairs of words, each taking in the other. */
export class WalSum implements WalChecksum {
  checksum1: number;
  checksum2: number;
  readonly #swap: boolean;

  constructor(bigEndian: boolean, from: WalChecksum = { checksum1: 0, checksum2: 0 }) {
    this.#swap = bigEndian === HOST_IS_LITTLE_ENDIAN;
    this.checksum1 = from.checksum1;
    this.checksum2 = from.checksum2;
  }

  /** Goes on over some bytes, a multiple of 8 and at most 65536. */
  add(bytes: Uint8Array, offset: number, length: number): void {
    // Signed words keep every sum a 32-bit integer, which V8 adds without floating point.
    let words: Int32Array = SCRATCH;
    const start = bytes.byteOffset + offset;
    if (start % 4 === 0) {
      words = new Int32Array(bytes.buffer, start, length / 4);
    } else {
      // A view of words must be aligned; frames are, as long as the buffer holds whole WAL pieces.
      SCRATCH_BYTES.set(bytes.subarray(offset, offset + length));
    }
    const count = length / 4;
    let a = this.checksum1 | 0;
    let b = this.checksum2 | 0;
    if (this.#swap) {
      for (let i = 0; i < count; i += 2) {
        a = (a + swapped(words[i]!) + b) | 0;
        b = (b + swapped(words[i + 1]!) + a) | 0;
      }
    } else {
      for (let i = 0; i < count; i += 2) {
        a = (a + words[i]! + b) | 0;
        b = (b + words[i + 1]! + a) | 0;
      }
    }
    this.checksum1 = a >>> 0;
    this.checksum2 = b >>> 0;
  }

  set(to: WalChecksum): void {
    this.checksum1 = to.checksum1;
    this.checksum2 = to.checksum2;
  }
}

const swapped = (word: number): number =>
  (word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24);
