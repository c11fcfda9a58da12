/**
 * Work that may take milliseconds, handed by the mount thread to a thread that answers the kernel
 * itself: fsync, and reads of the data directory. One producer, one consumer, numbers only.
 */

export const IoOp = {
  /** Read `sizeBytes` at `offset` of `fd` and answer with them. */
  read: 1,
  /** fsync `fd` and answer. */
  sync: 2,
  /** fsync `fd`, close it, answer nothing: an error is told by the next `syncFolderLast`. */
  syncFolder: 3,
  /** fsync `fd`, close it, and answer. */
  syncFolderLast: 4,
  stop: 5,
} as const;

export interface IoJob {
  readonly op: number;
  readonly fd: number;
  readonly unique: number;
  readonly offset: number;
  readonly sizeBytes: number;
}

const PLACES = 256;
const FIELDS = 5;
const HEAD = 0; // jobs ever put
const TAIL = 1; // jobs ever taken
const HEAD_BYTES = 64;

export class IoQueue {
  readonly buffer: SharedArrayBuffer;
  readonly #counters: Int32Array;
  readonly #jobs: Float64Array;

  constructor(buffer = new SharedArrayBuffer(HEAD_BYTES + PLACES * FIELDS * 8)) {
    this.buffer = buffer;
    this.#counters = new Int32Array(buffer, 0, HEAD_BYTES / 4);
    this.#jobs = new Float64Array(buffer, HEAD_BYTES);
  }

  /** Jobs that are not taken yet. */
  get length(): number {
    return (Atomics.load(this.#counters, HEAD) - Atomics.load(this.#counters, TAIL)) | 0;
  }

  /** Returns false when the queue is full: then the caller does it itself. */
  put(op: number, fd: number, unique: number, offset: number, sizeBytes: number): boolean {
    if (this.length >= PLACES) return false;
    const head = Atomics.load(this.#counters, HEAD);
    const at = ((head >>> 0) % PLACES) * FIELDS;
    this.#jobs[at] = op;
    this.#jobs[at + 1] = fd;
    this.#jobs[at + 2] = unique;
    this.#jobs[at + 3] = offset;
    this.#jobs[at + 4] = sizeBytes;
    // The counter last: whoever sees it sees the job.
    Atomics.store(this.#counters, HEAD, (head + 1) | 0);
    Atomics.notify(this.#counters, HEAD);
    return true;
  }

  /** The next job; waits for one. */
  take(): IoJob {
    const tail = Atomics.load(this.#counters, TAIL);
    while (Atomics.load(this.#counters, HEAD) === tail) Atomics.wait(this.#counters, HEAD, tail);
    const at = ((tail >>> 0) % PLACES) * FIELDS;
    const job = {
      op: this.#jobs[at]!,
      fd: this.#jobs[at + 1]!,
      unique: this.#jobs[at + 2]!,
      offset: this.#jobs[at + 3]!,
      sizeBytes: this.#jobs[at + 4]!,
    };
    Atomics.store(this.#counters, TAIL, (tail + 1) | 0);
    return job;
  }
}
