import Database from 'better-sqlite3';
import fc from 'fast-check';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import {
  buildWalIndex,
  buildWalIndexHeader,
  parseWalIndexHeader,
  planWalIndexAppend,
  WAL_INDEX_BLOCK_BYTES,
  WAL_INDEX_HEADER_BYTES,
  type WalIndexHeader,
} from './wal-index.js';
import { WalScanner } from './wal-scanner.js';
import { parseWalHeader, WAL_HEADER_BYTES } from './wal.js';

const dir = mkdtempSync(join(tmpdir(), 'kitefs-wal-index-test-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const PAGE_SIZE = 512;

/** A copy of database, WAL and wal-index in the middle of their use: no connection has closed them. */
function snapshotOf(name: string, rows: number): string {
  const path = join(dir, name);
  const db = new Database(path);
  db.pragma(`page_size = ${PAGE_SIZE}`);
  db.pragma('journal_mode = WAL');
  db.pragma('wal_autocheckpoint = 0');
  db.exec('CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)');
  const insert = db.prepare('INSERT INTO t (v) VALUES (randomblob(600))');
  const many = db.transaction(() => {
    for (let i = 0; i < 10; i += 1) insert.run();
  });
  for (let i = 0; i < rows; i += 10) many();
  const copy = join(dir, `${name}-copy`);
  for (const end of ['', '-wal', '-shm']) copyFileSync(path + end, copy + end);
  db.close();
  return copy;
}

/** What a WAL says: header of the wal-index after it, page of each frame, and where its commits end. */
function readWal(path: string): { header: WalIndexHeader; pgnos: number[]; commits: WalIndexHeader[] } {
  const wal = readFileSync(path);
  const walHeader = parseWalHeader(wal)!;
  const scanner = new WalScanner(walHeader);
  const pgnos: number[] = [];
  const commits: WalIndexHeader[] = [];
  scanner.accept(wal.subarray(WAL_HEADER_BYTES), (frame) => {
    pgnos.push(frame.pgno);
    if (frame.commitPages === 0) return;
    commits.push({
      change: commits.length + 1,
      bigEndianChecksum: walHeader.bigEndianChecksum,
      pageSize: walHeader.pageSize,
      mxFrame: frame.frame,
      pages: frame.commitPages,
      checksum1: scanner.committed.checksum1,
      checksum2: scanner.committed.checksum2,
      salt1: walHeader.salt1,
      salt2: walHeader.salt2,
    });
  });
  return { header: commits.at(-1)!, pgnos, commits };
}

const blockOf = (shm: Buffer) => (index: number) =>
  shm.subarray(index * WAL_INDEX_BLOCK_BYTES, (index + 1) * WAL_INDEX_BLOCK_BYTES);

test('the wal-index we build over several blocks has the page numbers and hash tables of SQLite', () => {
  const path = snapshotOf('blocks.db', 5500);
  const theirs = readFileSync(`${path}-shm`);
  const { header, pgnos } = readWal(`${path}-wal`);
  expect(header.mxFrame).toBeGreaterThan(2 * 4096);
  const ours = buildWalIndex(header, pgnos);
  expect(ours.subarray(136).equals(theirs.subarray(136))).toBe(true);
  const parsed = parseWalIndexHeader(theirs);
  expect(parsed).toEqual({ ...header, change: parsed?.change });
  expect(parseWalIndexHeader(ours)).toEqual(header);
});

test('appends planned one by one leave the bytes that SQLite left, and the header comes last', () => {
  const path = snapshotOf('appends.db', 2000);
  const theirs = readFileSync(`${path}-shm`);
  const { header, pgnos, commits } = readWal(`${path}-wal`);
  const ours = Buffer.alloc(theirs.length);
  let current: WalIndexHeader = { ...header, mxFrame: 0 };
  for (const next of commits) {
    const writes = planWalIndexAppend(
      current,
      blockOf(ours),
      pgnos.slice(current.mxFrame, next.mxFrame),
      next,
    );
    const header = writes.at(-1)!;
    expect([header.offset, header.bytes.length]).toEqual([0, 2 * WAL_INDEX_HEADER_BYTES]);
    for (const { offset } of writes.slice(0, -1)) expect(offset).toBeGreaterThanOrEqual(136);
    for (const { offset, bytes } of writes) ours.set(bytes, offset);
    current = next;
  }
  expect(ours.subarray(136).equals(theirs.subarray(136))).toBe(true);
  expect(parseWalIndexHeader(ours)).toEqual(header);
});

test('what a rolled back or dead writer left behind the last commit is cleaned before an append', () => {
  const path = snapshotOf('tail.db', 600);
  const { commits, pgnos } = readWal(`${path}-wal`);
  fc.assert(
    fc.property(
      fc.nat(commits.length - 2),
      fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 5000 }),
      (at, left) => {
        const base = commits[at]!;
        const next = commits[at + 1]!;
        const appended = pgnos.slice(base.mxFrame, next.mxFrame);
        const dirty = Buffer.alloc(3 * WAL_INDEX_BLOCK_BYTES);
        dirty.set(buildWalIndex(base, pgnos.slice(0, base.mxFrame)));
        const spilled = { ...base, mxFrame: base.mxFrame + left.length };
        // All but the header: the dead writer has not come to them.
        for (const write of planWalIndexAppend(base, blockOf(dirty), left, spilled).slice(0, -1)) {
          dirty.set(write.bytes, write.offset);
        }
        for (const write of planWalIndexAppend(base, blockOf(dirty), appended, next)) {
          dirty.set(write.bytes, write.offset);
        }
        const clean = buildWalIndex(next, pgnos.slice(0, next.mxFrame));
        const end = Math.min(clean.length, WAL_INDEX_BLOCK_BYTES);
        expect(dirty.subarray(136, end).equals(clean.subarray(136, end))).toBe(true);
      },
    ),
    { numRuns: 40 },
  );
});

