import {
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import Database from 'better-sqlite3';

import { DatabaseCapture } from '../../src/capture/database-capture.js';
import type { WalChange } from '../../src/capture/messages.js';
import { DatabaseChecksum, pageChecksumInto } from '../../src/ltx/checksum.js';
import { LtxDecoder } from '../../src/ltx/decoder.js';
import { lockPgno } from '../../src/ltx/format.js';
import { NO_POSITION } from '../../src/ltx/position.js';
import { databasePaths } from '../../src/store/data-directory.js';
import { Log } from '../../src/store/log.js';
import type { LogFile } from '../../src/store/types.js';

/**
 * A database directory, real SQLite on it, and capture called at the moments at which the mount would call
 * it. What capture logs is applied to an image, which must always be the committed database.
 */
export class CaptureDatabase {
  readonly dataDir = mkdtempSync(join(tmpdir(), 'kitefs-capture-'));
  readonly paths = databasePaths(this.dataDir, 'app.db');
  readonly files: LogFile[] = [];
  image: Buffer = Buffer.alloc(0);
  log: Log;
  capture: DatabaseCapture;
  compensations = 0;
  #before: Buffer = Buffer.alloc(0);

  /** An empty directory, or what a crash leaves of another one: its files without any memory. */
  constructor(crashed?: CaptureDatabase) {
    mkdirSync(this.paths.directory, { recursive: true });
    if (crashed) {
      cpSync(crashed.paths.directory, this.paths.directory, { recursive: true });
      rmSync(`${this.paths.database}-shm`, { force: true });
    }
    this.log = Log.open(this.paths.ltx, { repair: true });
    for (const file of this.log.filesAfter(NO_POSITION) ?? []) this.#apply(file);
    this.capture = this.#open();
    if (!crashed) this.capture.load();
  }

  /**
   * A commit whose writer was killed before the wal-index: its frames are in the WAL, and no connection
   * knows. `restarts`: it had just restarted the WAL, so that they follow a header of its own.
   */
  deadCommit(sql: string, options: { restarts?: boolean } = {}): { fromBytes: number } {
    const fromBytes = statSync(this.paths.wal).size;
    const copy = mkdtempSync(join(tmpdir(), 'kitefs-capture-dead-'));
    const path = join(copy, 'database');
    copyFileSync(this.paths.database, path);
    copyFileSync(this.paths.wal, `${path}-wal`);
    const db = new Database(path);
    db.pragma('wal_autocheckpoint = 0');
    if (options.restarts === true) db.pragma('wal_checkpoint(PASSIVE)');
    db.exec(sql);
    const wal = readFileSync(`${path}-wal`);
    db.close();
    rmSync(copy, { recursive: true });
    const at = options.restarts === true ? 0 : fromBytes;
    const fd = openSync(this.paths.wal, 'r+');
    writeSync(fd, wal, at, wal.length - at, at);
    closeSync(fd);
    return { fromBytes };
  }

  connect(options: Database.Options = {}): Database.Database {
    const db = new Database(this.paths.database, options);
    db.pragma('wal_autocheckpoint = 0');
    return db;
  }

  /** As after a crash of the daemon: nothing is flushed, everything is read again. */
  restart(options: { all?: boolean } = {}): void {
    this.reload();
    this.capture.reconcile(options.all ?? true);
  }

  /** Only the first half of a restart: before SQLite has touched anything. */
  reload(): { current: boolean } {
    this.capture.close();
    this.log = Log.open(this.paths.ltx, { repair: true });
    this.capture = this.#open();
    return this.capture.load();
  }

  /** The mount has seen commits up to the WAL's end. */
  walCommitted(): void {
    const end = sizeOf(this.paths.wal);
    while (run(this.capture.captureWal(end)));
  }

  /** The mount asks before it changes the WAL; capture may not have looked at what was published until then. */
  beforeWalChange(kind: WalChange['kind'], fromBytes = 0): void {
    this.capture.published(sizeOf(this.paths.wal));
    this.capture.beforeWalChange({ kind, fromBytes, durable: false });
  }

  /** Call before a statement in a rollback mode; with `journalCommitted` after it. */
  remember(): void {
    this.#before = existsSync(this.paths.database) ? readFileSync(this.paths.database) : Buffer.alloc(0);
  }

  /** The application ended a journal. Pages that SQLite never wrote are not named as dirty (trap 9). */
  journalCommitted(kind: 'unlink' | 'truncate' | 'header' = 'unlink'): void {
    const now = readFileSync(this.paths.database);
    const pageSize = pageSizeOf(now);
    const dirtyPages: number[] = [];
    for (let pgno = 1; (pgno - 1) * pageSize < now.length; pgno++) {
      const page = now.subarray((pgno - 1) * pageSize, pgno * pageSize);
      const old = this.#before.subarray((pgno - 1) * pageSize, pgno * pageSize);
      const grown = old.length === 0;
      if (grown ? page.some((byte) => byte !== 0) : !page.equals(old)) dirtyPages.push(pgno);
    }
    const oldSizeBytes = this.#before.length;
    this.capture.beforeJournalCommit({ kind, oldSizeBytes, dirtyPages, durable: false });
  }

  /** Copies the whole WAL into `database`, then ends it as asked, with capture told in between. */
  checkpoint(db: Database.Database, end: 'restart' | 'truncate'): void {
    db.pragma('wal_checkpoint(PASSIVE)');
    this.beforeWalChange(end === 'restart' ? 'header' : 'truncate');
    db.pragma(`wal_checkpoint(${end.toUpperCase()})`);
  }

  /** The database as SQLite recovers it, from a copy. */
  committed(): Buffer {
    const copy = mkdtempSync(join(tmpdir(), 'kitefs-capture-copy-'));
    try {
      const path = join(copy, 'database');
      if (!existsSync(this.paths.database)) return Buffer.alloc(0);
      copyFileSync(this.paths.database, path);
      if (existsSync(this.paths.wal)) copyFileSync(this.paths.wal, `${path}-wal`);
      const db = new Database(path);
      db.pragma('wal_checkpoint(TRUNCATE)');
      db.close();
      const bytes = readFileSync(path);
      const pages = bytes.length >= 100 ? bytes.readUInt32BE(28) : 0;
      return bytes.subarray(0, pages * pageSizeOf(bytes));
    } finally {
      rmSync(copy, { recursive: true });
    }
  }

  /** Throws unless the log, applied in order, is the committed database with the right checksums. */
  verify(): void {
    this.#checkImage(this.committed());
  }

  /**
   * As `verify`, against what readers see while `db` is open. Asked of a new connection: the cache of one that
   * wrote may hold free pages that SQLite does not write (sqlite3PagerDontWrite).
   */
  verifyReaders(db: Database.Database): void {
    if (!db.open) throw new Error('the last connection to close would change the files');
    const reader = new Database(this.paths.database, { readonly: true });
    this.#checkImage(reader.serialize());
    reader.close();
  }

  remove(): void {
    this.capture.close();
    rmSync(this.dataDir, { recursive: true, force: true });
  }

  #checkImage(expected: Buffer): void {
    const { checksum } = this.capture.position;
    if (!this.image.equals(expected)) {
      const pageSize = pageSizeOf(expected.length > 0 ? expected : this.image);
      const different: number[] = [];
      for (let at = 0; at < Math.max(expected.length, this.image.length); at += pageSize) {
        const equal = this.image.subarray(at, at + pageSize).equals(expected.subarray(at, at + pageSize));
        if (!equal) different.push(at / pageSize + 1);
      }
      const sizes = `${this.image.length} for ${expected.length} bytes`;
      throw new Error(`the log is another database: ${sizes}, pages ${different.slice(0, 10).join(' ')}`);
    }
    if (this.image.length > 0 && checksumOf(this.image) !== checksum) {
      throw new Error('the position has another checksum than the database');
    }
  }

  #open(): DatabaseCapture {
    return new DatabaseCapture({
      name: 'app.db',
      paths: this.paths,
      log: this.log,
      nodeId: 7n,
      epoch: 1n,
      mayAppend: () => {},
      nowMs: () => 1000,
      onFile: ({ file }) => this.#apply(file),
      onCompensated: () => (this.compensations += 1),
    });
  }

  #apply(file: LogFile): void {
    this.files.push(file);
    this.image = applyFile(this.image, readFileSync(file.path));
  }
}

