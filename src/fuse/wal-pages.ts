import fs from 'node:fs';

import { FRAME_HEADER_BYTES, parseFrameHeader, WAL_HEADER_BYTES } from '../sqlite/wal.js';
import type { WalTracker } from './wal-tracker.js';

/**
 * Where each page's committed frames are in a replica's `-wal`: by them the mount tells a checkpoint,
 * which any connection may make, from a write that would change the replica (DESIGN §6).
 */
export class WalPages {
  readonly #tracker: WalTracker;
  readonly #path: string;
  /** pgno → where its pages begin, oldest first. */
  readonly #frames = new Map<number, number[]>();
  #generation = -1;
  #scanned = WAL_HEADER_BYTES;
  #commitPages = 0;

  constructor(tracker: WalTracker, walPath: string) {
    this.#tracker = tracker;
    this.#path = walPath;
  }

  /**
   * Whether these bytes are what the WAL holds for this place of the database, in any of its frames: a checkpoint
   * copies the frames that were there when it began, and the applier may have appended newer ones since.
   */
  holds(offset: number, data: Buffer): boolean {
    const { pageSize } = this.#tracker;
    if (pageSize === 0 || data.length === 0) return false;
    return this.#withWal((fd) => {
      for (let at = 0; at < data.length;) {
        const inPage = (offset + at) % pageSize;
        const length = Math.min(pageSize - inPage, data.length - at);
        const frames = this.#frames.get(Math.floor((offset + at) / pageSize) + 1) ?? [];
        const piece = data.subarray(at, at + length);
        if (frames.findLast((frame) => readAt(fd, frame + inPage, length).equals(piece)) === undefined) {
          return false;
        }
        at += length;
      }
      return true;
    });
  }

  /** Database size after the last commit in the WAL, bytes. */
  get databaseBytes(): number {
    return this.#withWal(() => true) ? this.#commitPages * this.#tracker.pageSize : -1;
  }

  /** Whether all that the WAL holds is in the database too, so that the WAL may go. */
  backfilledInto(databasePath: string): boolean {
    if (this.#tracker.committedEnd === 0) return true;
    const { pageSize } = this.#tracker;
    return this.#withWal((fd) => {
      const database = fs.openSync(databasePath, 'r');
      try {
        for (const [pgno, frames] of this.#frames) {
          if (pgno > this.#commitPages) continue;
          if (
            !readAt(fd, frames.at(-1) ?? 0, pageSize).equals(
              readAt(database, (pgno - 1) * pageSize, pageSize),
            )
          ) {
            return false;
          }
        }
        return true;
      } finally {
        fs.closeSync(database);
      }
    });
  }

  #withWal(use: (fd: number) => boolean): boolean {
    const fd = fs.openSync(this.#path, 'r');
    try {
      this.#scan(fd);
      return use(fd);
    } finally {
      fs.closeSync(fd);
    }
  }

  #scan(fd: number): void {
    if (this.#generation !== this.#tracker.generation) {
      this.#generation = this.#tracker.generation;
      this.#frames.clear();
      this.#scanned = WAL_HEADER_BYTES;
      this.#commitPages = 0;
    }
    const step = FRAME_HEADER_BYTES + this.#tracker.pageSize;
    for (; this.#scanned < this.#tracker.committedEnd; this.#scanned += step) {
      const { pgno, commitPages } = parseFrameHeader(readAt(fd, this.#scanned, FRAME_HEADER_BYTES));
      const frames = this.#frames.get(pgno);
      if (frames) frames.push(this.#scanned + FRAME_HEADER_BYTES);
      else this.#frames.set(pgno, [this.#scanned + FRAME_HEADER_BYTES]);
      if (commitPages > 0) this.#commitPages = commitPages;
    }
  }
}

function readAt(fd: number, offset: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  const read = fs.readSync(fd, bytes, 0, length, offset);
  return bytes.subarray(0, read);
}
