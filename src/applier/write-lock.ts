import Database from 'better-sqlite3';

import { KiteError } from '../errors.js';
import { monotonicMs } from '../util/clock.js';
import {
  databaseLocks,
  findLockHolder,
  walWriteLock,
  type LockHolder,
  type LockRange,
} from '../util/lock-holder.js';
import { mountPath, type ApplierContext } from './context.js';

/** After this long the process in the way is named, and again after each such time. */
const BLOCKED_AFTER_MS = 5000;
const LONGEST_PAUSE_MS = 20;

/** What an attempt returns when SQLite was busy without an error. */
export const BUSY = Symbol('busy');

export interface WaitOptions {
  /** What may be held by somebody else. */
  readonly locks: readonly LockRange[];
  readonly onBlocked: (waitedMs: number, holder: LockHolder | undefined) => void;
  /** Ends the wait with ERR_APPLIER_LOCKED. */
  readonly timeoutMs?: number;
  /** Between two attempts; default 20. */
  readonly longestPauseMs?: number;
  /** Ends the wait with its reason. */
  readonly signal?: AbortSignal;
}

/**
 * Runs `attempt` until SQLite no longer says BUSY and it does not return BUSY, with pauses in which everything
 * else goes on: nothing in this process may sleep in a lock, other databases are served by the same thread.
 */
export async function whenNotBusy<T>(attempt: () => T | typeof BUSY, options: WaitOptions): Promise<T> {
  const start = monotonicMs();
  let pauseMs = 1;
  let nextReportMs = BLOCKED_AFTER_MS;
  for (;;) {
    options.signal?.throwIfAborted();
    try {
      const result = attempt();
      if (result !== BUSY) return result;
    } catch (error) {
      if (!isBusy(error)) throw error;
    }
    const waitedMs = monotonicMs() - start;
    if (waitedMs >= (options.timeoutMs ?? Infinity)) throw lockedError(options.locks, waitedMs);
    if (waitedMs >= nextReportMs) {
      options.onBlocked(Math.round(waitedMs), findLockHolder(options.locks));
      nextReportMs += BLOCKED_AFTER_MS;
    }
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
    pauseMs = Math.min(options.longestPauseMs ?? LONGEST_PAUSE_MS, pauseMs * 2);
  }
}

export function lockedError(locks: readonly LockRange[], waitedMs: number): KiteError {
  const holder = findLockHolder(locks);
  const who = holder
    ? `process ${holder.pid} (${holder.command}) holds it`
    : 'whoever holds it cannot be seen';
  return new KiteError('ERR_APPLIER_LOCKED', `no write lock within ${Math.round(waitedMs)} ms: ${who}`);
}

/** BUSY with all its variants, and PROTOCOL: a race for a lock of the WAL that SQLite gave up on. */
export const isBusy = (error: unknown): boolean =>
  error instanceof Database.SqliteError && /^SQLITE_(BUSY|LOCKED|PROTOCOL)/.test(error.code);

/**
 * Takes SQLite's write lock on a database as any writer would, and keeps it: the connection that has it is in a transaction
 * without content. Rejects with ERR_APPLIER_LOCKED when it is not had within `timeoutMs`.
 */
export async function holdWriters(
  context: ApplierContext,
  name: string,
  timeoutMs: number,
): Promise<Database.Database> {
  const path = mountPath(context, name);
  const database = new Database(path, { fileMustExist: true, timeout: 0 });
  try {
    await whenNotBusy(() => database.exec('BEGIN IMMEDIATE'), {
      locks: [walWriteLock(path), databaseLocks(path)],
      onBlocked: (waitedMs, holder) => context.emit({ kind: 'blocked', name, waitedMs, holder }),
      timeoutMs,
      // Writers that commit one after the other leave the lock free for moments only.
      longestPauseMs: 1,
    });
    return database;
  } catch (error) {
    database.close();
    throw error;
  }
}
