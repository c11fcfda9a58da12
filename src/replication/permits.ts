/**
 * A fixed number of permits, handed out in the order in which they were asked for. Each message of file
 * bytes holds one until the socket has taken it: that bounds what a replica that does not read costs,
 * and gives each database its turn.
 */
export class Permits {
  readonly #count: number;
  readonly #isOpen: () => boolean;
  readonly #waiting: ((granted: boolean) => void)[] = [];
  #taken = 0;
  #closed = false;

  /** `isOpen` false: nobody gets one for now; call `kick` when it changes. */
  constructor(count: number, isOpen: () => boolean) {
    this.#count = count;
    this.#isOpen = isOpen;
  }

  /** True at once when one is free, else a promise; false once closed. */
  acquire(): boolean | Promise<boolean> {
    if (this.#closed) return false;
    if (this.#waiting.length === 0 && this.#free()) {
      this.#taken++;
      return true;
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  release(): void {
    this.#taken--;
    this.kick();
  }

  kick(): void {
    while (this.#waiting.length > 0 && this.#free()) {
      this.#taken++;
      this.#waiting.shift()?.(true);
    }
  }

  close(): void {
    this.#closed = true;
    for (const resolve of this.#waiting.splice(0)) resolve(false);
  }

  #free(): boolean {
    return this.#taken < this.#count && this.#isOpen();
  }
}
