import { isSnapshot, lockPgno, type LtxHeader } from './format.js';

/**
 * Which pages may follow one another in a file: ascending, within the final size, never the lock page, and
 * in a snapshot every one. Writer and reader ask the same; each says of a broken rule what it must.
 */
export class PageOrder {
  #last = 0;
  #commit = 0;
  #lock = 0;
  #snapshot = false;

  begin(header: LtxHeader): void {
    this.#last = 0;
    this.#commit = header.commitPages;
    this.#lock = lockPgno(header.pageSize);
    this.#snapshot = isSnapshot(header);
  }

  /** Returns which rule the next page breaks, or undefined when none. */
  add(pgno: number): string | undefined {
    if (pgno <= this.#last) return `page ${pgno} after page ${this.#last} in an LTX file`;
    if (pgno > this.#commit) return `page ${pgno} in an LTX file of a database of ${this.#commit} pages`;
    if (pgno === this.#lock) return `the lock page ${pgno} in an LTX file`;
    if (this.#snapshot && pgno !== this.#next()) return `a snapshot without page ${this.#next()}`;
    this.#last = pgno;
    return undefined;
  }

  /** Returns what is missing at the end, or undefined. */
  end(): string | undefined {
    return this.#snapshot && this.#next() <= this.#commit
      ? `a snapshot without page ${this.#next()}`
      : undefined;
  }

  #next(): number {
    return this.#last + 1 === this.#lock ? this.#last + 2 : this.#last + 1;
  }
}
