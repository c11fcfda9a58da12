import { unlinkSync } from 'node:fs';

import { afterEach, describe, expect, it } from 'vitest';

import { CaptureDatabase } from '../../test/helpers/capture-database.js';

let made: CaptureDatabase[] = [];
const make = (): CaptureDatabase => {
  const database = new CaptureDatabase();
  made.push(database);
  return database;
};
afterEach(() => {
  for (const database of made) database.remove();
  made = [];
});

const PAGE_SIZES = [512, 1024, 4096, 8192, 65536];

describe('capture of a WAL', () => {
  it.each(PAGE_SIZES)('logs each commit of a database with pages of %i bytes', (pageSize) => {
    const t = make();
    const db = t.connect();
    db.pragma(`page_size = ${pageSize}`);
    t.remember();
    db.exec('create table t(x)');
    t.journalCommitted();
    t.remember();
    db.pragma('journal_mode = wal');
    t.journalCommitted();
    t.verify();
    for (let i = 0; i < 20; i++) {
      db.prepare('insert into t values (randomblob(?))').run(i * 300);
      t.walCommitted();
      if (i % 7 === 6) t.checkpoint(db, i % 2 === 0 ? 'restart' : 'truncate');
      t.verify();
    }
    expect(t.capture.position.txid).toBe(22n);
    expect(t.compensations).toBe(0);
    db.close();
  });

  it('puts several commits into one file, and the newest page wins', () => {
    const t = make();
    const db = t.connect();
    t.remember();
    db.exec('create table t(x)');
    t.journalCommitted();
    t.remember();
    db.pragma('journal_mode = wal');
    t.journalCommitted();
    for (let i = 0; i < 50; i++) db.prepare('insert into t values (?)').run(i);
    t.walCommitted();
    expect(t.files.at(-1)).toMatchObject({ minTxid: 3n, maxTxid: 52n });
    t.verify();
    db.close();
  });

  it('logs nothing of a transaction that runs or is rolled back, also when its frames are rewritten', () => {
    const t = make();
    const db = t.connect();
    t.remember();
    db.exec('create table t(id integer primary key, x)');
    t.journalCommitted();
    t.remember();
    db.pragma('journal_mode = wal');
    t.journalCommitted();
    db.pragma('cache_size = 5');
    const { txid } = t.capture.position;
    for (const end of ['rollback', 'commit']) {
      db.exec('begin');
      for (let i = 0; i < 200; i++) {
        db.prepare('insert into t(x) values (randomblob(900))').run();
        db.prepare('update t set x = randomblob(800) where id % 50 = 1').run();
        t.walCommitted();
      }
      expect(t.capture.position.txid).toBe(txid);
      db.exec(end);
      t.walCommitted();
    }
    expect(t.capture.position.txid).toBe(txid + 1n);
    t.verify();
    db.close();
  });

  it('follows a VACUUM that shrinks and growth after it', () => {
    const t = make();
    const db = t.connect();
    t.remember();
    db.exec('create table t(x)');
    t.journalCommitted();
    t.remember();
    db.pragma('journal_mode = wal');
    t.journalCommitted();
    db.exec('begin; ' + 'insert into t values (randomblob(3000));'.repeat(100) + 'commit');
    t.walCommitted();
    t.verify();
    db.exec('delete from t where rowid > 5; vacuum');
    t.walCommitted();
    t.verify();
    db.exec('begin; ' + 'insert into t values (randomblob(3000));'.repeat(50) + 'commit');
    db.exec('delete from t where rowid > 3; vacuum');
    db.exec('insert into t values (randomblob(9000))');
    t.walCommitted();
    t.verify();
    t.checkpoint(db, 'truncate');
    t.verify();
    db.close();
  });
});

