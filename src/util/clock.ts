/**
 * Time. Durations and deadlines use the monotonic clock (CLOCK_MONOTONIC), which all threads and
 * processes of one machine share; no time of another machine is ever compared.
 */
export interface Clock {
  /** Monotonic time in milliseconds, with a fraction. */
  nowMs(): number;
  /** Calls `run` once after `delayMs`; returns what cancels it. */
  after(delayMs: number, run: () => void): () => void;
}

/** Monotonic time in nanoseconds: the unit of deadlines in shared memory. */
export const monotonicNs = (): bigint => process.hrtime.bigint();

/** Monotonic time in milliseconds. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6;

export const systemClock: Clock = {
  nowMs: monotonicMs,
  after(delayMs, run) {
    const timer = setTimeout(run, delayMs);
    return () => clearTimeout(timer);
  },
};
