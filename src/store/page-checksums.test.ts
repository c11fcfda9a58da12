import fc from 'fast-check';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { DatabaseChecksum } from '../ltx/checksum.js';
import { PageChecksums, type ChecksumsFlush } from './page-checksums.js';

const dir = mkdtempSync(join(tmpdir(), 'kitefs-checksums-test-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const u32 = fc.integer({ min: 0, max: 0xffffffff });

const flushOf = (checksums: PageChecksums): ChecksumsFlush => ({
  position: { txid: 12n, epoch: 3n, checksum: checksums.checksum },
  pageSize: 4096,
  journalVersions: { write: 1, read: 1 },
});

function some(pages: number): PageChecksums {
  const checksums = new PageChecksums();
  for (let pgno = 1; pgno <= pages; pgno += 1) checksums.set(pgno, 0x80000000 | (pgno * 7919), pgno * 104729);
  return checksums;
}

test('the rolling checksum is that of the pages there are, whatever was set and cut before', () => {
  const step = fc.oneof(
    fc.record({ pgno: fc.integer({ min: 1, max: 3000 }), high: u32, low: u32 }),
    fc.record({ pages: fc.integer({ min: 0, max: 3000 }) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const checksums = new PageChecksums();
      let model = new Map<number, [number, number]>();
      let pages = 0;
      for (const change of steps) {
        if ('pages' in change) {
          pages = change.pages;
          checksums.resize(pages);
          model = new Map([...model].filter(([pgno]) => pgno <= pages));
        } else {
          checksums.set(change.pgno, change.high, change.low);
          pages = Math.max(pages, change.pgno);
          model.set(change.pgno, [change.high, change.low]);
        }
      }
      const expected = new DatabaseChecksum();
      for (const [pgno, [high, low]] of model) {
        expected.toggle(high, low);
        expect(checksums.matches(pgno, high, low)).toBe(true);
        expect([checksums.high(pgno), checksums.low(pgno)]).toEqual([high, low]);
      }
      expect(checksums.checksum).toBe(expected.value);
      expect(checksums.pages).toBe(pages);
      expect([checksums.high(pages + 1), checksums.low(pages + 1)]).toEqual([0, 0]);
      checksums.clear();
      expect(checksums.checksum).toBe(1n << 63n);
    }),
    { numRuns: 200 },
  );
});

test('what was saved is loaded, with its position', () => {
  const path = join(dir, 'saved');
  for (const pages of [0, 1, 5000]) {
    const checksums = some(pages);
    checksums.save(path, flushOf(checksums));
    const loaded = PageChecksums.load(path);
    expect(loaded?.flush).toEqual(flushOf(checksums));
    expect(loaded?.checksums.pages).toBe(pages);
    expect(loaded?.checksums.checksum).toBe(checksums.checksum);
    for (let pgno = 1; pgno <= pages; pgno += 1) {
      expect(loaded?.checksums.matches(pgno, checksums.high(pgno), checksums.low(pgno))).toBe(true);
    }
  }
  expect(PageChecksums.load(join(dir, 'none'))).toBeUndefined();
});

test('a file that was cut off or changed anywhere is not used', () => {
  const path = join(dir, 'damaged');
  const checksums = some(40);
  checksums.save(path, flushOf(checksums));
  const whole = readFileSync(path);
  fc.assert(
    fc.property(fc.nat(whole.length - 1), fc.integer({ min: 1, max: 255 }), fc.boolean(), (at, flip, cut) => {
      const bytes = Buffer.from(cut ? whole.subarray(0, at) : whole);
      if (!cut) bytes[at]! ^= flip;
      writeFileSync(path, bytes);
      expect(PageChecksums.load(path)).toBeUndefined();
    }),
    { numRuns: 200 },
  );
});

test('checksums are not saved under a position that is not theirs, and a replacement leaves nothing behind', () => {
  const path = join(dir, 'wrong');
  const checksums = some(3);
  const flush = flushOf(checksums);
  checksums.save(path, flush);
  checksums.set(2, 1, 1);
  expect(() => checksums.save(path, flush)).toThrow(expect.objectContaining({ code: 'ERR_INTERNAL' }));
  expect(PageChecksums.load(path)?.flush).toEqual(flush);
  expect(existsSync(`${path}.tmp`)).toBe(false);
});
