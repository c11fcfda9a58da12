import { KiteError } from '../errors.js';
import type { LtxInput } from './input.js';
import { areaOf, blockBound, decompressBlock, SLACK_BYTES } from './lz4.js';
import { Xxh32 } from './xxh32.js';

/** Block sizes by their code in a frame's descriptor, from 4 on. */
const BLOCK_BYTES = [65536, 256 * 1024, 1024 * 1024, 4 * 1024 * 1024] as const;

/** A window of LtxInput that takes every block. */
export const LZ4_WINDOW_BYTES = blockBound(BLOCK_BYTES[3]) + 1024;

/** The first four bytes of a frame, read as a little-endian u32. */
export const LZ4_FRAME_MAGIC = 0x184d2204;

const damaged = (what: string): KiteError => new KiteError('ERR_LTX_DAMAGED', `an LZ4 frame with ${what}`);

/**
 * Reads LZ4 frames (https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md) as the older LTX versions
 * hold them, and the objects of Litestream 0.3: independent blocks, of 64 KB in the former, of 4 MB in the latter. Checks every
 * checksum that a frame has.
 */
export class Lz4FrameReader {
  readonly #input: LtxInput;
  readonly #content = new Xxh32();
  readonly #check = new Xxh32();
  #blockBytes: number = BLOCK_BYTES[0];
  #block = areaOf(Buffer.allocUnsafe(BLOCK_BYTES[0] + SLACK_BYTES));
  readonly #maxBlockBytes: number;
  /** The part of #block that was not handed out yet. */
  #at = 0;
  #end = 0;
  #blockChecksums = false;
  #contentChecksum = false;

  /** Larger blocks than `maxBlockBytes` are refused: they would not fit the input's window. */
  constructor(input: LtxInput, maxBlockBytes: number = BLOCK_BYTES[0]) {
    this.#input = input;
    this.#maxBlockBytes = maxBlockBytes;
  }

  /** Reads a frame's header. */
  begin(): void {
    const input = this.#input;
    input.need(7, 'the header of an LZ4 frame');
    const { bytes } = input;
    const start = input.at;
    if (bytes.readUInt32LE(start) !== LZ4_FRAME_MAGIC) throw damaged('another magic number');
    const flags = bytes[start + 4]!;
    const descriptor = bytes[start + 5]!;
    // Version 01, independent blocks, no content size, no dictionary; the reserved bits are zero.
    if ((flags & 0xeb) !== 0x60 || (descriptor & 0x8f) !== 0 || descriptor < 0x40)
      throw damaged(`options 0x${flags.toString(16)} 0x${descriptor.toString(16)} that no LTX writer uses`);
    this.#check.reset();
    this.#check.update(bytes, start + 4, start + 6);
    if (bytes[start + 6] !== ((this.#check.digest() >>> 8) & 0xff)) throw damaged('a wrong header checksum');
    input.at += 7;
    this.#blockChecksums = (flags & 0x10) !== 0;
    this.#contentChecksum = (flags & 0x04) !== 0;
    const blockBytes = BLOCK_BYTES[(descriptor >>> 4) - 4]!;
    if (blockBytes > this.#maxBlockBytes) throw damaged(`blocks larger than ${this.#maxBlockBytes} bytes`);
    if (blockBytes !== this.#blockBytes) {
      this.#blockBytes = blockBytes;
      this.#block = areaOf(Buffer.allocUnsafe(blockBytes + SLACK_BYTES));
    }
    this.#at = 0;
    this.#end = 0;
    this.#content.reset();
  }

  /** Fills dst[at, end) with the next bytes of the content. */
  read(dst: Buffer, at: number, end: number): void {
    let write = at;
    while (write < end) {
      if (this.#at === this.#end && !this.#nextBlock()) throw damaged('too little in it');
      const got = this.#block.bytes.copy(dst, write, this.#at, Math.min(this.#end, this.#at + end - write));
      this.#at += got;
      write += got;
    }
  }

  /** The next piece of the content, of whatever size, valid until the next call; empty at the frame's end, which is read then. */
  readPiece(): Buffer {
    if (this.#at === this.#end && !this.#nextBlock()) {
      this.#finish();
      this.#end = 0;
      this.#at = 0;
    }
    const piece = this.#block.bytes.subarray(this.#at, this.#end);
    this.#at = this.#end;
    return piece;
  }

  /** Reads a frame's end, before which all of its content must have been read. */
  finish(): void {
    if (this.#at !== this.#end || this.#nextBlock()) throw damaged('too much in it');
    this.#finish();
  }

  #finish(): void {
    if (this.#contentChecksum && this.#uint32() !== this.#content.digest())
      throw damaged('a wrong content checksum');
  }

  #uint32(): number {
    this.#input.need(4, 'an LZ4 frame');
    const value = this.#input.bytes.readUInt32LE(this.#input.at);
    this.#input.at += 4;
    return value;
  }

  /** Reads the next block; false at the end mark. */
  #nextBlock(): boolean {
    const word = this.#uint32();
    if (word === 0) return false;
    const size = word & 0x7fffffff;
    if (size > blockBound(this.#blockBytes)) throw damaged(`a block of ${size} bytes`);
    const input = this.#input;
    input.need(size, 'a block of an LZ4 frame');
    const { area, at, bytes } = input;
    // The top bit says that the block is stored as it is.
    this.#end =
      word >>> 31
        ? bytes.copy(this.#block.bytes, 0, at, at + Math.min(size, this.#blockBytes))
        : decompressBlock(area, at, at + size, this.#block, 0, this.#blockBytes);
    this.#at = 0;
    if (this.#end <= 0) throw damaged('a damaged block');
    input.at += size;
    if (this.#blockChecksums) {
      this.#check.reset();
      this.#check.update(bytes, at, at + size);
      if (this.#uint32() !== this.#check.digest()) throw damaged('a wrong block checksum');
    }
    this.#content.update(this.#block.bytes, 0, this.#end);
    return true;
  }
}
