import { fstatSync, readSync } from 'node:fs';
import { KiteError } from '../errors.js';
import { areaOf, type ByteArea } from './lz4.js';

/** Bytes read from a file at a time; the largest thing needed whole, a page's frame, is 66 KB. */
const WINDOW_BYTES = 256 * 1024;

/**
 * Reads up to `length` bytes at `offset` of a file into `into[at]`; returns how many, 0 at its end. Offsets come in order, without gaps.
 */
export type LtxReadAt = (into: Buffer, at: number, length: number, offset: number) => number;

/**
 * The bytes of a file from front to end: a buffer that holds all of it, or a window that moves over what a
 * function reads. `bytes[at]` is the next byte; `need` makes sure that enough follow.
 */
export class LtxInput {
  readonly sizeBytes: number;
  readonly area: ByteArea;
  at = 0;
  #end: number;
  /** Offset in the file of bytes[0]. */
  #base = 0;
  readonly #readAt: LtxReadAt | undefined;

  private constructor(bytes: Buffer, filled: number, sizeBytes: number, readAt?: LtxReadAt) {
    this.area = areaOf(bytes);
    this.#end = filled;
    this.sizeBytes = sizeBytes;
    this.#readAt = readAt;
  }

  static ofBuffer(bytes: Uint8Array): LtxInput {
    const { buffer, byteOffset, length } = bytes;
    return new LtxInput(Buffer.from(buffer, byteOffset, length), length, length);
  }

  static ofFile(fd: number): LtxInput {
    return LtxInput.ofReader(fstatSync(fd).size, (into, at, length, offset) =>
      readSync(fd, into, at, length, offset),
    );
  }

  /** `windowBytes` is the most that `need` can be asked for. */
  static ofReader(sizeBytes: number, readAt: LtxReadAt, windowBytes = WINDOW_BYTES): LtxInput {
    return new LtxInput(Buffer.allocUnsafe(Math.min(sizeBytes, windowBytes)), 0, sizeBytes, readAt);
  }

  get bytes(): Buffer {
    return this.area.bytes;
  }

  /** Offset in the file of the next byte. */
  get offset(): number {
    return this.#base + this.at;
  }

  get remaining(): number {
    return this.sizeBytes - this.offset;
  }

  /** Throws ERR_LTX_DAMAGED when fewer than `count` bytes follow; count is at most the window. */
  need(count: number, what: string): void {
    if (this.#end - this.at >= count) return;
    if (count > this.remaining || this.#readAt === undefined) throw this.#cutOff(what);
    this.bytes.copyWithin(0, this.at, this.#end);
    this.#base += this.at;
    this.#end -= this.at;
    this.at = 0;
    while (this.#end < count) {
      const room = this.bytes.length - this.#end;
      const got = this.#readAt(this.bytes, this.#end, room, this.#base + this.#end);
      if (got === 0) throw this.#cutOff(what);
      this.#end += got;
    }
  }

  /** How many bytes are there without a read. */
  get buffered(): number {
    return this.#end - this.at;
  }

  #cutOff(what: string): KiteError {
    return new KiteError(
      'ERR_LTX_DAMAGED',
      `an LTX file of ${this.sizeBytes} bytes that ends within ${what}`,
    );
  }
}
