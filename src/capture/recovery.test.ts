import { readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';

import type Database from 'better-sqlite3';
import fc from 'fast-check';
import { afterEach, expect, it } from 'vitest';

import { CaptureDatabase } from '../../test/helpers/capture-database.js';

/** What a start does before and after SQLite has touched the database; and random histories with crashes. */

const made: CaptureDatabase[] = [];
function make(crashed?: CaptureDatabase): CaptureDatabase {
  const database = new CaptureDatabase(crashed);
  made.push(database);
  return database;
}
afterEach(() => {
  for (const database of made.splice(0)) database.remove();
});

function inWal(): { t: CaptureDatabase; db: Database.Database } {
  const t = make();
  const db = t.connect();
  t.remember();
  db.exec('create table t(id integer primary key, x)');
  t.journalCommitted();
  t.remember();
  db.pragma('journal_mode = wal');
  t.journalCommitted();
  db.exec('insert into t(x) values (zeroblob(20000))');
  t.walCommitted();
  return { t, db };
}

it('adds commits of the WAL that the log lacks, one file, before SQLite touches anything', () => {
  const { t, db } = inWal();
  const { txid } = t.capture.position;
  db.exec("insert into t(x) values ('a')");
  db.exec("insert into t(x) values ('b')");
  const after = make(t);
  after.capture.load();
  expect(after.capture.position.txid).toBe(txid + 2n);
  after.verify();
  expect(after.reload()).toEqual({ current: false });
  expect(after.capture.position.txid).toBe(txid + 2n);
  db.close();
});

it('takes all commits of a WAL that was restarted after the last one in the log', () => {
  const { t, db } = inWal();
  t.checkpoint(db, 'restart');
  const { txid } = t.capture.position;
  db.exec("insert into t(x) values ('a')");
  const after = make(t);
  after.capture.load();
  expect(after.capture.position.txid).toBe(txid + 1n);
  after.verify();
  db.close();
});

it('undoes a logged journal commit that SQLite rolls back, because the crash came before its unlink', () => {
  const t = make();
  const db = t.connect();
  t.remember();
  db.exec('create table t(id integer primary key, x); insert into t(x) values (zeroblob(40000))');
  t.journalCommitted();
  const { txid } = t.capture.position;
  const before = readFileSync(t.paths.database);
  t.remember();
  db.exec('update t set x = randomblob(60000)');
  t.journalCommitted();
  db.close();
  writeFileSync(t.paths.database, before); // as the hot journal makes it
  t.restart();
  expect(t.capture.position.txid).toBe(txid + 2n);
  t.verify();
});

it('rolls a first transaction back to nothing as a deletion', () => {
  const t = make();
  const db = t.connect();
  t.remember();
  db.exec('create table t(x)');
  t.journalCommitted();
  db.close();
  truncateSync(t.paths.database, 0);
  t.restart();
  expect(t.files.at(-1)).toMatchObject({ commitPages: 0 });
});

it('reports damage and logs nothing when a page changed that no transaction can have changed', () => {
  const { t, db } = inWal();
  t.checkpoint(db, 'truncate');
  db.close();
  const { txid } = t.capture.position;
  const bytes = readFileSync(t.paths.database);
  bytes[3 * 4096 + 100]! ^= 1;
  writeFileSync(t.paths.database, bytes);
  expect(() => t.restart()).toThrow(expect.objectContaining({ code: 'ERR_CAPTURE_DAMAGED' }));
  expect(t.capture.position.txid).toBe(txid);
  rmSync(t.paths.database);
  expect(() => t.restart()).toThrow(expect.objectContaining({ code: 'ERR_CAPTURE_DAMAGED' }));
  writeFileSync(t.paths.database, 'no database at all');
  expect(() => t.restart()).toThrow(expect.objectContaining({ code: 'ERR_CAPTURE_DAMAGED' }));
});

it('takes flushed checksums as they are, and page 1 alone after a replica’s copy became the primary’s', () => {
  const { t, db } = inWal();
  t.checkpoint(db, 'truncate');
  t.capture.flush();
  db.close();
  expect(t.reload()).toEqual({ current: true });
  t.capture.reconcile(false);
  const { txid } = t.capture.position;
  const bytes = readFileSync(t.paths.database);
  bytes.set([1, 1], 18);
  writeFileSync(t.paths.database, bytes);
  t.reload();
  t.capture.reconcile(false);
  expect(t.capture.position.txid).toBe(txid + 1n);
  t.verify();
});

it('logs the whole database when neither the checksums nor the log’s beginning are left', () => {
  const { t, db } = inWal();
  db.exec("insert into t(x) values ('a')");
  t.walCommitted();
  t.log.removeBefore(t.capture.position.txid);
  db.exec("insert into t(x) values ('b')");
  const after = make(t);
  after.capture.load();
  after.capture.reconcile(true);
  const last = after.files.at(-1);
  expect(last?.maxTxid).toBe(t.capture.position.txid + 1n);
  expect(after.image.equals(after.committed())).toBe(true);
  db.close();
});

type Step =
  | { kind: 'write' | 'rollback'; rows: number; bytes: number }
  | { kind: 'delete' | 'vacuum' | 'restart' | 'truncate' | 'dead' | 'switch' | 'crash' | 'crash-inside' };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom('write', 'rollback'),
      rows: fc.integer({ min: 1, max: 30 }),
      bytes: fc.constantFrom(10, 700, 5000, 30_000),
    }),
  },
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        'delete',
        'vacuum',
        'restart',
        'truncate',
        'dead',
        'switch',
        'crash',
        'crash-inside',
      ),
    }),
  },
);

