import fs from 'node:fs';

import Database from 'better-sqlite3';

import { KiteError } from '../errors.js';
import {
  parseDatabaseHeader,
  READ_VERSION_OFFSET,
  WAL_VERSION,
  WRITE_VERSION_OFFSET,
} from '../sqlite/database-header.js';
import { mountPath, type ApplierContext } from './context.js';
import { DatabaseFiles } from './database-files.js';
import { readFully } from './descriptor-io.js';
import { databaseLocks, walWriteLock } from '../util/lock-holder.js';
import { PageReader } from './page-reader.js';
import { WalTransaction } from './wal-writer.js';
import { BUSY, isBusy, whenNotBusy, type WaitOptions } from './write-lock.js';

/**
 * A lasting SQLite connection to a replica's database, in WAL mode, with our own descriptors beside it. While it is
 * open no application's connection is the last one, which would checkpoint and delete the WAL.
 */
export class WalConnection {
  readonly files: DatabaseFiles;
  readonly #path: string;
  readonly #wait: WaitOptions;
  #database: Database.Database;
  #begin: Database.Statement;
  #commit: Database.Statement;
  #rollback: Database.Statement;

  private constructor(path: string, database: Database.Database, files: DatabaseFiles, wait: WaitOptions) {
    this.#path = path;
    this.files = files;
    this.#wait = wait;
    this.#database = database;
    this.#begin = database.prepare('BEGIN IMMEDIATE');
    this.#commit = database.prepare('COMMIT');
    this.#rollback = database.prepare('ROLLBACK');
  }

  /** Opens a database that exists. One that is not in WAL mode is brought into it; its content stays the same. */
  static async open(context: ApplierContext, name: string, signal: AbortSignal): Promise<WalConnection> {
    const path = mountPath(context, name);
    const wait: WaitOptions = {
      locks: [walWriteLock(path), databaseLocks(path)],
      onBlocked: (waitedMs, holder) => context.emit({ kind: 'blocked', name, waitedMs, holder }),
      signal,
    };
    const database = connect(path);
    try {
      const firstPage = await toWal(database, path, wait);
      // The first read makes `-wal` and `-shm`, or recovers them.
      await whenNotBusy(() => database.pragma('schema_version'), wait);
      const connection = new WalConnection(
        path,
        database,
        await DatabaseFiles.open(context.mountDir, name, context.arm),
        wait,
      );
      if (firstPage) await connection.#putBack(firstPage);
      return connection;
    } catch (error) {
      database.close();
      throw error;
    }
  }

  /**
   * Runs `work`, which appends to the WAL, under the WAL write lock. The turn ends with COMMIT: SQLite itself has
   * changed nothing, and ROLLBACK would take the new wal-index header into the connection without dropping its
   * old pages (trap 11). Only where COMMIT would change something (`vacuums`) it is ROLLBACK, and another connection goes on.
   */
  async writing<T>(work: () => Promise<T> | T, vacuums: boolean): Promise<T> {
    await this.#lock();
    try {
      this.#checkFiles();
      return await work();
    } finally {
      if (vacuums) {
        this.#rollback.run();
        this.#renew();
      } else {
        this.#commit.run();
      }
    }
  }

  /** Runs `work`, which appends nothing, under the WAL write lock: nobody commits or restarts the WAL. */
  async reading<T>(work: () => Promise<T> | T): Promise<T> {
    await this.#lock();
    try {
      this.#checkFiles();
      return await work();
    } finally {
      this.#rollback.run();
    }
  }

  /** As `reading`, when the lock can be had at once; returns whether `work` was run. */
  tryReading(work: () => void): boolean {
    try {
      this.#begin.run();
    } catch (error) {
      if (isBusy(error)) return false;
      throw error;
    }
    try {
      this.#checkFiles();
      work();
      return true;
    } finally {
      this.#rollback.run();
    }
  }

  /** Empties the WAL, waiting for readers that still need it: another page size cannot begin before. */
  async restartWal(): Promise<void> {
    await whenNotBusy(() => {
      const [result] = this.#database.pragma('wal_checkpoint(TRUNCATE)') as [{ busy: number }];
      return result.busy === 0 ? true : BUSY;
    }, this.#wait);
  }

  /** The last one of all processes to close also checkpoints and deletes the WAL. */
  close(): void {
    this.#database.close();
    this.files.close();
  }

  /** A new SQLite connection in place of the old, which is never without one. */
  #renew(): void {
    const old = this.#database;
    this.#database = connect(this.#path);
    this.#database.pragma('schema_version');
    this.#begin = this.#database.prepare('BEGIN IMMEDIATE');
    this.#commit = this.#database.prepare('COMMIT');
    this.#rollback = this.#database.prepare('ROLLBACK');
    old.close();
  }

  async #lock(): Promise<void> {
    await whenNotBusy(() => this.#begin.run(), this.#wait);
  }

  #checkFiles(): void {
    if (this.files.areCurrent()) return;
    throw new KiteError('ERR_APPLIER_IO', `${this.#path}-wal or -shm was replaced by another file`);
  }

  /** Page 1 as the primary has it: the real PRAGMA has changed more than the journal-mode bytes (trap 22). */
  async #putBack(firstPage: Buffer): Promise<void> {
    firstPage[WRITE_VERSION_OFFSET] = WAL_VERSION;
    firstPage[READ_VERSION_OFFSET] = WAL_VERSION;
    await this.writing(() => {
      const { pageCount } = new PageReader(this.files);
      const wal = WalTransaction.begin(this.files, firstPage.length, 1);
      wal?.add(1, firstPage);
      wal?.commit(pageCount);
    }, vacuumsAtCommit(firstPage));
  }
}

/**
 * Whether SQLite would vacuum at a COMMIT that follows this page 1: auto_vacuum=FULL with free pages, which an
 * application can arrange. Offsets of sqlite.org/fileformat2.html §1.3: free pages, auto_vacuum, incremental.
 */
export const vacuumsAtCommit = (firstPage: Buffer): boolean =>
  firstPage.readUInt32BE(36) > 0 && firstPage.readUInt32BE(52) > 0 && firstPage.readUInt32BE(64) === 0;

function connect(path: string): Database.Database {
  // A busy timeout would put this thread to sleep, and with it all other databases.
  const database = new Database(path, { fileMustExist: true, timeout: 0 });
  // Never in the middle of a turn: checkpoints are made where nobody waits for them.
  database.pragma('wal_autocheckpoint = 0');
  return database;
}

/** Brings a database into WAL mode; returns page 1 as it was, or undefined when nothing was to be done. */
async function toWal(
  database: Database.Database,
  path: string,
  wait: WaitOptions,
): Promise<Buffer | undefined> {
  const mode = await whenNotBusy(() => {
    // Rolls back a hot journal.
    database.pragma('schema_version');
    return database.pragma('journal_mode', { simple: true });
  }, wait);
  if (mode === 'wal') return undefined;
  const firstPage = readFirstPage(path);
  await whenNotBusy(
    () => (database.pragma('journal_mode = WAL', { simple: true }) === 'wal' ? true : BUSY),
    wait,
  );
  return firstPage;
}

function readFirstPage(path: string): Buffer | undefined {
  const fd = fs.openSync(path, 'r');
  try {
    const header = Buffer.alloc(100);
    readFully(fd, header, 0);
    const page = Buffer.alloc(parseDatabaseHeader(header)?.pageSize ?? 0);
    return readFully(fd, page, 0) === page.length && page.length > 0 ? page : undefined;
  } finally {
    // SQLite holds no lock on a rollback-mode database between statements, so none is lost.
    fs.closeSync(fd);
  }
}
