import type Database from 'better-sqlite3';
import { afterEach, describe, expect, it } from 'vitest';

import { CaptureDatabase } from '../../test/helpers/capture-database.js';

/**
 * Trap 1: a writer is killed between its commit frame and its wal-index update. A WAL scan sees the row,
 * the primary's readers never do; the log must end with what they see, in each way in which it goes.
 */

let t: CaptureDatabase;
let db: Database.Database;
afterEach(() => {
  db.close();
  t.remove();
});

function start(pageSize = 4096): void {
  t = new CaptureDatabase();
  db = t.connect();
  db.pragma(`page_size = ${pageSize}`);
  t.remember();
  db.exec('create table t(id integer primary key, x)');
  t.journalCommitted();
  t.remember();
  db.pragma('journal_mode = wal');
  t.journalCommitted();
  db.exec('insert into t(x) values (zeroblob(20000))');
  db.exec('insert into t(x) values (zeroblob(20000))');
  t.walCommitted();
  t.verifyReaders(db);
}

const DEAD = [
  "insert into t(x) values ('dead')",
  'insert into t(x) values (zeroblob(90000))', // grows
  'delete from t; vacuum', // shrinks
];

describe.each(DEAD)('a dead writer’s commit (%s)', (sql) => {
  it.each([512, 4096])(
    'is compensated when a TRUNCATE checkpoint drops it, pages of %i bytes',
    (pageSize) => {
      start(pageSize);
      t.deadCommit(sql);
      t.walCommitted();
      expect(() => t.verifyReaders(db)).toThrow('another database');
      t.checkpoint(db, 'truncate');
      t.verifyReaders(db);
      expect(t.compensations).toBe(1);
      db.exec('insert into t(x) values (1)');
      t.walCommitted();
      t.verifyReaders(db);
    },
  );

  it('is compensated when the last connection closes and the WAL is unlinked', () => {
    start();
    t.deadCommit(sql);
    db.pragma('wal_checkpoint(PASSIVE)');
    t.beforeWalChange('unlink');
    db.close();
    t.verify();
    expect(t.compensations).toBe(1);
  });

  it('is compensated when the dead writer had just restarted the WAL', () => {
    start();
    db.pragma('wal_checkpoint(PASSIVE)');
    t.beforeWalChange('header');
    t.deadCommit(sql, { restarts: true });
    t.walCommitted();
    expect(() => t.verifyReaders(db)).toThrow('another database');
    t.beforeWalChange('header');
    expect(t.compensations).toBe(1);
    db.exec('insert into t(x) values (1)');
    t.walCommitted();
    t.verifyReaders(db);
  });

  it('is compensated when the next writer overwrites its captured frames', () => {
    start();
    const { fromBytes } = t.deadCommit(sql);
    t.walCommitted();
    t.beforeWalChange('overwrite', fromBytes);
    t.verifyReaders(db);
    expect(t.compensations).toBe(1);
    // Until the mount has seen another commit, the dead frames that are still there are not read again.
    t.capture.drain();
    t.verifyReaders(db);
    db.exec('insert into t(x) values (1)');
    t.walCommitted();
    t.verifyReaders(db);
  });

  it('never enters the log when it is overwritten before it was captured', () => {
    start();
    const { txid } = t.capture.position;
    const { fromBytes } = t.deadCommit(sql);
    t.beforeWalChange('overwrite', fromBytes);
    expect(t.capture.position.txid).toBe(txid);
    db.exec('insert into t(x) values (1)');
    t.walCommitted();
    t.verifyReaders(db);
  });

  it('stays when everybody dies and SQLite recovers it', () => {
    start();
    t.deadCommit(sql);
    const after = new CaptureDatabase(t);
    after.capture.load();
    after.verify();
    const again = after.connect();
    again.prepare('select count(*) from t').get();
    after.capture.reconcile(true);
    after.verifyReaders(again);
    again.close();
    after.remove();
  });
});