it('keeps the log equal to the database through random histories with dead writers and crashes', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(512, 1024, 4096, 65_536),
      fc.array(fc.tuple(step, fc.boolean()), { minLength: 1, maxLength: 25 }),
      (pageSize, steps) => {
        const connections: Database.Database[] = [];
        try {
          playHistory(pageSize, steps, connections);
        } finally {
          for (const db of connections) db.close();
          for (const t of made.splice(0)) t.remove();
        }
      },
    ),
    { numRuns: 40, interruptAfterTimeLimit: 4000 },
  );
});

function playHistory(
  pageSize: number,
  steps: readonly (readonly [Step, boolean])[],
  connections: Database.Database[],
): void {
  let t = make();
  let db = t.connect();
  connections.push(db);
  let wal = false;
  db.pragma(`page_size = ${pageSize}`);
  db.pragma('cache_size = 4');
  const execute = (sql: string, seen: boolean): void => {
    if (!wal) t.remember();
    db.exec(sql);
    if (!wal) t.journalCommitted();
    else if (seen) t.walCommitted();
  };
  execute('create table t(id integer primary key, x)', true);
  for (const [what, seen] of steps) {
    switch (what.kind) {
      case 'write':
      case 'rollback': {
        const insert = `insert into t(x) values (randomblob(${what.bytes}));`;
        const update = `update t set x = randomblob(${what.bytes}) where id % 3 = 1;`;
        const end = what.kind === 'write' ? 'commit' : 'rollback';
        execute(`begin; ${insert.repeat(what.rows)} ${update} ${end}`, seen);
        break;
      }
      case 'delete':
        execute('delete from t where id % 2 = 0', seen);
        break;
      case 'vacuum':
        execute('vacuum', seen);
        break;
      case 'restart':
      case 'truncate':
        if (wal) t.checkpoint(db, what.kind);
        break;
      case 'dead': {
        if (!wal || (statSync(t.paths.wal, { throwIfNoEntry: false })?.size ?? 0) === 0) break;
        // As the kernel would: the next write of a living writer lands on the dead one's frames.
        t.walCommitted();
        const { fromBytes } = t.deadCommit('insert into t(x) values (randomblob(3000))');
        if (seen) t.walCommitted();
        t.beforeWalChange('overwrite', fromBytes);
        truncateSync(t.paths.wal, fromBytes);
        break;
      }
      case 'switch':
        if (wal) {
          t.checkpoint(db, 'truncate');
          t.beforeWalChange('unlink');
        }
        t.remember();
        db.pragma(`journal_mode = ${wal ? 'delete' : 'wal'}`);
        t.journalCommitted();
        wal = !wal;
        break;
      case 'crash':
      case 'crash-inside': {
        if (what.kind === 'crash-inside') {
          db.exec('begin; update t set x = randomblob(4000)');
          if (wal) t.walCommitted();
        }
        t = make(t);
        if (seen) t.capture.load();
        else t.reload();
        db = t.connect();
        connections.push(db);
        db.prepare('select count(*) from t').get();
        t.capture.reconcile(true);
        t.verifyReaders(db);
        db.pragma('cache_size = 4');
        break;
      }
    }
  }
  if (wal) t.walCommitted();
  t.verifyReaders(db);
}
