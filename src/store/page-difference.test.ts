import fc from 'fast-check';
import { expect, test } from 'vitest';

import { PageChecksums } from './page-checksums.js';
import { differingPages, formatChecksums, parseChecksums } from './page-difference.js';

const u32 = fc.integer({ min: 0, max: 0xffffffff });
/** Few different ones, so that many pages are the same on both sides. */
const sum = fc.oneof(fc.constantFrom([0x80000001, 1], [0x80000001, 2], [0x80000002, 1]), fc.tuple(u32, u32));
const sums = fc.array(sum, { maxLength: 70 });

function checksumsOf(list: readonly (readonly number[])[]): PageChecksums {
  const checksums = new PageChecksums();
  for (const [i, [high, low]] of list.entries()) checksums.set(i + 1, high!, low!);
  return checksums;
}

test('pieces of any size name exactly the pages that are otherwise, up to our size', () => {
  fc.assert(
    fc.property(sums, sums, fc.integer({ min: 1, max: 20 }), (ours, theirs, piece) => {
      const checksums = checksumsOf(ours);
      const found: number[] = [];
      for (let first = 1; first <= ours.length; first += piece) {
        const halves = new Uint32Array(piece * 2);
        halves.set(theirs.slice(first - 1, first - 1 + piece).flat());
        found.push(...differingPages(checksums, first, halves));
      }
      const expected = ours.flatMap(([high, low], i) => {
        const [theirHigh = 0, theirLow = 0] = theirs[i] ?? [];
        return high === theirHigh && low === theirLow ? [] : [i + 1];
      });
      expect(found).toEqual(expected);
      // Taking these from us, and our size, makes their checksum ours.
      const mended = checksumsOf(theirs);
      for (const pgno of found) mended.set(pgno, checksums.high(pgno), checksums.low(pgno));
      mended.resize(ours.length);
      expect(mended.checksum).toBe(checksums.checksum);
    }),
    { numRuns: 300 },
  );
});

test('checksums travel as they are, from any place in a message', () => {
  fc.assert(
    fc.property(fc.array(u32, { maxLength: 50 }), fc.nat(7), (list, shift) => {
      const halves = Uint32Array.from(list);
      const message = Buffer.concat([Buffer.alloc(shift), formatChecksums(halves)]);
      expect(parseChecksums(message.subarray(shift))).toEqual(halves);
    }),
    { numRuns: 100 },
  );
});
