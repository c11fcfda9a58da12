import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';

import { WalScanner } from '../sqlite/wal-scanner.js';
import {
  FRAME_HEADER_BYTES,
  frameOffset,
  parseWalHeader,
  WAL_HEADER_BYTES,
  type WalHeader,
} from '../sqlite/wal.js';
import type { WalPoint } from '../sqlite/wal-scanner.js';

const WINDOW_BYTES = 1 << 20;

/** One buffer for all readers of the thread: a reader that finds another's bytes in it reads again. */
const shared: { readonly bytes: Buffer; owner: WalReader | undefined } = {
  bytes: Buffer.from(new ArrayBuffer(WINDOW_BYTES)), // of its own, so that frames are aligned
  owner: undefined,
};

/** A place between two frames, as the header of an LTX file says it. */
export interface WalPlace {
  readonly salt1: number;
  readonly salt2: number;
  /** Where the next frame begins, bytes. */
  readonly offset: number;
}

/** Commits that were found beyond the place that is accepted so far. */
export interface ScannedCommits {
  /** How many. */
  readonly commits: number;
  /** Newest frame of each page: pgno → offset of the frame. */
  readonly frames: Map<number, number>;
  /** Pages of the last commit. */
  readonly lastPgnos: readonly number[];
  /** Smallest size of the database after any of them, pages. */
  readonly leastPages: number;
  /** Size of the database after the last, pages. */
  readonly commitPages: number;
  readonly end: WalPoint;
}

/**
 * Reads committed transactions from a `database-wal`, as SQLite's recovery accepts them (WalScanner). What is
 * accepted never changes until the WAL is restarted, truncated, unlinked or overwritten, and the mount asks
 * before each of those; what comes after may be rewritten at any time and is read again by each scan.
 */
export class WalReader {
  readonly #path: string;
  #fd = -1;
  #inode = 0;
  /** The header may have changed since it was read. */
  #headerSuspect = true;
  #header: WalHeader | undefined;
  /** End of what is accepted. */
  #point: WalPoint = { frames: 0, checksum1: 0, checksum2: 0 };
  readonly #map = new Map<number, number>();
  #lastPgnos: readonly number[] = [];
  #commitPages = 0;

  #windowStart = 0;
  #windowBytes = 0;
  #page = Buffer.alloc(0);

  constructor(path: string) {
    this.#path = path;
  }

  /** Page size that the header says; 0 when there is no WAL. */
  get pageSize(): number {
    return this.#header?.pageSize ?? 0;
  }

