import { FRAME_HEADER_BYTES, WAL_HEADER_BYTES } from '../sqlite/wal.js';
import { isPageSize } from '../ltx/format.js';

const ALL_KNOWN = (1 << FRAME_HEADER_BYTES) - 1;

/** Something in a write to `-wal` that destroys bytes capture may not have read yet. */
export interface WalDestruction {
  readonly kind: 'header' | 'overwrite';
  readonly fromBytes: number;
}

/**
 * Follows the writes to one `-wal` and knows where its last complete commit ends. Pure: it is given the
 * writes, at any split (the kernel splits at 4 KiB, a person's `dd` anywhere), and does no I/O. It does
 * not check salts and checksums: capture does, and takes the end as "look up to here again".
 */
export class WalTracker {
  /** Bytes of the header as written so far. */
  readonly #header = Buffer.alloc(WAL_HEADER_BYTES);
  #frameBytes = 0;
  /** Frame headers of which only some bytes are known, by frame number from 0. */
  readonly #partial = new Map<number, { bytes: Buffer; known: number }>(); // known: one bit per byte
  /** Frames with a commit mark whose last byte has not been written, by frame number. */
  readonly #openCommits = new Set<number>();
  /** Complete commits, as frame numbers, ascending; only the newest few are of use. */
  #commits: number[] = [];
  #generation = 0;

  /** Raised whenever frames that were complete stop to count: what was derived from them is void. */
  get generation(): number {
    return this.#generation;
  }

  /** Where the last complete commit ends; 0 when there is none. */
  get committedEnd(): number {
    const last = this.#commits.at(-1);
    return last === undefined ? 0 : this.#frameStart(last + 1);
  }

  /** Bytes; 0 while the header is not known. */
  get pageSize(): number {
    return this.#frameBytes === 0 ? 0 : this.#frameBytes - FRAME_HEADER_BYTES;
  }

