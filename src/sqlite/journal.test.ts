import Database from 'better-sqlite3';
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { lockPgno } from '../ltx/format.js';
import { isHotJournal, journalRecords, parseJournalHeader, superJournalName } from './journal.js';

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
  'the records of a journal with pages of %i bytes give the database back',
  (pageSize) => {
    const { path, before } = spilled(`${pageSize}.db`, pageSize);
    const journal = readFileSync(`${path}-journal`);
    expect(parseJournalHeader(journal)).toMatchObject({ pageSize, oldPages: before.length / pageSize });
    expect(isHotJournal(journal, statSync(path).size)).toBe(true);
    expect(superJournalName(journal)).toBeUndefined();
    const image = readFileSync(path);
    expect(image.equals(before)).toBe(false);
    const restored = Buffer.alloc(Math.max(image.length, before.length));
    image.copy(restored);
    for (const { pgno, dataOffset } of journalRecords(journal)) {
      journal.copy(restored, (pgno - 1) * pageSize, dataOffset, dataOffset + pageSize);
    }
    expect(restored.subarray(0, before.length).equals(before)).toBe(true);
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

/** The end of a journal as writeSuperJournal writes it. */
function withSuperJournal(name: Buffer, sumOf: (byte: number) => number): Buffer {
  const bytes = Buffer.alloc(4 + name.length + 16);
  bytes.writeUInt32BE(lockPgno(4096), 0);
  name.copy(bytes, 4);
  bytes.writeUInt32BE(name.length, 4 + name.length);
  bytes.writeUInt32BE([...name].reduce((sum, byte) => sum + sumOf(byte), 0) >>> 0, 8 + name.length);
  bytes.write('d9d505f920a163d7', 12 + name.length, 'hex');
  return bytes;
}

test('the name of a super-journal is read, with whichever sign the machine gives a char', () => {
  const name = '/mnt/größe.db-mj0A1B2C9D3';
  for (const sumOf of [(byte: number) => byte, (byte: number) => (byte << 24) >> 24]) {
    const journal = withSuperJournal(Buffer.from(name), sumOf);
    expect(superJournalName(journal)).toBe(name);
    journal[6]! ^= 1;
    expect(superJournalName(journal)).toBeUndefined();
  }
});

test('SQLite takes a transaction for committed when the super-journal we read is gone', () => {
  const { path } = spilled('super.db', 4096);
  const changed = readFileSync(path);
  const named = withSuperJournal(Buffer.from(join(dir, 'gone.db-mj000000900')), (byte) => byte);
  writeFileSync(`${path}-journal`, Buffer.concat([readFileSync(`${path}-journal`), named]));
  expect(superJournalName(readFileSync(`${path}-journal`))).toBe(join(dir, 'gone.db-mj000000900'));
  const db = new Database(path);
  db.prepare('SELECT count(*) FROM sqlite_schema').get();
  db.close();
  expect(existsSync(`${path}-journal`)).toBe(false);
  expect(readFileSync(path).equals(changed)).toBe(true);
});
