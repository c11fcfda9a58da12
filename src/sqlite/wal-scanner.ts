import {
  FRAME_HEADER_BYTES,
  frameOffset,
  parseFrameHeader,
  WalSum,
  type FrameHeader,
  type WalChecksum,
  type WalHeader,
} from './wal.js';

/** A point between two frames of a WAL, from which a scan can go on. */
export interface WalPoint extends WalChecksum {
  /** Frames before it. */
  readonly frames: number;
}

/** A frame that was accepted. */
export interface AcceptedFrame {
  /** Number of the frame, from 1. */
  readonly frame: number;
  readonly pgno: number;
  /** Database size in pages when the frame ends a transaction, else 0. */
  readonly commitPages: number;
  /** Where its page starts in the buffer that was given to `accept`. */
  readonly dataOffset: number;
}

/**
 * Reads a WAL as SQLite's recovery does (walIndexRecover, walDecodeFrame): a frame is accepted when its
 * salts are the header's, its page number is not 0 and the checksum over everything so far is right; the
 * first that is not ends the WAL; and what counts is what comes up to the last commit frame. It does no
 * I/O: bytes are handed in, piece by piece, from `nextOffset` on.
 */
export class WalScanner {
  readonly header: WalHeader;
  readonly #sum: WalSum;
  #frames: number;
  #committed: WalPoint;
  #commitPages = 0;
  #ended = false;

  /** Starts before the first frame, or at a point that was a commit (or the start) of an earlier scan. */
  constructor(header: WalHeader, from: WalPoint = { ...checksumOf(header), frames: 0 }) {
    this.header = header;
    this.#sum = new WalSum(header.bigEndianChecksum, from);
    this.#frames = from.frames;
    this.#committed = { ...checksumOf(from), frames: from.frames };
  }

  /**
   * The point after frame `frames`, taken from that frame's own header: the checksum in it is the running
   * one. Undefined when the frame is not one of this WAL. It is not verified: the frames before it were once.
   */
  static pointAfter(header: WalHeader, frames: number, frameHeader: Uint8Array): WalPoint | undefined {
    const frame = parseFrameHeader(frameHeader);
    if (frame.salt1 !== header.salt1 || frame.salt2 !== header.salt2) return undefined;
    return { frames, checksum1: frame.checksum1, checksum2: frame.checksum2 };
  }

  /** Where in the file the bytes for the next `accept` start. */
  get nextOffset(): number {
    return frameOffset(this.#frames + 1, this.header.pageSize);
  }

  /** Frames accepted so far, whether committed or not. */
  get frames(): number {
    return this.#frames;
  }

  /** The end of the last commit. */
  get committed(): WalPoint {
    return this.#committed;
  }

  /** Database size in pages after the last commit; 0 when this scan has seen none. */
  get commitPages(): number {
    return this.#commitPages;
  }

  /** Whether a frame was met that is not valid (yet: its writer may be about to complete it). */
  get ended(): boolean {
    return this.#ended;
  }

  /**
   * Accepts whole frames from the start of `bytes` until one is not valid or whole; `each` is called for
   * every one. Returns how many bytes were taken.
   */
  accept(bytes: Uint8Array, each: (frame: AcceptedFrame) => void): number {
    const { pageSize } = this.header;
    const step = FRAME_HEADER_BYTES + pageSize;
    let offset = 0;
    while (!this.#ended && offset + step <= bytes.length) {
      const head = parseFrameHeader(bytes, offset);
      if (!this.#isValid(head, bytes, offset)) {
        this.#ended = true;
        break;
      }
      this.#frames += 1;
      if (head.commitPages > 0) {
        this.#committed = { frames: this.#frames, checksum1: head.checksum1, checksum2: head.checksum2 };
        this.#commitPages = head.commitPages;
      }
      each({
        frame: this.#frames,
        pgno: head.pgno,
        commitPages: head.commitPages,
        dataOffset: offset + FRAME_HEADER_BYTES,
      });
      offset += step;
    }
    return offset;
  }

  /**
   * Goes back to the last commit. Frames after it were of a running transaction: SQLite may write them
   * again, and mends their checksums only at the end (walRewriteChecksums).
   */
  rewind(): void {
    this.#sum.set(this.#committed);
    this.#frames = this.#committed.frames;
    this.#ended = false;
  }

  #isValid(head: FrameHeader, bytes: Uint8Array, offset: number): boolean {
    if (head.pgno === 0 || head.salt1 !== this.header.salt1 || head.salt2 !== this.header.salt2) return false;
    const before = checksumOf(this.#sum);
    this.#sum.add(bytes, offset, 8);
    this.#sum.add(bytes, offset + FRAME_HEADER_BYTES, this.header.pageSize);
    if (this.#sum.checksum1 === head.checksum1 && this.#sum.checksum2 === head.checksum2) return true;
    this.#sum.set(before);
    return false;
  }
}

const checksumOf = (from: WalChecksum): WalChecksum => ({
  checksum1: from.checksum1,
  checksum2: from.checksum2,
});
