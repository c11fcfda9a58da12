import type { LockHolder } from '../util/lock-holder.js';

/** What was done to a process: asked to end (SIGTERM), or ended (SIGKILL) because it was asked before. */
export type Ending = 'asked' | 'killed';

/**
 * Ends processes that keep the write lock of a replica's database, where nothing can be applied meanwhile (trap 15),
 * when `fuse.end-lock-holder-after` says so. To be asked each time that the applier names one.
 */
export class LockEnforcer {
  readonly #afterMs: number;
  /** The process that was asked to end, by database, and how long the lock had been waited for then. */
  readonly #asked = new Map<string, { readonly pid: number; readonly waitedMs: number }>();

  /** `afterMs`: 0 ends nobody. */
  constructor(afterMs: number) {
    this.#afterMs = afterMs;
  }

  /**
   * `waitedMs`: for how long the lock of database `name` was waited for. Returns what was done; undefined: nothing, because it is not
   * time yet or nobody is known, who may be a process of another container. Throws what kill(2) says.
   */
  blocked(name: string, waitedMs: number, holder: LockHolder | undefined): Ending | undefined {
    // 0 and less are no processes but groups of them.
    if (this.#afterMs === 0 || waitedMs < this.#afterMs || !holder || holder.pid <= 1) return undefined;
    const asked = this.#asked.get(name);
    // A wait that is no longer than that one is another: it may have let go in between.
    const again = asked?.pid === holder.pid && waitedMs > asked.waitedMs;
    this.#asked.set(name, { pid: holder.pid, waitedMs });
    process.kill(holder.pid, again ? 'SIGKILL' : 'SIGTERM');
    return again ? 'killed' : 'asked';
  }
}