  /**
   * Whether a wal-index of this WAL lacks the frame to which the byte before `endBytes` belongs. That is asked of one commit: what
   * ends last here may be a dead one, of which only the first frames were overwritten.
   */
  isMissingIn(
    index: { readonly salt1: number; readonly salt2: number; readonly mxFrame: number },
    endBytes: number,
  ): boolean {
    const same =
      this.#header.readUInt32BE(16) === index.salt1 && this.#header.readUInt32BE(20) === index.salt2;
    return same && index.mxFrame < Math.ceil((endBytes - WAL_HEADER_BYTES) / this.#frameBytes);
  }

  /** What a write would destroy, if anything; asked before it is performed. */
  destroys(offset: number, length: number, walBytes: number): WalDestruction | undefined {
    if (length === 0) return undefined;
    if (offset < WAL_HEADER_BYTES) return walBytes > 0 ? { kind: 'header', fromBytes: 0 } : undefined;
    return offset < this.committedEnd ? { kind: 'overwrite', fromBytes: offset } : undefined;
  }

  /**
   * Takes a write that was performed. Returns up to where capture should look now, or 0. That is also the
   * case when a complete commit frame's header is written again: SQLite mends checksums of frames that it wrote
   * again last, up to the commit frame (walRewriteChecksums, trap 20).
   */
  wrote(offset: number, data: Uint8Array): number {
    if (data.length === 0) return 0;
    let from = offset;
    if (offset < WAL_HEADER_BYTES) {
      this.#wroteHeader(offset, data);
      from = WAL_HEADER_BYTES;
    }
    const end = offset + data.length;
    if (this.#frameBytes === 0 || from >= end) return 0;
    // Frames that were complete change: whoever read them has to read them again.
    if (from < this.committedEnd) this.#generation += 1;
    let completed = false;
    const first = Math.floor((from - WAL_HEADER_BYTES) / this.#frameBytes);
    for (let frame = first; this.#frameStart(frame) < end; frame += 1) {
      if (this.#wroteFrame(frame, offset, data)) completed = true;
    }
    // Mended in ascending order: only the write that reaches the commit frame makes it valid. Looking earlier
    // would cost a scan of the whole transaction for each of its frames.
    const committed = this.committedEnd;
    const reachesCommit = end > committed - this.#frameBytes;
    return completed || (offset < committed && reachesCommit) ? committed : 0;
  }

  /** The file was cut (or grown with zeros) to `sizeBytes`. */
  truncated(sizeBytes: number): void {
    if (sizeBytes < WAL_HEADER_BYTES) {
      this.#header.fill(0, sizeBytes);
      this.#restart();
      return;
    }
    if (this.#frameBytes === 0) return;
    const whole = Math.floor((sizeBytes - WAL_HEADER_BYTES) / this.#frameBytes);
    this.#forgetFrom(whole);
  }

  #frameStart(frame: number): number {
    return WAL_HEADER_BYTES + frame * this.#frameBytes;
  }

  #wroteHeader(offset: number, data: Uint8Array): void {
    this.#header.set(data.subarray(0, WAL_HEADER_BYTES - offset), offset);
    this.#restart();
    const pageSize = this.#header.readUInt32BE(8);
    // 0x377f0682 or …83; what is no WAL yet (a copy whose first bytes come later) has no frames either.
    if (this.#header.readUInt32BE(0) >>> 1 === 0x377f0682 >>> 1 && isPageSize(pageSize)) {
      this.#frameBytes = FRAME_HEADER_BYTES + pageSize;
    }
  }

  #restart(): void {
    this.#generation += 1;
    this.#frameBytes = 0;
    this.#partial.clear();
    this.#openCommits.clear();
    this.#commits = [];
  }

  /** Returns whether this write completed a commit frame. */
  #wroteFrame(frame: number, offset: number, data: Uint8Array): boolean {
    const start = this.#frameStart(frame);
    const dataStart = start + FRAME_HEADER_BYTES;
    const frameEnd = start + this.#frameBytes;
    const end = offset + data.length;
    if (offset < dataStart) this.#wroteFrameHeader(frame, start, offset, data);
    const touchesLastByte = offset < frameEnd && end >= frameEnd;
    if (!touchesLastByte || !this.#openCommits.delete(frame)) return false;
    this.#addCommit(frame);
    return true;
  }

  #wroteFrameHeader(frame: number, start: number, offset: number, data: Uint8Array): void {
    const from = Math.max(start, offset);
    const to = Math.min(start + FRAME_HEADER_BYTES, offset + data.length);
    let commits: boolean;
    if (from === start && to === start + FRAME_HEADER_BYTES) {
      const at = start - offset;
      // Bytes 4-7: the database's size after a commit, 0 in other frames.
      commits = (data[at + 4]! | data[at + 5]! | data[at + 6]! | data[at + 7]!) !== 0;
      this.#partial.delete(frame);
    } else {
      const partial = this.#partial.get(frame) ?? { bytes: Buffer.alloc(FRAME_HEADER_BYTES), known: 0 };
      partial.bytes.set(data.subarray(from - offset, to - offset), from - start);
      for (let i = from - start; i < to - start; i += 1) partial.known |= 1 << i;
      if (partial.known !== ALL_KNOWN) {
        this.#partial.set(frame, partial);
        return;
      }
      commits = partial.bytes.readUInt32BE(4) !== 0;
      this.#partial.delete(frame);
    }
    const known = frame <= (this.#commits.at(-1) ?? -1) && this.#commits.includes(frame);
    if (commits && !known) this.#openCommits.add(frame);
    // A header without the mark over one that had it: the commit is taken back.
    if (!commits && known) this.#forgetFrom(frame);
    if (!commits) this.#openCommits.delete(frame);
  }

  #addCommit(frame: number): void {
    if (frame > (this.#commits.at(-1) ?? -1)) this.#commits.push(frame);
  }

  /** Nothing at or after this frame counts as committed any more. */
  #forgetFrom(frame: number): void {
    this.#generation += 1;
    while ((this.#commits.at(-1) ?? -1) >= frame) this.#commits.pop();
    for (const open of this.#openCommits) if (open >= frame) this.#openCommits.delete(open);
    for (const partial of this.#partial.keys()) if (partial >= frame) this.#partial.delete(partial);
  }
}
