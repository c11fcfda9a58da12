import type Database from 'better-sqlite3';

import { toKiteError } from '../errors.js';
import type { ApplierContext } from './context.js';
import type { Unlocked } from './messages.js';
import { holdWriters } from './write-lock.js';

/** SQLite's write locks on databases of a primary that hands over: their writers see BUSY, readers go on. */
export class HandOffLocks {
  readonly #context: ApplierContext;
  readonly #held: Database.Database[] = [];

  constructor(context: ApplierContext) {
    this.#context = context;
  }

  /** Takes what can be had in time; returns the rest. */
  async take(names: readonly string[], timeoutMs: number): Promise<readonly Unlocked[]> {
    const results = await Promise.allSettled(names.map((name) => this.#takeOne(name, timeoutMs)));
    return results.flatMap((result, index) =>
      result.status === 'fulfilled'
        ? []
        : [{ name: names[index] ?? '', reason: toKiteError(result.reason).message }],
    );
  }

  release(): void {
    const held = this.#held.splice(0);
    // Nothing was written. A COMMIT would vacuum where auto_vacuum has something to do.
    for (const database of held) database.exec('ROLLBACK');
    // After all: closing the last connection of a database checkpoints it, and nobody shall wait for that of another.
    for (const database of held) database.close();
  }

  async #takeOne(name: string, timeoutMs: number): Promise<void> {
    this.#held.push(await holdWriters(this.#context, name, timeoutMs));
  }
}
