import fs from 'node:fs';

import Database from 'better-sqlite3';

import { KiteError } from '../errors.js';
import { mountPath, type ApplierContext } from './context.js';
import { databaseLocks, walWriteLock } from '../util/lock-holder.js';
import type { JournalMode } from './messages.js';
import { BUSY, whenNotBusy, type WaitOptions } from './write-lock.js';

/** How long other connections may keep a new primary from leaving WAL mode, before it stays (trap 18). */
const LEAVE_WAL_MS = 2000;

const waitingFor = (context: ApplierContext, name: string): WaitOptions => {
  const path = mountPath(context, name);
  return {
    locks: [walWriteLock(path), databaseLocks(path)],
    onBlocked: (waitedMs, holder) => context.emit({ kind: 'blocked', name, waitedMs, holder }),
  };
};

/**
 * Lets SQLite roll back a hot journal, or recover the WAL. Closing must not checkpoint (trap 7): SQLite does that when the
 * last connection can lock the database exclusively, which one that was opened read-only cannot.
 */
export async function recoverDatabase(context: ApplierContext, name: string): Promise<void> {
  const path = mountPath(context, name);
  if (!fs.existsSync(path)) return;
  // Where the mount does not know this process, it must know for which database it need not wait.
  await context.arm?.([name]);
  const wait = waitingFor(context, name);
  const database = new Database(path, { fileMustExist: true, timeout: 0 });
  let last: Database.Database | undefined;
  try {
    await whenNotBusy(() => database.pragma('schema_version'), wait);
    last = new Database(path, { readonly: true, fileMustExist: true, timeout: 0 });
    // It takes its lock, and joins the WAL, with its first read.
    await whenNotBusy(() => last?.pragma('schema_version'), wait);
  } catch (error) {
    if (error instanceof Database.SqliteError && /^SQLITE_(NOTADB|CORRUPT)/.test(error.code)) {
      throw new KiteError('ERR_APPLIER_DAMAGED', `${name}: ${error.message}`, { cause: error });
    }
    throw error;
  } finally {
    database.close();
    last?.close();
  }
}

/** Makes the journal mode of a new primary's database real (DESIGN §6). Returns the mode in force. */
export async function makeJournalMode(
  context: ApplierContext,
  name: string,
  mode: JournalMode,
): Promise<JournalMode> {
  const wait = waitingFor(context, name);
  const database = new Database(mountPath(context, name), { fileMustExist: true, timeout: 0 });
  try {
    const switched = (): JournalMode | typeof BUSY =>
      database.pragma(`journal_mode = ${mode}`, { simple: true }) === mode ? mode : BUSY;
    const current = await whenNotBusy(() => database.pragma('journal_mode', { simple: true }), wait);
    if (current !== mode) {
      try {
        return await whenNotBusy(switched, { ...wait, timeoutMs: LEAVE_WAL_MS });
      } catch (error) {
        if (!(error instanceof KiteError) || current !== 'wal') throw error;
      }
    }
    if (current === 'wal') await whenNotBusy(() => writeFirstPage(database), wait);
    return current === 'wal' ? 'wal' : 'delete';
  } finally {
    database.close();
  }
}

/** A transaction that writes page 1 as it is: replicas, and the log, get its real journal mode bytes. */
function writeFirstPage(database: Database.Database): void {
  const version = Number(database.pragma('user_version', { simple: true }));
  database.pragma(`user_version = ${version}`);
}
