import Database from 'better-sqlite3';

import { toKiteError } from '../errors.js';
import { mountPath, type ApplierContext } from './context.js';
import { databaseLocks, walWriteLock } from './lock-holder.js';
import { whenNotBusy } from './write-lock.js';

/** SQLite's write locks on databases of a primary that hands over: their writers see BUSY, readers go on. */
export class HandOffLocks {
  readonly #context: ApplierContext;
  readonly #held: Database.Database[] = [];

  constructor(context: ApplierContext) {
    this.#context = context;
  }

  /** Takes all, or none and throws ERR_APPLIER_LOCKED. */
  async take(names: readonly string[], timeoutMs: number): Promise<void> {
    const results = await Promise.allSettled(names.map((name) => this.#takeOne(name, timeoutMs)));
    const failed = results.find((result) => result.status === 'rejected');
    if (!failed) return;
    this.release();
    throw toKiteError(failed.reason);
  }

  release(): void {
    for (const database of this.#held.splice(0)) {
      // Nothing was written. A COMMIT would vacuum where auto_vacuum has something to do.
      database.exec('ROLLBACK');
      database.close();
    }
  }

  async #takeOne(name: string, timeoutMs: number): Promise<void> {
    const path = mountPath(this.#context, name);
    const database = new Database(path, { fileMustExist: true, timeout: 0 });
    try {
      await whenNotBusy(() => database.exec('BEGIN IMMEDIATE'), {
        locks: [walWriteLock(path), databaseLocks(path)],
        onBlocked: (waitedMs, holder) => this.#context.emit({ kind: 'blocked', name, waitedMs, holder }),
        timeoutMs,
      });
    } catch (error) {
      database.close();
      throw error;
    }
    this.#held.push(database);
  }
}
