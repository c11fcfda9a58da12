import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';

import {
  DATABASE_HEADER_BYTES,
  parseDatabaseHeader,
  type DatabaseHeader,
} from '../sqlite/database-header.js';

/** Reads pages of a `database` file while applications write it. */
export class DatabasePages {
  readonly #path: string;
  #fd = -1;
  #inode = 0;
  #page = Buffer.alloc(0);

  constructor(path: string) {
    this.#path = path;
  }

  /** Opens the file, or the one that has taken its place. False when there is none. */
  open(): boolean {
    const stat = statSync(this.#path, { throwIfNoEntry: false });
    if (stat && this.#fd >= 0 && stat.ino === this.#inode) return true;
    this.close();
    if (!stat) return false;
    this.#fd = openSync(this.#path, 'r');
    this.#inode = fstatSync(this.#fd).ino;
    return true;
  }

  get sizeBytes(): number {
    return this.open() ? fstatSync(this.#fd).size : 0;
  }

  /** What page 1 says; undefined when there is no SQLite header. */
  header(): DatabaseHeader | undefined {
    const bytes = Buffer.alloc(DATABASE_HEADER_BYTES);
    if (!this.open() || readSync(this.#fd, bytes, 0, bytes.length, 0) < bytes.length) return undefined;
    return parseDatabaseHeader(bytes);
  }

  /**
   * Size in pages as SQLite takes it: what page 1 says, when it is trustworthy, because the file may be
   * longer (chunked growth; a shrinking commit truncates after its commit point).
   */
  pageCount(pageSize: number): number {
    return this.header()?.pageCount ?? Math.ceil(this.sizeBytes / pageSize);
  }

  /** A page; valid until the next call. What lies past the end of the file is zero, as SQLite reads it. */
  read(pgno: number, pageSize: number): Buffer {
    if (this.#page.length !== pageSize) this.#page = Buffer.alloc(pageSize);
    const page = this.#page;
    const bytes =
      this.#fd >= 0 || this.open() ? readSync(this.#fd, page, 0, pageSize, (pgno - 1) * pageSize) : 0;
    if (bytes < pageSize) page.fill(0, bytes);
    return page;
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}
