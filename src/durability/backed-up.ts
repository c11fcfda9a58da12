import type { EpochPosition } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import type { DurabilityEvent } from './durability.js';
import { Overdue, type Waiting } from './overdue.js';
import { policyOf, type DurabilityPolicy } from './policy.js';

const EIO = 5;
/** How often waiting commits are looked at. */
const LOOK_MS = 100;
/** And the backups are told again: one that failed would try again ever more rarely. */
const HURRY_MS = 1000;

export interface BackedUpParts {
  readonly policies: readonly DurabilityPolicy[];
  readonly backups: {
    /** Up to which TXID of this node's history the first destination has a database; undefined: not known. */
    shipped(name: string): bigint | undefined;
    /** A higher epoch writes there: nothing of this node comes in any more. */
    isFenced(): boolean;
    /** Somebody waits for this database. */
    hurry(name: string): void;
  };
  readonly store: { position(name: string): EpochPosition | undefined };
  /** Answers a commit that waits: 0, or an errno for the application. */
  readonly answer: (id: number, errno: number) => void;
  readonly onEvent: (event: DurabilityEvent) => void;
  readonly nowMs?: () => number;
}

interface Hold extends Waiting {
  readonly id: number;
  readonly position: EpochPosition;
  hurriedMs: number;
}

/**
 * `durability.backup`: lets a commit return when the first destination of the backups has it. An object of level 0 is created only
 * by whom no successor has fenced there (decision 019), so what was answered is in the history that a restore gives.
 */
export class BackedUp {
  readonly #parts: BackedUpParts;
  readonly #nowMs: () => number;
  readonly #holds = new Map<string, Hold>();
  /** Of each database the content that was answered as committed last. */
  readonly #promised = new Map<string, bigint>();
  readonly #overdue: Overdue;
  #epoch = 0n;
  #active = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(parts: BackedUpParts) {
    this.#parts = parts;
    this.#nowMs = parts.nowMs ?? monotonicMs;
    this.#overdue = new Overdue(parts.onEvent, this.#nowMs);
  }

  get waiting(): number {
    return this.#holds.size;
  }

  /** Databases whose commits do not wait, though they should. */
  get degraded(): readonly string[] {
    return [...this.#overdue.degraded];
  }

  /** This node may write under this epoch. */
  primary(epoch: bigint): void {
    this.#active = true;
    if (this.#epoch === epoch) return;
    this.#epoch = epoch;
    this.#promised.clear();
    this.#overdue.degraded.clear();
  }

  /** This node may not write any more: whatever waits is in doubt (trap 13). */
  stop(): void {
    this.#active = false;
    for (const { id } of this.#holds.values()) this.#parts.answer(id, EIO);
    this.#holds.clear();
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** A commit waits; `position` undefined: it does not any more. */
  commit(id: number, name: string, position: EpochPosition | undefined): void {
    if (!position) {
      if (this.#holds.get(name)?.id === id) this.#holds.delete(name);
      return;
    }
    const policy = policyOf(this.#parts.policies, name);
    if (!this.#active) return this.#parts.answer(id, EIO);
    // The same content as was promised last: a dead writer's transaction was rolled back, and nobody waits for that.
    if (!policy?.backup || this.#promised.get(name) === position.checksum) return this.#parts.answer(id, 0);
    const sinceMs = this.#nowMs();
    this.#holds.set(name, { id, position, policy, sinceMs, hurriedMs: sinceMs, told: false });
    if (this.#release(name)) return;
    this.#parts.backups.hurry(name);
    this.#lookLater();
  }

  /** The first destination has more of a database, or is known not to take any. */
  shipped(name: string): void {
    this.#release(name);
    if (!this.#overdue.degraded.has(name)) return;
    const end = this.#parts.store.position(name);
    if (!end || (this.#parts.backups.shipped(name) ?? -1n) < end.txid) return;
    this.#overdue.degraded.delete(name);
    this.#parts.onEvent({ kind: 'restored', name });
  }

  #lookLater(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      for (const [name, hold] of this.#holds) {
        if (this.#release(name) || this.#nowMs() < hold.hurriedMs + HURRY_MS) continue;
        hold.hurriedMs = this.#nowMs();
        this.#parts.backups.hurry(name);
      }
      if (this.#holds.size > 0) this.#lookLater();
    }, LOOK_MS);
  }

  /** Lets a commit return if it may; whether it did. */
  #release(name: string): boolean {
    const hold = this.#holds.get(name);
    if (!hold) return true;
    const { id, position, policy, sinceMs } = hold;
    const { backups, answer, onEvent } = this.#parts;
    const isThere = (backups.shipped(name) ?? -1n) >= position.txid;
    if (!isThere && backups.isFenced()) {
      // Whoever fenced us has another history: this commit will not be in it, however long it waits.
      this.#holds.delete(name);
      answer(id, EIO);
      return true;
    }
    const missing = (): string => this.#missing(name, hold);
    if (!isThere && !this.#overdue.degrades(name, hold, missing)) {
      this.#overdue.complain(name, hold, missing);
      return false;
    }
    this.#holds.delete(name);
    this.#promised.set(name, position.checksum);
    // Where it waits for replicas too, that is measured there.
    if (policy.waitFor === 'async') onEvent({ kind: 'waited', name, waitedMs: this.#nowMs() - sinceMs });
    answer(id, 0);
    return true;
  }

  #missing(name: string, { sinceMs }: Hold): string {
    return `a commit in ${name} has waited ${Math.round(this.#nowMs() - sinceMs)} ms for the first of the backups`;
  }
}

/** A commit that waits for two parties: answered when both have said 0, or with what is said first otherwise. */
export class BothAnswers {
  readonly #left = new Map<number, number>();
  readonly #answer: (id: number, errno: number) => void;

  constructor(answer: (id: number, errno: number) => void) {
    this.#answer = answer;
  }

  begin(id: number): void {
    this.#left.set(id, 2);
  }

  forget(id: number): void {
    this.#left.delete(id);
  }

  answer(id: number, errno: number): void {
    const left = this.#left.get(id);
    if (left === undefined) return;
    if (errno === 0 && left > 1) {
      this.#left.set(id, left - 1);
      return;
    }
    this.#left.delete(id);
    this.#answer(id, errno);
  }
}
