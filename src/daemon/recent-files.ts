/** Log files that were just made, in memory, so that sending them to replicas reads no disk. */
export class RecentFiles {
  readonly #maxBytes: number;
  readonly #files = new Map<string, Buffer>();
  #bytes = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** Keeps a file under its path; the oldest ones go when there are more bytes than allowed. */
  add(path: string, bytes: Buffer): void {
    if (bytes.length > this.#maxBytes) return;
    this.#files.set(path, bytes);
    this.#bytes += bytes.length;
    for (const [oldPath, old] of this.#files) {
      if (this.#bytes <= this.#maxBytes) break;
      this.#files.delete(oldPath);
      this.#bytes -= old.length;
    }
  }

  get(path: string): Buffer | undefined {
    return this.#files.get(path);
  }

  clear(): void {
    this.#files.clear();
    this.#bytes = 0;
  }
}