test('SQLite takes the wal-index we wrote as it is, and reads through it', () => {
  const path = snapshotOf('accepted.db', 1500);
  const { commits, pgnos } = readWal(`${path}-wal`);
  // One commit less than the WAL holds: SQLite sees that only if it uses our wal-index; its own recovery
  // would find all of them. The first connection to a wal-index always recovers, so ours comes after it.
  const shown = commits.at(-2)!;
  const all = new Database(path);
  const total = all.prepare('SELECT count(*) FROM t').pluck();
  expect(total.get()).toBe(1500);
  const shm = buildWalIndex({ ...shown, change: 77 }, pgnos.slice(0, shown.mxFrame));
  writeFileSync(`${path}-shm`, shm, { flag: 'r+' });
  const reader = new Database(path, { readonly: true });
  expect(total.get()).toBe(1490);
  expect(reader.prepare('SELECT count(*) FROM t').pluck().get()).toBe(1490);
  expect(reader.pragma('integrity_check', { simple: true })).toBe('ok');
  // And an append on top, as the applier does it, is seen by both.
  const last = commits.at(-1)!;
  const file = readFileSync(`${path}-shm`);
  for (const { offset, bytes } of planWalIndexAppend(
    shown,
    blockOf(file),
    pgnos.slice(shown.mxFrame),
    last,
  )) {
    file.set(bytes, offset);
  }
  writeFileSync(`${path}-shm`, file, { flag: 'r+' });
  expect(total.get()).toBe(1500);
  expect(reader.prepare('SELECT count(*) FROM t').pluck().get()).toBe(1500);
  reader.close();
  all.close();
});

test('a header survives the way through its bytes, and any flipped bit is noticed', () => {
  const u32 = fc.integer({ min: 0, max: 0xffffffff });
  fc.assert(
    fc.property(
      fc.record({
        change: u32,
        bigEndianChecksum: fc.boolean(),
        pageSize: fc.constantFrom(512, 1024, 4096, 32768, 65536),
        mxFrame: u32,
        pages: u32,
        checksum1: u32,
        checksum2: u32,
        salt1: u32,
        salt2: u32,
      }),
      fc.nat(WAL_INDEX_HEADER_BYTES * 2 * 8 - 1),
      (header, bit) => {
        const copy = buildWalIndexHeader(header);
        const both = Buffer.concat([copy, copy]);
        expect(parseWalIndexHeader(both)).toEqual(header);
        both[bit >> 3]! ^= 1 << (bit & 7);
        expect(parseWalIndexHeader(both)).toBeUndefined();
      },
    ),
    { numRuns: 200 },
  );
});