  /** End of what is accepted; undefined when there is no WAL. */
  get place(): WalPlace | undefined {
    const header = this.#header;
    if (!header) return undefined;
    return { salt1: header.salt1, salt2: header.salt2, offset: this.offsetAfter(this.#point) };
  }

  /** Newest accepted frame of each page: pgno → offset. */
  get map(): ReadonlyMap<number, number> {
    return this.#map;
  }

  /** Pages of the last accepted commit. */
  get lastPgnos(): readonly number[] {
    return this.#lastPgnos;
  }

  /** Size of the database after the last accepted commit, pages; 0 when this WAL has none. */
  get commitPages(): number {
    return this.#commitPages;
  }

  /** Bytes of the file now; 0 when there is none. */
  sizeBytes(): number {
    return statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
  }

  /**
   * Looks for commits between the accepted place and `endBytes`; undefined when there is none. Returns
   * after about 1 MiB in which a commit ended: the rest is for the next scan. Yields between pieces.
   */
  *scan(endBytes: number): Generator<void, ScannedCommits | undefined> {
    // SQLite writes the header again when the first transaction under it is rolled back.
    if (this.#headerSuspect || this.#point.frames === 0) this.#readHeader();
    if (!this.#header) return undefined;
    const scanner = new WalScanner(this.#header, this.#point);
    const frames = new Map<number, number>();
    // Pages of the transaction under way; its frames follow each other from `runningStart`.
    let running: number[] = [];
    let runningStart = scanner.nextOffset;
    let lastPgnos: number[] = [];
    const step = FRAME_HEADER_BYTES + this.pageSize;
    let leastPages = Infinity;
    let commits = 0;

    while (!scanner.ended) {
      if (scanner.nextOffset > this.offsetAfter(this.#point)) yield;
      const start = scanner.nextOffset;
      this.#fillWindow(start, Math.min(WINDOW_BYTES, endBytes - start));
      const taken = scanner.accept(shared.bytes.subarray(0, this.#windowBytes), (frame) => {
        running.push(frame.pgno);
        if (frame.commitPages === 0) return;
        for (let i = 0; i < running.length; i++) frames.set(running[i] as number, runningStart + i * step);
        runningStart += running.length * step;
        leastPages = Math.min(leastPages, frame.commitPages);
        commits++;
        lastPgnos = running;
        running = [];
      });
      if (commits > 0 || taken === 0) break;
    }
    if (commits === 0) return undefined;
    const { commitPages, committed: end } = scanner;
    return { commits, frames, lastPgnos, leastPages, commitPages, end };
  }

  /** Takes over what `scan` found. */
  accept(found: ScannedCommits): void {
    for (const [pgno, offset] of found.frames) this.#map.set(pgno, offset);
    const shrunk = found.leastPages < this.#commitPages || found.leastPages < found.commitPages;
    this.#point = found.end;
    this.#commitPages = found.commitPages;
    this.#lastPgnos = found.lastPgnos;
    for (const pgno of shrunk ? this.#map.keys() : found.frames.keys()) {
      if (pgno > found.commitPages) this.#map.delete(pgno);
    }
  }

  /**
   * Goes back to the last commit that ends at or before `offset`, as if nothing after it had been
   * accepted: a dead writer's commit is about to be overwritten. Returns the pages that lost a frame.
   */
  rewind(offset: number): Set<number> {
    const lost = new Set<number>();
    const end = this.offsetAfter(this.#point);
    this.#startOver();
    for (;;) {
      const kept = finish(this.scan(offset));
      if (!kept) break;
      this.accept(kept);
    }
    if (!this.#header) return lost;
    const pgno = Buffer.alloc(4);
    const step = FRAME_HEADER_BYTES + this.pageSize;
    for (let at = this.offsetAfter(this.#point); at < end; at += step) {
      if (readSync(this.#fd, pgno, 0, 4, at) === 4) lost.add(pgno.readUInt32BE(0));
    }
    return lost;
  }

  /**
   * The WAL is about to be restarted, truncated to nothing or unlinked, and all its pages are in `database`:
   * forgets its frames. The place stays until another header is seen, because the change may never happen.
   */
  forgetFrames(): void {
    this.#map.clear();
    this.#lastPgnos = [];
    this.#commitPages = 0;
    this.#headerSuspect = true;
  }

  /** Page of the frame at `offset`; valid until the next call. undefined when the file is too short. */
  readFrame(offset: number): Buffer | undefined {
    const at = offset + FRAME_HEADER_BYTES;
    const { pageSize } = this;
    const windowEnd = this.#windowStart + this.#windowBytes;
    if (shared.owner === this && at >= this.#windowStart && at + pageSize <= windowEnd) {
      return shared.bytes.subarray(at - this.#windowStart, at - this.#windowStart + pageSize);
    }
    if (this.#page.length !== pageSize) this.#page = Buffer.alloc(pageSize);
    if (this.#fd < 0 || readSync(this.#fd, this.#page, 0, pageSize, at) < pageSize) return undefined;
    return this.#page;
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
    this.#headerSuspect = true;
    if (shared.owner === this) shared.owner = undefined;
  }

  /** Where in the file the frame after a point begins. */
  offsetAfter(point: WalPoint): number {
    return frameOffset(point.frames + 1, this.pageSize);
  }

  #fillWindow(offset: number, bytes: number): void {
    shared.owner = this;
    this.#windowStart = offset;
    this.#windowBytes = bytes > 0 ? readSync(this.#fd, shared.bytes, 0, bytes, offset) : 0;
  }

  /** Reads the header; another one than before starts another generation of frames. */
  #readHeader(): void {
    const stat = statSync(this.#path, { throwIfNoEntry: false });
    if (!stat || stat.size < WAL_HEADER_BYTES) return this.#forgetAll();
    if (this.#fd < 0 || stat.ino !== this.#inode) {
      if (this.#fd >= 0) closeSync(this.#fd);
      this.#fd = openSync(this.#path, 'r');
      this.#inode = fstatSync(this.#fd).ino;
    }
    this.#fillWindow(0, WAL_HEADER_BYTES);
    const header = parseWalHeader(shared.bytes.subarray(0, this.#windowBytes));
    this.#windowBytes = 0;
    if (!header) return this.#forgetAll();
    // The same one again: the change that was announced is still to come, or never does. Look again next time.
    const before = this.#header;
    if (before && before.salt1 === header.salt1 && before.salt2 === header.salt2) return;
    this.#headerSuspect = false;
    this.#header = header;
    this.#startOver();
  }

  #startOver(): void {
    this.#map.clear();
    this.#lastPgnos = [];
    this.#commitPages = 0;
    const { checksum1 = 0, checksum2 = 0 } = this.#header ?? {};
    this.#point = { frames: 0, checksum1, checksum2 };
  }

  /** There is no WAL that SQLite would read. It is looked for again at each scan. */
  #forgetAll(): void {
    this.close();
    this.#header = undefined;
    this.#startOver();
  }
}

/** Runs a piecewise job to its end. */
export function finish<T>(job: Generator<void, T>): T {
  for (;;) {
    const step = job.next();
    if (step.done === true) return step.value;
  }
}
