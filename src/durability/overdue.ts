import type { DurabilityEvent } from './durability.js';
import type { DurabilityPolicy } from './policy.js';

/** A commit that waits. */
export interface Waiting {
  readonly policy: DurabilityPolicy;
  readonly sinceMs: number;
  /** It was said that it waits for longer than it should. */
  told: boolean;
}

/** What becomes of commits that have waited for as long as their policy wants: they go on waiting, or their database degrades. Both are said once. */
export class Overdue {
  /** Databases whose commits do not wait, though they should. */
  readonly degraded = new Set<string>();
  readonly #onEvent: (event: DurabilityEvent) => void;
  readonly #nowMs: () => number;

  constructor(onEvent: (event: DurabilityEvent) => void, nowMs: () => number) {
    this.#onEvent = onEvent;
    this.#nowMs = nowMs;
  }

  /** Whether the commits of a database may return without what they wait for; from now on they may if `waiting` is the first to be late. */
  degrades(name: string, waiting: Waiting, missing: () => string): boolean {
    if (this.degraded.has(name)) return true;
    if (waiting.policy.onTimeout === 'block' || !this.isLate(waiting)) return false;
    this.degraded.add(name);
    this.#onEvent({ kind: 'degraded', name, message: missing() });
    return true;
  }

  /** Says of one that goes on waiting that it does. */
  complain(name: string, waiting: Waiting, missing: () => string): void {
    if (waiting.told || waiting.policy.onTimeout !== 'block' || !this.isLate(waiting)) return;
    waiting.told = true;
    this.#onEvent({ kind: 'blocked', name, message: missing() });
  }

  /** Whether it has waited for as long as its policy wants. */
  isLate({ policy, sinceMs }: Waiting): boolean {
    return this.#nowMs() - sinceMs >= policy.timeoutMs;
  }
}
