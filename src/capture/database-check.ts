import type { CheckProgress } from '../store/background-check.js';
import type { DatabaseCapture, PageDifference } from './database-capture.js';

/** A page that is not what it should be must stay so in all of these looks, so long after one another. */
const LOOKS = 4;
const LOOK_INTERVAL_MS = 500;
const PROGRESS_INTERVAL_MS = 1000;

export interface DatabaseCheckOptions {
  readonly database: DatabaseCapture;
  /** Captures everything that the mount has let pass; false when that cannot be done now. */
  readonly settle: () => boolean;
  readonly onProgress: (progress: CheckProgress) => void;
  /** These pages are not as they were committed. The check of this database has ended. */
  readonly onDamaged: (pgnos: readonly number[]) => void;
  /** Monotonic. */
  readonly nowMs: () => number;
}

interface Suspect extends PageDifference {
  looks: number;
}

/**
 * The full check of one database of a primary, behind its start: each page, as readers see it, against the checksum
 * with which it was committed. Applications write meanwhile, so a difference is a suspicion only. A page may be torn at
 * this moment, newer than what is captured (a checkpoint has copied a commit that capture reads next), part of a rollback-mode
 * transaction that runs, or of a file that the mount is about to rename. All of these pass: once everything is
 * captured and no journal is live the page is as it was committed, or it changes again. Damaged is what stays the same wrong
 * page, against the same checksum, look after look.
 */
export class DatabaseCheck {
  readonly #options: DatabaseCheckOptions;
  readonly #suspects = new Map<number, Suspect>();
  #nextPgno = 1;
  /** What is added later is captured as it comes. */
  readonly #pages: number;
  #lookAtMs = 0;
  #progressAtMs = 0;

  constructor(options: DatabaseCheckOptions) {
    this.#options = options;
    this.#pages = options.database.commitPages;
  }

  /** Reads about `maxBytes`; returns whether there is more to do. */
  step(maxBytes: number): boolean {
    const { database, nowMs, onProgress } = this.#options;
    const { pageSize } = database;
    const pages = Math.min(this.#pages, database.commitPages);
    if (this.#nextPgno <= pages) {
      const count = Math.max(1, Math.floor(maxBytes / pageSize));
      const last = Math.min(pages, this.#nextPgno + count - 1);
      const pgnos = Array.from({ length: last - this.#nextPgno + 1 }, (_, i) => this.#nextPgno + i);
      for (const found of database.differences(pgnos)) this.#suspects.set(found.pgno, { ...found, looks: 0 });
      this.#nextPgno = last + 1;
    }
    if (this.#suspects.size > 0 && nowMs() >= this.#lookAtMs) {
      this.#lookAtMs = nowMs() + LOOK_INTERVAL_MS;
      if (this.#lookAgain()) return false;
    }
    const more = this.#suspects.size > 0 || this.#nextPgno <= pages;
    if (!more || nowMs() >= this.#progressAtMs) {
      this.#progressAtMs = nowMs() + PROGRESS_INTERVAL_MS;
      const read = Math.min(this.#nextPgno - 1, pages);
      onProgress({ checkedPages: Math.max(0, read - this.#suspects.size), pages });
    }
    return more;
  }

  /** Looks at the suspects once more; returns whether some of them are damaged. */
  #lookAgain(): boolean {
    const { database, settle, onDamaged } = this.#options;
    // From here to the end nothing else runs on this thread, and without its answer no journal ends and no WAL restarts.
    if (!settle()) return false;
    const differing = database.differences(this.#suspects.keys());
    // Asked after the pages were read: they are written only while the journal is there. This was no look at all.
    if (differing.length > 0 && database.journalIsLive()) return false;
    const still = new Map(differing.map((found) => [found.pgno, found]));
    for (const [pgno, suspect] of this.#suspects) {
      const found = still.get(pgno);
      if (!found) this.#suspects.delete(pgno);
      else if (found.is === suspect.is && found.committed === suspect.committed) suspect.looks += 1;
      else this.#suspects.set(pgno, { ...found, looks: 0 });
    }
    const certain = [...this.#suspects.values()].filter(({ looks }) => looks >= LOOKS);
    const damaged = database.logFreePages(certain.map(({ pgno }) => pgno));
    for (const { pgno } of certain) this.#suspects.delete(pgno);
    if (damaged.length > 0) onDamaged(damaged);
    return damaged.length > 0;
  }
}
