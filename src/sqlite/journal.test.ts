import Database from 'better-sqlite3';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { isHotJournal, parseJournalHeader } from './journal.js';

const dir = mkdtempSync(join(tmpdir(), 'kitefs-journal-test-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** A database and the journal of a transaction that has spilled into it, copied while it runs. */
function spilled(name: string, pageSize: number): { path: string; before: Buffer } {
  const path = join(dir, name);
  const db = new Database(path);
  db.pragma(`page_size = ${pageSize}`);
  db.pragma('journal_mode = DELETE');
  db.exec('CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)');
  const insert = db.prepare('INSERT INTO t (v) VALUES (randomblob(?))');
  db.transaction(() => {
    for (let i = 0; i < 100; i += 1) insert.run(pageSize);
  })();
  const before = readFileSync(path);
  db.pragma('cache_size = 5');
  db.exec('BEGIN');
  db.prepare('UPDATE t SET v = randomblob(?)').run(pageSize);
  const copy = `${path}-copy`;
  copyFileSync(path, copy);
  copyFileSync(`${path}-journal`, `${copy}-journal`);
  db.exec('ROLLBACK');
  db.close();
  return { path: copy, before };
}

test.each([512, 4096, 65536])(
  'the journal of a transaction that runs is hot, pages of %i bytes',
  (pageSize) => {
    const { path, before } = spilled(`${pageSize}.db`, pageSize);
    const journal = readFileSync(`${path}-journal`);
    expect(parseJournalHeader(journal)).toMatchObject({ pageSize, oldPages: before.length / pageSize });
    expect(isHotJournal(journal, statSync(path).size)).toBe(true);
    expect(readFileSync(path).equals(before)).toBe(false);
    const db = new Database(path);
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    db.close();
    expect(readFileSync(path).equals(before)).toBe(true);
  },
);

test('a journal that was zeroed, truncated or belongs to an empty database is not hot', () => {
  expect(isHotJournal(Buffer.alloc(28), 4096)).toBe(false);
  expect(isHotJournal(Buffer.alloc(0), 4096)).toBe(false);
  expect(isHotJournal(Buffer.from('d9d505f920a163d7', 'hex'), 0)).toBe(false);
  expect(parseJournalHeader(Buffer.alloc(512))).toBeUndefined();
});
