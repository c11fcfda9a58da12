/** Counts what is under way, and tells when nothing is. */
export class InFlight {
  #count = 0;
  #whenNone: (() => void)[] = [];

  /** One more; `work` is over when its promise is settled. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.#count += 1;
    try {
      return await work();
    } finally {
      this.#count -= 1;
      if (this.#count === 0) for (const tell of this.#whenNone.splice(0)) tell();
    }
  }

  /** Resolves when nothing is under way, which may be now. */
  async none(): Promise<void> {
    if (this.#count === 0) return;
    await new Promise<void>((resolve) => this.#whenNone.push(resolve));
  }
}
