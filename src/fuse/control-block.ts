/**
 * What the mount must know at each write, in memory that all threads of the daemon share: whether this
 * node may write, until when, and under which epoch. The main thread (lease) writes it; the mount
 * reads it before each write that could commit and again before it answers (DESIGN §7, trap 10).
 */

/** What the mount lets applications do. */
export const MountState = {
  /** Recovery: only the applier may open anything; opens of others wait. */
  closed: 0,
  /** Applications read; their writes are refused; the applier writes. */
  replica: 1,
  /** Applications write until the deadline; after it the mount refuses as `fenced`. */
  primary: 2,
} as const;
export type MountState = (typeof MountState)[keyof typeof MountState];

const STATE = 0; // Int32 index
const DEADLINE = 1; // BigInt64 index
const EPOCH = 2; // BigInt64 index
const WALL_DEADLINE = 3; // BigInt64 index, ms since 1970
const PAUSED = 8; // Int32 index
const BYTES = 64;

export class ControlBlock {
  readonly buffer: SharedArrayBuffer;
  readonly #int32: Int32Array;
  readonly #int64: BigInt64Array;

  /** Takes the buffer of another thread's ControlBlock, or makes a new one (closed, deadline passed). */
  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(BYTES)) {
    this.buffer = buffer;
    this.#int32 = new Int32Array(buffer);
    this.#int64 = new BigInt64Array(buffer);
  }

  get state(): MountState {
    return Atomics.load(this.#int32, STATE) as MountState;
  }

  set state(state: MountState) {
    Atomics.store(this.#int32, STATE, state);
  }

  /** Monotonic nanoseconds until which a primary may write. */
  get deadlineNs(): bigint {
    return Atomics.load(this.#int64, DEADLINE);
  }

  /**
   * The same moment is kept by the wall clock too: a guest that was suspended or restored from a snapshot finds its
   * monotonic clock where it was, though the lease has long passed to another node (trap 10). A wall clock that
   * is stepped forward costs at most the writes until the next renewal.
   */
  set deadlineNs(at: bigint) {
    const remainingMs = (at - process.hrtime.bigint()) / 1_000_000n;
    Atomics.store(this.#int64, WALL_DEADLINE, BigInt(Date.now()) + remainingMs);
    Atomics.store(this.#int64, DEADLINE, at);
  }

  get epoch(): bigint {
    return Atomics.load(this.#int64, EPOCH);
  }

  set epoch(epoch: bigint) {
    Atomics.store(this.#int64, EPOCH, epoch);
  }

  /**
   * The last step of a hand-off: nothing more may be committed, so that the position which the successor has is the last
   * one, also of a database that was made a moment ago and that nobody holds a lock of.
   */
  get paused(): boolean {
    return Atomics.load(this.#int32, PAUSED) !== 0;
  }

  set paused(paused: boolean) {
    Atomics.store(this.#int32, PAUSED, paused ? 1 : 0);
  }

  /** Whether an application's write may be made now, or answered now as made. */
  mayWrite(): boolean {
    return (
      this.state === MountState.primary &&
      !this.paused &&
      process.hrtime.bigint() < this.deadlineNs &&
      Date.now() < Number(Atomics.load(this.#int64, WALL_DEADLINE))
    );
  }
}
