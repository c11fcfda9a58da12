import { closeSync, existsSync, openSync, readSync, statSync, writeSync } from 'node:fs';

import type Database from 'better-sqlite3';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';

import { CaptureDatabase } from '../../test/helpers/capture-database.js';
import { DatabaseCheck } from './database-check.js';

/**
 * The full check behind a start: it must find a page that is not as it was committed, and, what matters more, must
 * never take for damage what an application does at that moment. Real SQLite writes; capture is behind it at random.
 */

let t: CaptureDatabase;
let db: Database.Database;
let found: number[];
let nowMs: number;

afterEach(() => {
  db.close();
  t.remove();
});

function start(journalMode: 'wal' | 'delete' | 'persist' | 'truncate'): void {
  t = new CaptureDatabase();
  db = t.connect();
  found = [];
  nowMs = 0;
  t.remember();
  db.pragma(`journal_mode = ${journalMode}`);
  db.exec('create table t(id integer primary key, x)');
  if (journalMode === 'wal') t.walCommitted();
  else t.journalCommitted();
}

/** What the service would do: in WAL mode everything that was published is captured. */
const check = (settles = true): DatabaseCheck =>
  new DatabaseCheck({
    database: t.capture,
    settle: () => {
      if (settles && existsSync(t.paths.wal)) t.walCommitted();
      return settles;
    },
    onProgress: () => {},
    onDamaged: (pgnos) => found.push(...pgnos),
    nowMs: () => nowMs,
  });

/** Runs it to its end; `between` is done after each step. Steps are far enough apart for another look. */
function runToEnd(checking: DatabaseCheck, between: () => void = () => {}, stepsMax = 1000): void {
  for (let i = 0; checking.step(8192); i++) {
    if (i > stepsMax) throw new Error('it does not end');
    between();
    nowMs += 500;
  }
}

function flip(pgno: number): void {
  const fd = openSync(t.paths.database, 'r+');
  const byte = Buffer.alloc(1);
  const at = (pgno - 1) * 4096 + 2000;
  readSync(fd, byte, 0, 1, at);
  byte[0] = (byte[0] ?? 0) ^ 1;
  writeSync(fd, byte, 0, 1, at);
  closeSync(fd);
}

const rows = (count: number): string =>
  `with n(i) as (select 1 union all select i + 1 from n where i < ${count}) insert into t(x) select randomblob(900) from n`;

/** In a rollback mode. */
function commit(sql: string): void {
  t.remember();
  db.exec(sql);
  t.journalCommitted();
}

describe('a damaged page', () => {
  it('is found in a WAL database, when it is not in the WAL', () => {
    start('wal');
    db.exec(rows(100));
    t.walCommitted();
    t.checkpoint(db, 'truncate');
    flip(7);
    runToEnd(check());
    expect(found).toEqual([7]);
  });

  it('is found while another part of the database is being written', () => {
    start('wal');
    db.exec(rows(100));
    t.walCommitted();
    t.checkpoint(db, 'truncate');
    flip(7);
    runToEnd(check(), () => db.exec('insert into t(x) values (1)'));
    expect(found).toEqual([7]);
  });

  it('is no damage any more when it was written anew', () => {
    start('delete');
    commit(rows(100));
    flip(7);
    let done = false;
    runToEnd(check(), () => {
      if (!done) commit("update t set x = 'new'");
      done = true;
    });
    expect(found).toEqual([]);
    t.verify();
  });

  it('is no damage when it is free and holds nothing: it goes into the log as it is', () => {
    start('delete');
    commit(rows(100));
    commit('delete from t where id > 8');
    const { txid } = t.capture.position;
    const leaf = statSync(t.paths.database).size / 4096;
    flip(leaf);
    runToEnd(check());
    expect(found).toEqual([]);
    expect(t.capture.position.txid).toBe(txid + 1n);
    t.verify();
  });
});

describe('no damage', () => {
  it('is a rollback-mode transaction that has spilled, for as long as it runs, nor its rollback', () => {
    start('delete');
    commit(rows(100));
    db.pragma('cache_size = 5');
    t.remember();
    db.exec(`begin; update t set x = randomblob(900)`);
    const checking = check();
    for (let i = 0; i < 50; i++) {
      expect(checking.step(8192)).toBe(true);
      nowMs += 500;
    }
    expect(t.capture.differences([2, 3, 4, 5]).length).toBeGreaterThan(0);
    db.exec('rollback');
    t.journalCommitted();
    runToEnd(checking);
    expect(found).toEqual([]);
  });

  it('is what a checkpoint has copied and capture cannot read yet', () => {
    start('wal');
    db.exec(rows(100));
    t.walCommitted();
    t.checkpoint(db, 'restart');
    db.exec("update t set x = 'newer'");
    db.pragma('wal_checkpoint(PASSIVE)');
    const checking = check(false);
    for (let i = 0; i < 30; i++) {
      expect(checking.step(8192)).toBe(true);
      nowMs += 500;
    }
    expect(t.capture.differences([2, 3, 4, 5]).length).toBeGreaterThan(0);
    runToEnd(check());
    expect(found).toEqual([]);
  });

  it.each(['wal', 'delete', 'persist', 'truncate'] as const)(
    'is anything that SQLite does in %s mode',
    (mode) => {
      const actions = {
        insert: () => db.exec(rows(20)),
        update: () => db.exec('update t set x = randomblob(700) where id % 3 = abs(random() % 3)'),
        remove: () => db.exec('delete from t where id % 2 = 0'),
        rolledBack: () => db.exec(`begin; ${rows(40)}; update t set x = zeroblob(800); rollback`),
        vacuum: () => db.exec('vacuum'),
      };
      const name = fc.constantFrom(...(Object.keys(actions) as (keyof typeof actions)[]));
      const step = fc.record({ action: name, captured: fc.boolean(), checkpoint: fc.nat({ max: 3 }) });
      fc.assert(
        fc.property(fc.array(step, { minLength: 5, maxLength: 25 }), (steps) => {
          start(mode);
          db.pragma('cache_size = 5');
          const reader = t.connect({ readonly: true });
          const unread = (): void => void (reader.inTransaction && reader.exec('commit'));
          let checking = check();
          const look = (): void => {
            for (let i = 0; i < 3; i++) {
              if (!checking.step(16_384)) checking = check();
              nowMs += 500;
            }
          };
          for (const { action, captured, checkpoint } of steps) {
            if (mode !== 'wal') t.remember();
            actions[action]();
            if (mode !== 'wal') {
              t.journalCommitted();
            } else {
              if (captured) t.walCommitted();
              // What is copied here may not be captured yet. The reader keeps SQLite from restarting the WAL by itself.
              if (checkpoint === 1) {
                if (!reader.inTransaction) reader.exec('begin; select count(*) from t');
                db.pragma('wal_checkpoint(PASSIVE)');
              }
              look();
              if (checkpoint > 1) unread();
              if (checkpoint === 2) t.checkpoint(db, 'restart');
              if (checkpoint === 3) t.checkpoint(db, 'truncate');
            }
            look();
          }
          unread();
          reader.close();
          if (mode === 'wal') t.walCommitted();
          runToEnd(check());
          expect(found).toEqual([]);
          t.verify();
          db.close();
          t.remove();
        }),
        { numRuns: 10 },
      );
      start(mode);
    },
  );
});
