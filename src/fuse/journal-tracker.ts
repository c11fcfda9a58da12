import { JOURNAL_HEADER_BYTES } from '../sqlite/journal.js';

const MAGIC = Buffer.from('d9d505f920a163d7', 'hex');

/**
 * Follows one rollback journal and the pages written to its database while it is live. Pure: it is
 * given the writes at any split. A journal is live from the moment its header has SQLite's magic (SQLite
 * writes no page of the database before that) until the file is unlinked, cut off or its header zeroed.
 */
export class JournalTracker {
  readonly #header = Buffer.alloc(JOURNAL_HEADER_BYTES);
  readonly #dirty = new Set<number>();
  #oldSizeBytes = 0;
  #durable = false;

  get live(): boolean {
    return this.#header.compare(MAGIC, 0, MAGIC.length, 0, MAGIC.length) === 0;
  }

  /** Size of the database when the journal became live, bytes. */
  get oldSizeBytes(): number {
    return this.#oldSizeBytes;
  }

  /** Pages written since, ascending. */
  get dirtyPages(): number[] {
    return [...this.#dirty].toSorted((a, b) => a - b);
  }

  /** Whether the application synced its database in this transaction. */
  get durable(): boolean {
    return this.#durable;
  }

  /** Whether this write makes a live journal a dead one: the commit of PERSIST and EXCLUSIVE mode. */
  endsBy(offset: number, data: Uint8Array): boolean {
    if (!this.live || offset >= MAGIC.length) return false;
    const part = data.subarray(0, MAGIC.length - offset);
    return MAGIC.compare(part, 0, part.length, offset, offset + part.length) !== 0;
  }

  /** Takes a write to the journal that was performed; `databaseBytes` is asked for the size when it becomes live. */
  wrote(offset: number, data: Uint8Array, databaseBytes: () => number): void {
    if (offset >= JOURNAL_HEADER_BYTES) return;
    const before = this.live;
    this.#header.set(data.subarray(0, JOURNAL_HEADER_BYTES - offset), offset);
    if (this.live === before) return;
    this.#begin(before ? 0 : databaseBytes());
  }

  /** The journal was unlinked or cut to `sizeBytes`. */
  truncated(sizeBytes: number): void {
    if (sizeBytes >= JOURNAL_HEADER_BYTES) return;
    const before = this.live;
    this.#header.fill(0, sizeBytes);
    if (before && !this.live) this.#begin(0);
  }

  /** A write to the database while the journal is live. */
  wroteDatabase(offset: number, length: number): void {
    const pageSize = this.pageSize;
    const last = Math.floor((offset + length - 1) / pageSize);
    for (let page = Math.floor(offset / pageSize); page <= last; page += 1) this.#dirty.add(page + 1);
  }

  syncedDatabase(): void {
    this.#durable = true;
  }

  /** Bytes; from the header. */
  get pageSize(): number {
    return this.#header.readUInt32BE(24) || 512;
  }

  #begin(databaseBytes: number): void {
    // A hot journal (copied in, or left by a dead writer) says how large the database was before it.
    const stated = this.#header.readUInt32BE(16) * this.pageSize;
    this.#oldSizeBytes = Math.min(databaseBytes, stated);
    this.#dirty.clear();
    this.#durable = false;
  }
}
