import fs from 'node:fs';

import type Database from 'better-sqlite3';

import { KiteError } from '../errors.js';
import { LtxDecoder } from '../ltx/decoder.js';
import type { ApplierContext } from './context.js';
import { DatabaseFiles } from './database-files.js';
import { WalTransaction } from './wal-writer.js';
import { holdWriters } from './write-lock.js';

interface Held {
  readonly database: Database.Database;
  readonly files: DatabaseFiles;
}

/**
 * On the primary: SQLite's write lock on a database that a replica writes (HALT), and that replica's transactions, written into
 * the WAL under this lock as any writer would. Writers here see BUSY meanwhile, readers go on.
 */
export class HaltWriters {
  readonly #context: ApplierContext;
  readonly #held = new Map<string, Held>();

  constructor(context: ApplierContext) {
    this.#context = context;
  }

  /** Rejects with ERR_APPLIER_LOCKED when the lock is not had in time, ERR_HALT_JOURNAL_MODE outside of WAL mode. */
  async take(name: string, timeoutMs: number): Promise<void> {
    if (this.#held.has(name)) throw new KiteError('ERR_HALT_HELD', `${name} is halted already`);
    const database = await holdWriters(this.#context, name, timeoutMs);
    try {
      // Asked under the lock, where nobody can change it any more.
      const mode = String(database.pragma('journal_mode', { simple: true }));
      if (mode !== 'wal') {
        const text = `${name} is in journal_mode=${mode} on the primary: a replica can write to it in WAL mode only`;
        throw new KiteError('ERR_HALT_JOURNAL_MODE', text);
      }
      const files = await DatabaseFiles.open(this.#context.mountDir, name, undefined);
      this.#held.set(name, { database, files });
    } catch (error) {
      database.close();
      throw error;
    }
  }

  /**
   * Commits the transaction in the LTX file at `path`, which was verified and follows what is here. Durable when it resolves: the
   * replica's application has perhaps asked for that, and cannot sync anything of this node.
   */
  async write(name: string, path: string): Promise<void> {
    const held = this.#held.get(name);
    // After a restart of this process the lock is gone, and others may have written.
    if (!held) throw new KiteError('ERR_HALT_ENDED', `the write lock of ${name} is not held any more`);
    const { files } = held;
    if (!files.areCurrent()) {
      throw new KiteError('ERR_APPLIER_IO', `${name}-wal or -shm was replaced by another file`);
    }
    const fd = fs.openSync(path, 'r');
    try {
      const ltx = LtxDecoder.fromFile(fd);
      const { pageSize, commitPages } = ltx.header;
      const wal = WalTransaction.begin(files, pageSize, Infinity);
      if (!wal) throw new KiteError('ERR_HALT_ENDED', `${name} has another page size in its WAL`);
      while (ltx.next()) {
        wal.add(ltx.pgno, ltx.page);
        if (wal.full) await new Promise(setImmediate);
      }
      if (wal.frames === 0) throw new KiteError('ERR_LTX_DAMAGED', `a transaction of ${name} has no page`);
      wal.commit(commitPages);
      fs.fsyncSync(files.walFd);
    } finally {
      fs.closeSync(fd);
    }
  }

  /**
   * Lets go of one database; nothing when it is not held. Returns our descriptors of it, which are to be closed when nothing else
   * in this process uses the database: closing any descriptor gives up all locks that the process has on the file.
   */
  release(name: string): DatabaseFiles | undefined {
    const held = this.#held.get(name);
    this.#held.delete(name);
    if (!held) return undefined;
    // Not COMMIT, which would vacuum where auto_vacuum has something to do. This connection knows nothing of what was
    // written under its lock, but it reads nothing any more either (trap 11).
    held.database.exec('ROLLBACK');
    held.database.close();
    return held.files;
  }

  get names(): readonly string[] {
    return [...this.#held.keys()];
  }
}
