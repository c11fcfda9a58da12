import fs from 'node:fs';

import { FRAME_HEADER_BYTES, parseFrameHeader, WAL_HEADER_BYTES } from '../sqlite/wal.js';
import type { WalTracker } from './wal-tracker.js';

/**
 * Where each page's newest committed frame is in a replica's `-wal`: by it the mount tells a checkpoint,
 * which any connection may make, from a write that would change the replica (DESIGN §6).
 */
export class WalPages {
  readonly #tracker: WalTracker;
  readonly #path: string;
  readonly #offsets = new Map<number, number>();
  #generation = -1;
  #scanned = WAL_HEADER_BYTES;
  #commitPages = 0;

  constructor(tracker: WalTracker, walPath: string) {
    this.#tracker = tracker;
    this.#path = walPath;
  }

  /** Whether these bytes are what the WAL holds for this place of the database. */
  holds(offset: number, data: Buffer): boolean {
    const { pageSize } = this.#tracker;
    if (pageSize === 0 || data.length === 0) return false;
    return this.#withWal((fd) => {
      for (let at = 0; at < data.length;) {
        const inPage = (offset + at) % pageSize;
        const length = Math.min(pageSize - inPage, data.length - at);
        const frame = this.#offsets.get(Math.floor((offset + at) / pageSize) + 1);
        if (frame === undefined) return false;
        const stored = readAt(fd, frame + inPage, length);
        if (!stored.equals(data.subarray(at, at + length))) return false;
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
        for (const [pgno, frame] of this.#offsets) {
          if (pgno > this.#commitPages) continue;
          if (!readAt(fd, frame, pageSize).equals(readAt(database, (pgno - 1) * pageSize, pageSize))) {
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
      this.#offsets.clear();
      this.#scanned = WAL_HEADER_BYTES;
      this.#commitPages = 0;
    }
    const step = FRAME_HEADER_BYTES + this.#tracker.pageSize;
    for (; this.#scanned < this.#tracker.committedEnd; this.#scanned += step) {
      const { pgno, commitPages } = parseFrameHeader(readAt(fd, this.#scanned, FRAME_HEADER_BYTES));
      this.#offsets.set(pgno, this.#scanned + FRAME_HEADER_BYTES);
      if (commitPages > 0) this.#commitPages = commitPages;
    }
  }
}

function readAt(fd: number, offset: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  const read = fs.readSync(fd, bytes, 0, length, offset);
  return bytes.subarray(0, read);
}
