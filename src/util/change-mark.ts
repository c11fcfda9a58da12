import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs';

/** Memory that processes share by its files; a page of it is never waited for. Without it there are no marks. */
const MEMORY_DIR = '/dev/shm';
const MARK_BYTES = 4;

// Int32 indexes of the shared memory.
const FD = 0;
const GIVEN = 1; // the last number that a touch has taken
const WRITTEN = 2; // a number that is in the file, or was
const WATCHED = 3; // GIVEN at the last `watch`

/**
 * A number that is another one after a `touch`. Any thread of this process touches it; another process reads it for the price of a
 * system call, without waking anybody, and so knows that what it was told is still all there is: it reads the number, asks this
 * process, which calls `watch` before it looks for the answer, and believes the answer until the number changes. (Node has no
 * memory that processes share: the number is the content of a file in memory that has no name any more.) It is never closed: a
 * thread that is about to end may still touch it, and the descriptor would be another file's.
 */
export class ChangeMark {
  /** For other threads. */
  readonly buffer: SharedArrayBuffer;
  readonly #shared: Int32Array;
  readonly #bytes = Buffer.alloc(MARK_BYTES);

  /** Takes the `buffer` of another thread's mark. */
  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.#shared = new Int32Array(buffer);
  }

  /** A new one; undefined where files in memory cannot be made. */
  static create(): ChangeMark | undefined {
    const name = `${MEMORY_DIR}/kitefs-${process.pid}-${process.hrtime.bigint()}`;
    let fd: number;
    try {
      fd = openSync(name, 'wx+', 0o600);
      unlinkSync(name);
    } catch {
      return undefined;
    }
    const mark = new ChangeMark(new SharedArrayBuffer(16));
    mark.#shared[FD] = fd;
    try {
      // Its page is there from now on: no later touch fails because memory is full.
      mark.touch();
      return mark;
    } catch {
      closeSync(fd);
      return undefined;
    }
  }

  /** Where another process of this user finds it, as long as this one lives. */
  get path(): string {
    return `/proc/${process.pid}/fd/${this.#shared[FD]}`;
  }

  /**
   * Whoever reads the mark after this has returned finds another number than whoever has asked before. Of two touches at the same time
   * the number of either may stay: both are new, and each is written by its own caller, so that none returns before. Costs two loads
   * when nobody has asked since a number was last written. Throws what the kernel answers; then nothing may be made visible.
   */
  touch(): void {
    const shared = this.#shared;
    // What was taken after the last question was asked and is written: nobody believes an answer any more. (Numbers wrap.)
    if (((Atomics.load(shared, WRITTEN) - Atomics.load(shared, WATCHED)) | 0) > 0) return;
    const number = (Atomics.add(shared, GIVEN, 1) + 1) | 0;
    this.#bytes.writeInt32LE(number);
    writeSync(shared[FD]!, this.#bytes, 0, MARK_BYTES, 0);
    // A later number of another thread may be overwritten here: then one touch more is written than need be.
    Atomics.store(shared, WRITTEN, number);
  }

  /**
   * Before the answer to a question is looked for: touches from here on are written. One that is not, because it came just before,
   * was for something that is there already, and is in the answer.
   */
  watch(): void {
    Atomics.store(this.#shared, WATCHED, Atomics.load(this.#shared, GIVEN));
  }
}

/** The mark of another process. */
export class ChangeMarkReader {
  readonly #fd: number;
  readonly #bytes = Buffer.alloc(MARK_BYTES);

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** `path` is that of the mark; undefined when it cannot be opened. */
  static open(path: string): ChangeMarkReader | undefined {
    try {
      return new ChangeMarkReader(openSync(path, 'r'));
    } catch {
      return undefined;
    }
  }

  /** The number that is there now; undefined: it cannot be known. */
  read(): number | undefined {
    try {
      if (readSync(this.#fd, this.#bytes, 0, MARK_BYTES, 0) !== MARK_BYTES) return undefined;
    } catch {
      return undefined;
    }
    return this.#bytes.readInt32LE();
  }
}