const sizeOf = (path: string): number => statSync(path, { throwIfNoEntry: false })?.size ?? 0;

const pageSizeOf = (image: Buffer): number => {
  const size = image.length >= 100 ? image.readUInt16BE(16) : 4096;
  return size === 1 ? 65536 : size;
};

function run(job: Generator<void, boolean>): boolean {
  for (;;) {
    const step = job.next();
    if (step.done === true) return step.value;
  }
}

function checksumOf(image: Buffer): bigint {
  const pageSize = pageSizeOf(image);
  const total = new DatabaseChecksum();
  const sum = new Uint32Array(2);
  for (let pgno = 1; (pgno - 1) * pageSize < image.length; pgno++) {
    if (pgno === lockPgno(pageSize)) continue;
    pageChecksumInto(pgno, image.subarray((pgno - 1) * pageSize, pgno * pageSize), sum, 0);
    total.toggle(sum[0]!, sum[1]!);
  }
  return total.value;
}

/** An image after one more LTX file, whose page size may be another. */
export function applyFile(image: Buffer, file: Buffer): Buffer {
  const ltx = LtxDecoder.fromBuffer(file);
  const { pageSize, commitPages } = ltx.header;
  const next = Buffer.alloc(pageSize * commitPages);
  image.copy(next);
  while (ltx.next()) ltx.page.copy(next, (ltx.pgno - 1) * pageSize);
  return next;
}
