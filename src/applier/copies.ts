import fs from 'node:fs';
import { dirname, join } from 'node:path';

import Database from 'better-sqlite3';

import { KiteError } from '../errors.js';
import { WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import type { JournalVersions } from '../store/page-checksums.js';
import { monotonicMs } from '../util/clock.js';
import { mountPath, type ApplierContext } from './context.js';
import { writeFully } from '../util/files.js';
import { readFully } from './descriptor-io.js';
import { databaseLocks, walWriteLock } from '../util/lock-holder.js';
import { BUSY, lockedError, whenNotBusy, type WaitOptions } from './write-lock.js';

/** Pages of one step of SQLite's backup: about 4 ms of this process's one thread. */
const STEP_PAGES = 256;
const IMPORT_TIMEOUT_MS = 30_000;
const IMPORT_BUSY_MS = 1000;

const waitingFor = (context: ApplierContext, name: string, timeoutMs?: number): WaitOptions => {
  const path = mountPath(context, name);
  return {
    locks: [walWriteLock(path), databaseLocks(path)],
    onBlocked: (waitedMs, holder) => context.emit({ kind: 'blocked', name, waitedMs, holder }),
    ...(timeoutMs !== undefined && { timeoutMs }),
  };
};

/**
 * Copies a database to `target`, replaced at the end and only when the copy is whole. `journalVersions`: what it says of
 * its journal mode; a replica's own bytes say WAL whatever the primary's mode is (DESIGN §6).
 */
export async function exportDatabase(
  context: ApplierContext,
  name: string,
  target: string,
  journalVersions: JournalVersions | undefined,
): Promise<void> {
  const temporary = `${target}.kitefs-tmp`;
  const source = new Database(mountPath(context, name), { readonly: true, fileMustExist: true, timeout: 0 });
  try {
    // One snapshot for all steps: without it each transaction applied meanwhile would start the backup again.
    source.exec('BEGIN');
    await whenNotBusy(() => source.pragma('schema_version'), waitingFor(context, name));
    fs.rmSync(temporary, { force: true });
    await source.backup(temporary, { progress: () => STEP_PAGES });
    source.exec('COMMIT');
    finishFile(temporary, journalVersions);
    fs.renameSync(temporary, target);
  } finally {
    source.close();
    fs.rmSync(temporary, { force: true });
  }
}

function finishFile(path: string, journalVersions: JournalVersions | undefined): void {
  const fd = fs.openSync(path, 'r+');
  try {
    const { write, read } = journalVersions ?? {};
    if (write !== undefined && read !== undefined)
      writeFully(fd, Uint8Array.of(write, read), WRITE_VERSION_OFFSET);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/**
 * Replaces a database by the file at `source`, or creates it, so that capture sees one transaction, as it sees an
 * application's. Throws ERR_APPLIER_IMPORT when the file is no whole database.
 */
export async function importDatabase(context: ApplierContext, name: string, source: string): Promise<void> {
  const from = openImport(source);
  try {
    const target = mountPath(context, name);
    const size = fs.statSync(target, { throwIfNoEntry: false })?.size ?? 0;
    if (size === 0) await create(from, target, join(context.dataDir, `import-${process.pid}.tmp`));
    else await replace(from, target, waitingFor(context, name, IMPORT_TIMEOUT_MS));
  } finally {
    from.close();
  }
}

function openImport(source: string): Database.Database {
  try {
    const database = new Database(source, { readonly: true, fileMustExist: true, timeout: IMPORT_BUSY_MS });
    // Reads the schema, and with it whatever the file's own journal or WAL holds.
    const tables = database.prepare('SELECT count(*) FROM sqlite_schema').pluck().get();
    const pages = database.pragma('page_count', { simple: true });
    if (typeof tables === 'number' && typeof pages === 'number' && pages > 0) return database;
    database.close();
    throw new Error('it is empty');
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new KiteError('ERR_APPLIER_IMPORT', `${source} cannot be imported: ${why}`, { cause: error });
  }
}

/** A new database comes as a plain copy does (`cp`): the mount adopts it when it is closed and whole (trap 24). */
async function create(from: Database.Database, target: string, temporary: string): Promise<void> {
  fs.mkdirSync(dirname(target), { recursive: true });
  try {
    fs.rmSync(temporary, { force: true });
    await from.backup(temporary, { progress: () => STEP_PAGES });
    await copyFile(temporary, target);
  } finally {
    fs.rmSync(temporary, { force: true });
  }
}

async function copyFile(source: string, target: string): Promise<void> {
  const input = fs.openSync(source, 'r');
  // Not O_TRUNC: what an application has created meanwhile must not be emptied.
  const output = fs.openSync(target, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o644);
  try {
    const piece = Buffer.allocUnsafe(1 << 20);
    for (let at = 0; ; at += piece.length) {
      const got = readFully(input, piece, at);
      writeFully(output, piece.subarray(0, got), at);
      if (got < piece.length) break;
      await new Promise(setImmediate);
    }
    fs.fsyncSync(output);
  } finally {
    fs.closeSync(output);
    fs.closeSync(input);
  }
}

/** SQLite's backup into a database that is in use: one transaction, after which its connections see the new content. */
async function replace(from: Database.Database, target: string, wait: WaitOptions): Promise<void> {
  const database = new Database(target, { fileMustExist: true, timeout: 0 });
  try {
    const read = (pragma: string): Promise<unknown> =>
      whenNotBusy(() => database.pragma(pragma, { simple: true }), wait);
    // Another page size cannot be written into a WAL.
    const otherSize = (await read('page_size')) !== from.pragma('page_size', { simple: true });
    if (otherSize && (await read('journal_mode')) === 'wal') {
      const toDelete = (): true | typeof BUSY =>
        database.pragma('journal_mode = DELETE', { simple: true }) === 'delete' ? true : BUSY;
      await whenNotBusy(toDelete, wait);
    }
    const deadlineMs = monotonicMs() + IMPORT_TIMEOUT_MS;
    const before = await read('schema_version');
    // better-sqlite3 takes "busy, 0 pages left" for the end. Only a finished backup raises the schema's version.
    do {
      if (monotonicMs() > deadlineMs) throw lockedError(wait.locks, IMPORT_TIMEOUT_MS);
      await from.backup(target, { progress: () => STEP_PAGES });
    } while ((await read('schema_version')) === before && (await pause()));
  } finally {
    database.close();
  }
}

const pause = (): Promise<true> => new Promise((resolve) => setTimeout(() => resolve(true), 20));

/** Removes a database from the mount with what SQLite keeps beside it; what is not there is no error. */
export function removeDatabase(context: ApplierContext, name: string): void {
  const path = mountPath(context, name);
  for (const side of ['', '-journal', '-shm', '-wal']) fs.rmSync(`${path}${side}`, { force: true });
}
