/** Reads about so many bytes of one database and compares them; resolves to whether there is more to do. */
export type CheckStep = (maxBytes: number) => boolean | Promise<boolean>;

/** How far the check of a database is. */
export interface CheckProgress {
  readonly checkedPages: number;
  readonly pages: number;
}

/** Small, so that on a slow disk nobody waits long behind one. */
const PIECE_BYTES = 256 << 10;

/**
 * Paces the full check of databases (DESIGN §3): one piece of one database at a time, in turn, so that all of them
 * together read no more than so many bytes per second, whatever their number. A rate of 0 checks nothing.
 */
export class BackgroundCheck {
  readonly #pauseMs: number;
  readonly #steps = new Map<string, CheckStep>();
  #timer: NodeJS.Timeout | undefined;
  #stepping = false;

  constructor(bytesPerSecond: number) {
    this.#pauseMs = (PIECE_BYTES / bytesPerSecond) * 1000;
  }

  /** Begins with a database, in place of what was added under its name. A step that throws is its last. */
  add(name: string, step: CheckStep): void {
    this.#steps.set(name, step);
    this.#next();
  }

  remove(name: string): void {
    this.#steps.delete(name);
  }

  clear(): void {
    this.#steps.clear();
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #next(): void {
    if (this.#timer || this.#stepping || this.#steps.size === 0 || this.#pauseMs === Infinity) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#step();
    }, this.#pauseMs).unref();
  }

  async #step(): Promise<void> {
    const [first] = this.#steps;
    if (!first) return;
    const [name, step] = first;
    this.#stepping = true;
    const more = await Promise.resolve(PIECE_BYTES)
      .then(step, () => false)
      .catch(() => false);
    this.#stepping = false;
    // To the end of the row, unless it was removed or begun anew meanwhile.
    if (this.#steps.get(name) === step) {
      this.#steps.delete(name);
      if (more) this.#steps.set(name, step);
    }
    this.#next();
  }
}
