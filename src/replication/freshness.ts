import type { Position } from '../ltx/position.js';

/** How fresh one database of this replica is. */
export interface DatabaseFreshness {
  /** What readers see here. */
  readonly position: Position;
  /** Transactions that the primary had at its last answer and readers here don't see yet; undefined: no answer yet. */
  readonly lagTransactions: number | undefined;
  /** The data is at most this old; undefined: not known yet. */
  readonly maxAgeMs: number | undefined;
}

export class Freshness {
  probeSent(id: number, nowMs: number): void {
    throw new Error(`not yet ${id} ${nowMs}`);
  }
  report(name: string, nowMs: number): DatabaseFreshness | undefined {
    throw new Error(`not yet ${name} ${nowMs}`);
  }
}