describe('capture of rollback journals', () => {
  it.each(['delete', 'truncate', 'persist'])('logs each commit in mode %s, and no rollback', (mode) => {
    const t = make();
    const db = t.connect();
    db.pragma(`journal_mode = ${mode}`);
    db.pragma('cache_size = 5');
    let txid = 0n;
    const execute = (sql: string): void => {
      t.remember();
      db.exec(sql);
      t.journalCommitted();
      t.verify();
    };
    execute('create table t(id integer primary key, x)');
    expect(t.capture.position.txid).toBe(++txid);
    for (let i = 0; i < 8; i++) {
      execute(`insert into t(x) values (randomblob(${i * 500}))`);
      expect(t.capture.position.txid).toBe(++txid);
      execute(`begin; insert into t(x) select randomblob(3000) from t; update t set x = 1; rollback`);
      expect(t.capture.position.txid).toBe(txid);
    }
    execute('delete from t where id > 3; vacuum');
    execute('insert into t(x) select randomblob(5000) from t');
    db.close();
  });

  it('logs pages by which the database grew though SQLite never wrote them', () => {
    const t = make();
    const db = t.connect();
    db.pragma('secure_delete = off');
    t.remember();
    // Pages that are freed in the transaction that adds them are not written at all (trap 9).
    db.exec(`begin; create table a(x); create table b(x);
      insert into a values (zeroblob(400000)); insert into b values (1); drop table a; commit`);
    t.journalCommitted();
    expect(t.files[0]).toMatchObject({ minTxid: 1n, maxTxid: 1n });
    t.verify();
    db.close();
  });

  it('takes a change of the page size as a new whole database', () => {
    const t = make();
    const db = t.connect();
    t.remember();
    db.exec('create table t(x); insert into t values (randomblob(50000))');
    t.journalCommitted();
    for (const pageSize of [512, 65536, 4096]) {
      t.remember();
      db.pragma(`page_size = ${pageSize}`);
      db.exec('vacuum');
      t.journalCommitted();
      expect(t.files.at(-1)).toMatchObject({ pageSize });
      t.verify();
    }
    db.close();
  });

  it('follows the journal mode from one to the other and back', () => {
    const t = make();
    const db = t.connect();
    t.remember();
    db.exec('create table t(x)');
    t.journalCommitted();
    for (let i = 0; i < 5; i++) {
      t.remember();
      db.pragma('journal_mode = wal');
      t.journalCommitted();
      db.exec('insert into t values (randomblob(2000))');
      t.walCommitted();
      t.verify();
      t.checkpoint(db, 'truncate');
      t.beforeWalChange('unlink');
      t.remember();
      db.pragma('journal_mode = delete');
      t.journalCommitted();
      t.verify();
      t.remember();
      db.exec('insert into t values (randomblob(2000))');
      t.journalCommitted();
      t.verify();
    }
    expect(t.compensations).toBe(0);
    db.close();
  });
});

describe('a database as a whole', () => {
  it('is adopted once as TXID 1, later by its difference', () => {
    const t = make();
    const db = t.connect();
    db.exec('create table t(x); insert into t values (randomblob(90000))');
    t.capture.adopt();
    expect(t.files).toMatchObject([{ minTxid: 1n, maxTxid: 1n }]);
    t.verify();
    db.exec('insert into t values (7)');
    t.capture.adopt();
    expect(t.files[1]!.sizeBytes).toBeLessThan(10_000);
    t.verify();
    t.capture.adopt();
    expect(t.files.length).toBe(2);
    db.close();
  });

  it('is dropped by a deletion, and made again in the same history', () => {
    const t = make();
    let db = t.connect();
    t.remember();
    db.exec('create table t(x)');
    t.journalCommitted();
    db.close();
    t.capture.drop();
    expect(t.files.at(-1)).toMatchObject({ commitPages: 0, postApplyChecksum: 1n << 63n });
    unlinkSync(t.paths.database);
    t.reload();
    db = t.connect();
    t.remember();
    db.exec('create table other(y)');
    t.journalCommitted();
    expect(t.files.at(-1)).toMatchObject({ minTxid: 3n, preApplyChecksum: 1n << 63n });
    t.verify();
    db.close();
  });

  it('is read page by page as it is committed, while a transaction runs', () => {
    const t = make();
    const db = t.connect();
    t.remember();
    db.exec('create table t(x); insert into t values (randomblob(50000))');
    t.journalCommitted();
    const pgnos = Array.from({ length: 20 }, (_, i) => i + 1);
    const whole = t.capture.readCommitted(pgnos);
    expect(Buffer.concat(whole.pages.map((page) => page.data)).equals(t.image)).toBe(true);
    db.pragma('cache_size = 3');
    db.pragma('cache_spill = 1');
    db.exec('begin; update t set x = randomblob(50000)');
    const during = t.capture.readCommitted(pgnos);
    expect(during.retry.length).toBeGreaterThan(0);
    for (const { pgno, data } of during.pages) {
      expect(t.image.subarray((pgno - 1) * 4096, pgno * 4096).equals(data)).toBe(true);
    }
    const restored = t.image.subarray(4096, 3 * 4096);
    expect(t.capture.restoresCommitted(4096, restored)).toBe(true);
    expect(t.capture.restoresCommitted(8192, restored)).toBe(false);
    db.exec('rollback');
    expect(t.capture.readCommitted(pgnos).retry).toEqual([]);
    db.close();
  });
});
