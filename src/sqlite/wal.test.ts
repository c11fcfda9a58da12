import Database from 'better-sqlite3';
import fc from 'fast-check';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { DATABASE_HEADER_BYTES, parseDatabaseHeader } from './database-header.js';
import { WalScanner, type AcceptedFrame } from './wal-scanner.js';
import {
  buildWalHeader,
  FRAME_HEADER_BYTES,
  frameOffset,
  parseFrameHeader,
  parseWalHeader,
  sealFrame,
  WAL_HEADER_BYTES,
  type WalChecksum,
} from './wal.js';

const dir = mkdtempSync(join(tmpdir(), 'kitefs-wal-test-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** A database in WAL mode whose WAL still holds everything after its creation. */
function madeBySqlite(pageSize: number, commits: number): { wal: Buffer; database: Buffer; pages: number } {
  const path = join(dir, `${pageSize}-${commits}.db`);
  const db = new Database(path);
  db.pragma(`page_size = ${pageSize}`);
  db.pragma('journal_mode = WAL');
  db.pragma('wal_autocheckpoint = 0');
  db.exec('CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)');
  const insert = db.prepare('INSERT INTO t (v) VALUES (randomblob(?))');
  for (let i = 1; i < commits; i += 1) insert.run(100 + i * 37);
  const pages = db.pragma('page_count', { simple: true }) as number;
  const wal = readFileSync(`${path}-wal`);
  db.pragma('wal_checkpoint(TRUNCATE)');
  const database = readFileSync(path);
  db.close();
  return { wal, database, pages };
}

function scan(wal: Buffer): { scanner: WalScanner; frames: AcceptedFrame[] } {
  const header = parseWalHeader(wal);
  if (!header) throw new Error('no WAL header');
  const scanner = new WalScanner(header);
  const frames: AcceptedFrame[] = [];
  scanner.accept(wal.subarray(WAL_HEADER_BYTES), (frame) => frames.push(frame));
  return { scanner, frames };
}

test.each([512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])(
  'a WAL that SQLite wrote with pages of %i bytes is read as what it checkpoints',
  (pageSize) => {
    const { wal, database, pages } = madeBySqlite(pageSize, 12);
    const { scanner, frames } = scan(wal);
    expect(scanner.committed.frames).toBe((wal.length - WAL_HEADER_BYTES) / (FRAME_HEADER_BYTES + pageSize));
    expect(frames.filter((frame) => frame.commitPages > 0)).toHaveLength(12);
    expect(scanner.commitPages).toBe(pages);
    const image = Buffer.alloc(pages * pageSize);
    for (const { pgno, dataOffset } of frames) {
      wal.copy(
        image,
        (pgno - 1) * pageSize,
        WAL_HEADER_BYTES + dataOffset,
        WAL_HEADER_BYTES + dataOffset + pageSize,
      );
    }
    expect(image.equals(database)).toBe(true);
    expect(parseDatabaseHeader(image.subarray(0, DATABASE_HEADER_BYTES))).toMatchObject({
      pageSize,
      pageCount: pages,
      readVersion: 2,
      writeVersion: 2,
    });
  },
);

test('a WAL that we write in either byte order is what SQLite recovers', () => {
  const pageSize = 1024;
  const { wal, database, pages } = madeBySqlite(pageSize, 9);
  const { frames } = scan(wal);
  for (const bigEndianChecksum of [false, true]) {
    const { bytes, header } = buildWalHeader({
      bigEndianChecksum,
      pageSize,
      checkpointSequence: 3,
      salt1: 0x80000001,
      salt2: 0xfffffffe,
    });
    const ours = Buffer.alloc(wal.length);
    bytes.copy(ours);
    let checksum: WalChecksum = header;
    for (const { frame, pgno, commitPages, dataOffset } of frames) {
      const offset = frameOffset(frame, pageSize);
      const from = WAL_HEADER_BYTES + dataOffset;
      wal.copy(ours, offset + FRAME_HEADER_BYTES, from, from + pageSize);
      checksum = sealFrame(ours, offset, header, { pgno, commitPages }, checksum);
    }
    expect(parseWalHeader(ours)).toEqual(header);
    expect(scan(ours).scanner.committed.frames).toBe(frames.length);
    const path = join(dir, `ours-${bigEndianChecksum}.db`);
    // Page 1 says that there may be a WAL; everything else comes from it.
    writeFileSync(path, database.subarray(0, pageSize));
    writeFileSync(`${path}-wal`, ours);
    const db = new Database(path);
    expect(db.pragma('page_count', { simple: true })).toBe(pages);
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    db.pragma('wal_checkpoint(TRUNCATE)');
    db.close();
    expect(readFileSync(path).equals(database)).toBe(true);
  }
});

test('whatever is cut off or changed, exactly the commits before it are accepted, in pieces as in one', () => {
  const pageSize = 512;
  const { wal } = madeBySqlite(pageSize, 10);
  const { frames } = scan(wal);
  const step = FRAME_HEADER_BYTES + pageSize;
  fc.assert(
    fc.property(
      fc.nat(wal.length - WAL_HEADER_BYTES - 1),
      fc.boolean(),
      fc.integer({ min: 1, max: 255 }),
      fc.integer({ min: step, max: step * 5 }),
      (at, cut, flip, piece) => {
        const damaged = Buffer.from(cut ? wal.subarray(0, WAL_HEADER_BYTES + at) : wal);
        if (!cut) damaged[WAL_HEADER_BYTES + at]! ^= flip;
        const whole = Math.floor(at / step);
        const expected = frames.slice(0, whole).findLast((frame) => frame.commitPages > 0)?.frame ?? 0;
        const scanner = new WalScanner(parseWalHeader(damaged)!);
        let taken: number;
        do {
          const from = scanner.nextOffset;
          taken = scanner.accept(damaged.subarray(from, from + piece), () => undefined);
        } while (taken > 0 && !scanner.ended);
        expect(scanner.frames).toBe(whole);
        expect(scanner.committed.frames).toBe(expected);
        scanner.rewind();
        expect(scanner.nextOffset).toBe(frameOffset(expected + 1, pageSize));
      },
    ),
    { numRuns: 200 },
  );
});

test('a scan goes on from any commit, by the checksum in that frame, to the same end', () => {
  const { wal } = madeBySqlite(4096, 6);
  const { scanner, frames } = scan(wal);
  for (const { frame } of frames.filter(({ commitPages }) => commitPages > 0)) {
    const offset = frameOffset(frame, 4096);
    const point = WalScanner.pointAfter(scanner.header, frame, wal.subarray(offset));
    const later = new WalScanner(scanner.header, point);
    later.accept(wal.subarray(later.nextOffset), () => undefined);
    expect(later.committed).toEqual(scanner.committed);
  }
  const foreign = { ...scanner.header, salt1: scanner.header.salt1 ^ 1 };
  expect(WalScanner.pointAfter(foreign, 1, wal.subarray(WAL_HEADER_BYTES))).toBeUndefined();
});

test('frames of an unfinished transaction are accepted again after a rewind, with their new content', () => {
  const pageSize = 512;
  const { header } = buildWalHeader({
    bigEndianChecksum: false,
    pageSize,
    checkpointSequence: 0,
    salt1: 1,
    salt2: 2,
  });
  const frame = Buffer.alloc(FRAME_HEADER_BYTES + pageSize, 1);
  sealFrame(frame, 0, header, { pgno: 7, commitPages: 0 }, header);
  const scanner = new WalScanner(header);
  scanner.accept(frame, () => undefined);
  expect(scanner.frames).toBe(1);
  scanner.rewind();
  frame.fill(2, FRAME_HEADER_BYTES);
  const checksum = sealFrame(frame, 0, header, { pgno: 7, commitPages: 9 }, header);
  scanner.accept(frame, () => undefined);
  expect(scanner.committed).toEqual({ frames: 1, ...checksum });
  expect(parseFrameHeader(frame)).toMatchObject({ pgno: 7, commitPages: 9, salt1: 1, salt2: 2 });
});

test('the bytes of a page may lie anywhere in a buffer', () => {
  const { header } = buildWalHeader({
    bigEndianChecksum: false,
    pageSize: 512,
    checkpointSequence: 0,
    salt1: 1,
    salt2: 2,
  });
  const sums = [0, 1, 2, 3, 4].map((shift) => {
    const bytes = Buffer.alloc(600, 3);
    return sealFrame(bytes, shift, header, { pgno: 1, commitPages: 1 }, header);
  });
  for (const sum of sums) expect(sum).toEqual(sums[0]);
});
