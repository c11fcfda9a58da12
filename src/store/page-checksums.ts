import type { EpochPosition } from './types.js';

/** Bytes 18 and 19 of page 1 as the primary has them (DESIGN §6): 1 = rollback journal, 2 = WAL. */
export interface JournalVersions {
  readonly write: number;
  readonly read: number;
}

/** What the `checksums` file says beside the checksums themselves. */
export interface ChecksumsFlush {
  readonly position: EpochPosition;
  readonly pageSize: number;
  /** The primary's bytes 18 and 19, which the local page 1 need not have. */
  readonly journalVersions: JournalVersions;
}

/**
 * The checksum of each page of one database and the rolling checksum over all of them. A checksum is
 * handed in and out as two unsigned 32-bit halves: no bigint is made per page. The lock page has none.
 */
export class PageChecksums {
  /** Database size in pages. */
  get pages(): number {
    throw new Error('coming');
  }

  /** Rolling checksum of the database: what a Position holds. `1 << 63` when empty. */
  get checksum(): bigint {
    throw new Error('coming');
  }

  /** High half of a page's checksum; 0 (with low 0) = no checksum: the lock page, or past the end. */
  high(_pgno: number): number {
    throw new Error('coming');
  }

  low(_pgno: number): number {
    throw new Error('coming');
  }

  /** Whether a page's checksum is this one. */
  matches(_pgno: number, _high: number, _low: number): boolean {
    throw new Error('coming');
  }

  /** Sets a page's checksum; grows the database to `pgno` when it was smaller. */
  set(_pgno: number, _high: number, _low: number): void {
    throw new Error('coming');
  }

  /** Sets the size in pages; checksums past it are taken out. Growing adds pages without a checksum. */
  resize(_pages: number): void {
    throw new Error('coming');
  }

  clear(): void {
    throw new Error('coming');
  }

  /** Writes the `checksums` file durably and atomically. Throws ERR_INTERNAL when `flush.position.checksum` is not `checksum`. */
  save(_path: string, _flush: ChecksumsFlush): void {
    throw new Error('coming');
  }

  /** Reads a `checksums` file; undefined when there is none or it is damaged (then rebuild). */
  static load(_path: string): { checksums: PageChecksums; flush: ChecksumsFlush } | undefined {
    throw new Error('coming');
  }

  /**
   * Computes all checksums from a database file, whose WAL must be checkpointed. Yields to the event
   * loop between pieces. `journalVersions` takes the place of bytes 18 and 19 of page 1.
   */
  static rebuild(
    _databasePath: string,
    _options: {
      pageSize: number;
      pages: number;
      journalVersions?: JournalVersions;
      progress?: (pagesDone: number, pages: number) => void;
    },
  ): Promise<PageChecksums> {
    throw new Error('coming');
  }

  /** Computes the checksums of some pages again, from the same kind of file. */
  rebuildPages(
    _databasePath: string,
    _pgnos: Iterable<number>,
    _options: { pageSize: number; journalVersions?: JournalVersions },
  ): void {
    throw new Error('coming');
  }
}
