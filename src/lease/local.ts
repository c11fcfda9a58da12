import { randomUUID } from 'node:crypto';
import { type FSWatcher, statSync, utimesSync, watch } from 'node:fs';
import { basename, dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import Database from 'better-sqlite3';
import { KiteError } from '../errors.js';
import { monotonicMs } from '../util/clock.js';
import { decodeMember, decodeRecord, encodeMember, encodeRecord } from './record.js';
import type { LeaseAdapter, LeaseRecord, Member, NodeProcess, VersionedRecord } from './types.js';

/** How often a watcher looks, one indexed read: where the system tells of changes, and where it does not. */
const LOOK_MS = 100;
const POLL_MS = 10;
const BUSY_RETRY_MS = 5;

/**
 * The embedded lease: one row in a SQLite file, for several processes of one host. Beside it each node
 * keeps an exclusive lock on a file of its own, which the system drops when the process ends however it
 * ends: so others need not wait for the ttl of a killed holder. A stopped process (SIGSTOP) keeps it.
 * Throws ERR_LEASE_DUPLICATE_NODE when a process with this node id has it open already.
 */
export function openLocalLease(options: { path: string; nodeId: string }): LeaseAdapter {
  return new LocalLease(options.path, options.nodeId);
}

interface LeaseRow {
  readonly generation: string;
  readonly version: number;
  readonly record: string | null;
}

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS lease (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    generation TEXT NOT NULL, -- a file that was deleted and made again repeats no version
    version INTEGER NOT NULL,
    record TEXT
  );
  CREATE TABLE IF NOT EXISTS member (node_id TEXT PRIMARY KEY, member TEXT NOT NULL);
`;

class LocalLease implements LeaseAdapter {
  readonly #path: string;
  readonly #nodeId: string;
  readonly #lock: Database.Database;
  #db: Database.Database | undefined;
  #inode = 0n;
  #writtenEpoch = -1n;
  #closed = false;
  #watcher: FSWatcher | undefined;
  #onWrite: () => void = () => undefined;

  constructor(path: string, nodeId: string) {
    this.#path = path;
    this.#nodeId = nodeId;
    try {
      // The timeout rides out others who test the lock at this moment.
      this.#lock = new Database(lockPath(path, nodeId), { timeout: 2000 });
    } catch (error) {
      throw this.#unreachable(error);
    }
    try {
      this.#lock.exec('BEGIN EXCLUSIVE');
    } catch (error) {
      this.#lock.close();
      if (!isBusy(error)) throw this.#unreachable(error);
      throw new KiteError(
        'ERR_LEASE_DUPLICATE_NODE',
        `Another process of this host runs as node ${nodeId} in the lease ${path}`,
        { cause: error },
      );
    }
  }

  read(timeoutMs: number): Promise<VersionedRecord> {
    return this.#attempt(timeoutMs, (db) => readRow(db));
  }

  compareAndSet(expected: string, record: LeaseRecord, timeoutMs: number): Promise<string | undefined> {
    return this.#attempt(timeoutMs, (db) => {
      // A new epoch must survive a power cut, or it would be given twice. Heartbeats need not, and an
      // fsync for each would stall this thread.
      const durable = record.epoch !== this.#writtenEpoch || !record.holder;
      db.pragma(`synchronous = ${durable ? 'FULL' : 'NORMAL'}`);
      const row = db
        .prepare<[string, string], { version: string }>(
          `UPDATE lease SET version = version + 1, record = ?
            WHERE generation || '-' || version = ? RETURNING generation || '-' || version AS version`,
        )
        .get(encodeRecord(record), expected);
      if (!row) return undefined;
      this.#writtenEpoch = record.epoch;
      this.#wakeWatchers();
      return row.version;
    });
  }

  /**
   * The write into the `-wal` has woken them too early: until its fsync has ended, and SQLite's wal-index in shared memory
   * has changed, of which nobody is told, they read the record of before.
   */
  #wakeWatchers(): void {
    try {
      const now = new Date();
      utimesSync(this.#path, now, now);
    } catch {
      // Then they see it when they look the next time.
    }
  }

  async watch(version: string, waitMs: number): Promise<VersionedRecord> {
    const untilMs = monotonicMs() + waitMs;
    for (;;) {
      this.#watcher ??= this.#watchFolder();
      // Before the look: what is written while it lasts is told by this.
      const written = new Promise<void>((resolve) => (this.#onWrite = resolve));
      const seen = await this.read(waitMs);
      if (seen.version !== version || this.#closed || monotonicMs() >= untilMs) return seen;
      await Promise.race([written, sleep(this.#watcher ? LOOK_MS : POLL_MS)]);
    }
  }

  /** Tells of changes of the record (see `#wakeWatchers`); undefined where the folder cannot be watched. */
  #watchFolder(): FSWatcher | undefined {
    const name = basename(this.#path);
    try {
      const watcher = watch(dirname(this.#path), { persistent: false }, (_event, file) => {
        if (file?.startsWith(name) === true) this.#onWrite();
      });
      watcher.on('error', () => {
        watcher.close();
        this.#watcher = undefined;
      });
      return watcher;
    } catch {
      return undefined;
    }
  }

  register(member: Member, timeoutMs: number): Promise<void> {
    return this.#attempt(timeoutMs, (db) => {
      db.pragma('synchronous = NORMAL');
      db.prepare('INSERT OR REPLACE INTO member (node_id, member) VALUES (?, ?)').run(
        member.nodeId,
        encodeMember(member),
      );
    });
  }

  members(timeoutMs: number): Promise<readonly Member[]> {
    return this.#attempt(timeoutMs, (db) =>
      db.prepare<[], string>('SELECT member FROM member ORDER BY node_id').pluck().all().map(decodeMember),
    );
  }

  unregister(nodeId: string, timeoutMs: number): Promise<void> {
    return this.#attempt(timeoutMs, (db) => {
      db.prepare('DELETE FROM member WHERE node_id = ?').run(nodeId);
    });
  }

  ended(process: NodeProcess): Promise<boolean> {
    // Our own id: this process has the lock, so no other process of it lives.
    if (process.nodeId === this.#nodeId) return Promise.resolve(true);
    let probe: Database.Database | undefined;
    try {
      const path = lockPath(this.#path, process.nodeId);
      probe = new Database(path, { readonly: true, fileMustExist: true, timeout: 0 });
      // Asks for a shared lock, which an exclusive one refuses; probes do not disturb one another.
      probe.prepare('SELECT count(*) FROM sqlite_master').get();
      return Promise.resolve(true);
    } catch {
      return Promise.resolve(false);
    } finally {
      probe?.close();
    }
  }

  close(): Promise<void> {
    this.#closed = true;
    this.#watcher?.close();
    this.#onWrite();
    this.#db?.close();
    this.#db = undefined;
    this.#lock.close();
    return Promise.resolve();
  }

  /** Runs `work`, again while another process writes, until the timeout. */
  async #attempt<T>(timeoutMs: number, work: (db: Database.Database) => T): Promise<T> {
    const untilMs = monotonicMs() + timeoutMs;
    for (;;) {
      try {
        return work(this.#open());
      } catch (error) {
        if (error instanceof KiteError) throw error;
        if (!isBusy(error) || monotonicMs() >= untilMs) throw this.#unreachable(error);
      }
      await sleep(BUSY_RETRY_MS);
    }
  }

  #open(): Database.Database {
    if (this.#closed) throw new KiteError('ERR_LEASE_UNREACHABLE', 'The lease is closed');
    // Somebody may delete the file: the processes that have it open must not go on in the old one.
    const inode = statSync(this.#path, { bigint: true, throwIfNoEntry: false })?.ino;
    if (this.#db && inode === this.#inode) return this.#db;
    this.#db?.close();
    this.#db = undefined;
    const db = new Database(this.#path, { timeout: 0 });
    try {
      // WAL, so that a reader that was stopped (SIGSTOP) holds nobody up.
      db.pragma('journal_mode = WAL');
      db.exec(SCHEMA);
      db.prepare('INSERT OR IGNORE INTO lease VALUES (1, ?, 0, NULL)').run(randomUUID());
    } catch (error) {
      db.close();
      throw error;
    }
    this.#inode = statSync(this.#path, { bigint: true }).ino;
    this.#db = db;
    return db;
  }

  #unreachable(error: unknown): KiteError {
    const message = error instanceof Error ? error.message : String(error);
    const foreign = (error as { code?: string }).code === 'SQLITE_NOTADB';
    const code = foreign ? 'ERR_LEASE_RECORD' : 'ERR_LEASE_UNREACHABLE';
    return new KiteError(code, `The lease file ${this.#path}: ${message}`, { cause: error });
  }
}

function readRow(db: Database.Database): VersionedRecord {
  const row = db.prepare<[], LeaseRow>('SELECT generation, version, record FROM lease').get()!;
  return {
    record: row.record === null ? undefined : decodeRecord(row.record),
    version: `${row.generation}-${row.version}`,
  };
}

const lockPath = (path: string, nodeId: string): string => `${path}-${encodeURIComponent(nodeId)}.lock`;

const isBusy = (error: unknown): boolean =>
  ((error as { code?: string }).code ?? '').startsWith('SQLITE_BUSY');
