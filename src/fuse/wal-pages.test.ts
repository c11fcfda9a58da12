import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import Database from 'better-sqlite3';
import { afterEach, beforeEach, expect, it } from 'vitest';

import { WalPages } from './wal-pages.js';
import { WalTracker } from './wal-tracker.js';

const PAGE_SIZE = 4096;
let directory: string;
let db: Database.Database;
let reader: Database.Database;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'kitefs-wal-pages-'));
  db = new Database(join(directory, 'database'));
  db.pragma(`page_size = ${PAGE_SIZE}`);
  db.pragma('journal_mode = wal');
  db.pragma('wal_autocheckpoint = 0');
  db.exec('create table t(x)');
  // Keeps the WAL from being restarted.
  reader = new Database(join(directory, 'database'));
  reader.exec('begin; select * from t');
});
afterEach(() => {
  reader.close();
  db.close();
  rmSync(directory, { recursive: true });
});

/** Copies all frames into the database, with the reader at the end of the WAL. */
function checkpoint(): void {
  reader.exec('commit; begin; select * from t');
  db.pragma('wal_checkpoint(PASSIVE)');
}

/** What the mount knows of the WAL as it is now. */
function walPages(): WalPages {
  const path = join(directory, 'database-wal');
  const tracker = new WalTracker();
  tracker.wrote(0, readFileSync(path));
  return new WalPages(tracker, path);
}

it('takes every committed version of a page for a checkpoint, which may have begun before the newest', () => {
  const path = join(directory, 'database');
  db.exec('insert into t values (1)');
  checkpoint();
  const older = readFileSync(path).subarray(0, 2 * PAGE_SIZE);
  db.exec('create table u(x); insert into t values (2)');
  const pages = walPages();
  expect(pages.holds(0, older)).toBe(true);
  expect(pages.holds(100, older.subarray(100, 5000))).toBe(true);
  const other = Buffer.from(older);
  other[3000]! ^= 1;
  expect(pages.holds(0, other)).toBe(false);
  expect(pages.holds(8 * PAGE_SIZE, older)).toBe(false);
});

it('lets the WAL go only when the newest version of each page is in the database', () => {
  const path = join(directory, 'database');
  db.exec('insert into t values (1)');
  checkpoint();
  expect(walPages().backfilledInto(path)).toBe(true);
  db.exec('insert into t values (2)');
  expect(walPages().backfilledInto(path)).toBe(false);
  const copy = join(directory, 'copy');
  writeFileSync(copy, db.serialize());
  expect(walPages().backfilledInto(copy)).toBe(true);
});
