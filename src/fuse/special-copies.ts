/** Longer than libfuse lets the kernel keep what it knows of a name and of a file (1 s each). */
const KERNEL_KEEPS_MS = 2000;

interface Copy {
  content: Buffer;
  opens: number;
  usedMs: number;
}

/**
 * What special files held when they were opened, for a driver that cannot tell the kernel to cache neither their bytes nor their
 * size. There each special file is shown as a symbolic link, and each time it is followed it leads to a file of
 * its own, which never changes. Names are used again when the kernel has forgotten what it knew, so that there are only as
 * many as were read at about the same time.
 */
export class SpecialCopies {
  readonly #copies: Copy[] = [];
  readonly #now: () => number;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** The number of a new copy of this content. */
  add(content: Buffer): number {
    const usedMs = this.#now();
    const copy: Copy = { content, opens: 0, usedMs };
    const free = this.#copies.findIndex((old) => old.opens === 0 && usedMs - old.usedMs > KERNEL_KEEPS_MS);
    if (free < 0) return this.#copies.push(copy) - 1;
    this.#copies[free] = copy;
    return free;
  }

  /** The content, when the kernel asks about it. */
  look(number: number): Buffer | undefined {
    const copy = this.#copies[number];
    if (copy) copy.usedMs = this.#now();
    return copy?.content;
  }

  open(number: number): Buffer | undefined {
    const copy = this.#copies[number];
    if (copy) copy.opens += 1;
    return this.look(number);
  }

  close(number: number): void {
    const copy = this.#copies[number];
    if (copy) copy.opens -= 1;
    this.look(number);
  }
}
