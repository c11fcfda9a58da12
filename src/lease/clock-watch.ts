import { uptime } from 'node:os';
import { monotonicMs } from '../util/clock.js';

/** The three clocks at one moment, ms. Only differences count. */
export interface ClockReading {
  /** Stands still while a guest is suspended. */
  readonly monotonicMs: number;
  readonly wallMs: number;
  /** Since boot, time in suspend included. */
  readonly bootMs: number;
}

function readClocks(): ClockReading {
  // Taken again when this process was interrupted between the readings: that is no gap.
  for (let attempt = 0; ; attempt += 1) {
    const before = monotonicMs();
    const reading = { monotonicMs: before, wallMs: Date.now(), bootMs: uptime() * 1000 };
    if (attempt === 5 || monotonicMs() - before < 5) return reading;
  }
}

/**
 * Notices that this machine was away without its monotonic clock knowing: a guest suspended or restored
 * from a snapshot (trap 10). A pause that the monotonic clock did count (SIGSTOP, a busy machine) is no
 * gap: the deadline, which is on that clock, covers it.
 */
export class ClockWatch {
  readonly #toleranceMs: number;
  readonly #read: () => ClockReading;
  #last: ClockReading;

  constructor(toleranceMs: number, read: () => ClockReading = readClocks) {
    this.#toleranceMs = toleranceMs;
    this.#read = read;
    this.#last = read();
  }

  /** Returns what ran apart by more than the tolerance since the last call, in words. */
  check(): string | undefined {
    const last = this.#last;
    const now = this.#read();
    this.#last = now;
    const passedMs = now.monotonicMs - last.monotonicMs;
    for (const [name, gapMs] of [
      ['wall clock', now.wallMs - last.wallMs - passedMs],
      ['boot time', now.bootMs - last.bootMs - passedMs],
    ] as const) {
      if (Math.abs(gapMs) > this.#toleranceMs) {
        return `the ${name} moved ${Math.round(gapMs)} ms against the monotonic clock: this machine may have been suspended`;
      }
    }
    return undefined;
  }
}
