/**
 * How the mount tells capture of commits without a message: shared counters, so that a commit costs the
 * mount thread two atomic stores and, only when capture sleeps, one wake. One producer (the mount),
 * one consumer (capture); a slot is in the ring at most once, so the ring never overflows.
 */

/** Databases that one process can name in its life. */
export const SLOTS_MAX = 65_536;
const RING_MASK = SLOTS_MAX - 1; // head and tail wrap at 32 bits, where a remainder would be negative

// Int32 indexes of the head of the buffer.
const FUTEX = 0; // raised whenever there is something to do
const SLEEPING = 1; // 1 while capture waits on the futex
const HEAD = 2; // next ring place to write
const NEXT_SLOT = 3;
const HEAD_INTS = 16;

const DIRTY = HEAD_INTS; // per slot: 1 while it is in the ring
const RING = DIRTY + SLOTS_MAX;
const ENDS_BYTES = (RING + SLOTS_MAX) * 4;
const CLAIMS_BYTES = ENDS_BYTES + SLOTS_MAX * 8;
const TOTAL_BYTES = CLAIMS_BYTES + SLOTS_MAX * 8;
/** Claim of a slot of which capture has said nothing. */
const EVERYTHING = 1n << 62n;

export class CommitSignal {
  readonly buffer: SharedArrayBuffer;
  readonly #int32: Int32Array;
  readonly #ends: BigInt64Array;
  /** Per slot: capture has read, or reads now, the WAL up to here. */
  readonly #claims: BigInt64Array;
  #tail = 0; // used by the consumer only

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(TOTAL_BYTES)) {
    this.buffer = buffer;
    this.#int32 = new Int32Array(buffer, 0, ENDS_BYTES / 4);
    this.#ends = new BigInt64Array(buffer, ENDS_BYTES, SLOTS_MAX);
    this.#claims = new BigInt64Array(buffer, CLAIMS_BYTES, SLOTS_MAX);
  }

  /** A slot that was never given before, or -1 when all are used up. */
  newSlot(): number {
    const slot = Atomics.add(this.#int32, NEXT_SLOT, 1);
    if (slot >= SLOTS_MAX) return -1;
    Atomics.store(this.#claims, slot, EVERYTHING);
    return slot;
  }

  /** Mount: the WAL of this slot holds commits up to `endBytes`. Never blocks. */
  publish(slot: number, endBytes: number): void {
    // The end first, the mark second: whoever takes the mark then sees this end or a newer one.
    Atomics.store(this.#ends, slot, BigInt(endBytes));
    if (Atomics.exchange(this.#int32, DIRTY + slot, 1) === 1) return;
    const head = Atomics.load(this.#int32, HEAD);
    this.#int32[RING + (head & RING_MASK)] = slot;
    Atomics.store(this.#int32, HEAD, (head + 1) | 0);
    this.#wake();
  }

  /**
   * Mount: commits beyond `endBytes` do not count any more. Returns up to where they did, bytes, and whether
   * capture has not read as far as `endBytes` and will not: then what is there may be overwritten at once.
   */
  retract(slot: number, endBytes: number): { publishedEnd: number; unread: boolean } {
    const end = BigInt(endBytes);
    const published = Atomics.load(this.#ends, slot);
    if (published > end) Atomics.store(this.#ends, slot, end);
    return { publishedEnd: Number(published), unread: Atomics.load(this.#claims, slot) <= end };
  }

  /** Up to where the mount has published commits, bytes. */
  publishedEnd(slot: number): number {
    return Number(Atomics.load(this.#ends, slot));
  }

  /** Capture: the end up to which a slot may be read from now on, until `release`. */
  claim(slot: number): number {
    for (;;) {
      // Said first, then looked at again: of a retraction at the same time, one side always sees the other.
      const end = Atomics.load(this.#ends, slot);
      Atomics.store(this.#claims, slot, end);
      if (Atomics.load(this.#ends, slot) === end) return Number(end);
    }
  }

  /** Capture: nothing is being read; everything up to `endBytes` was, or all of it when that is not known. */
  release(slot: number, endBytes: number = Infinity): void {
    Atomics.store(this.#claims, slot, endBytes === Infinity ? EVERYTHING : BigInt(endBytes));
  }

  #wake(): void {
    Atomics.add(this.#int32, FUTEX, 1);
    if (Atomics.load(this.#int32, SLEEPING) === 1) Atomics.notify(this.#int32, FUTEX);
  }

  /** Capture: a slot with new commits, or -1. Its end comes from `claim` afterwards. */
  take(): number {
    if (Atomics.load(this.#int32, HEAD) === this.#tail) return -1;
    const slot = this.#int32[RING + (this.#tail & RING_MASK)] as number;
    this.#tail = (this.#tail + 1) | 0;
    // Cleared before the end is read: a commit published from now on puts the slot into the ring again.
    Atomics.store(this.#int32, DIRTY + slot, 0);
    return slot;
  }

  /** Capture: value to give to `wait`; taken before looking for work, so that no wake is lost. */
  get ticket(): number {
    return Atomics.load(this.#int32, FUTEX);
  }

  /** Capture: resolves when somebody woke it since `ticket`, or after `timeoutMs`. */
  async wait(ticket: number, timeoutMs: number): Promise<void> {
    Atomics.store(this.#int32, SLEEPING, 1);
    // ES2024, in every Node that is supported; the types of ES2023 do not have it.
    const { waitAsync } = Atomics as unknown as { waitAsync: WaitAsync };
    const waiting = waitAsync(this.#int32, FUTEX, ticket, timeoutMs);
    if (waiting.async) await waiting.value;
    Atomics.store(this.#int32, SLEEPING, 0);
  }
}

type WaitAsync = (
  ints: Int32Array,
  index: number,
  expected: number,
  timeoutMs: number,
) => { async: false } | { async: true; value: Promise<unknown> };
