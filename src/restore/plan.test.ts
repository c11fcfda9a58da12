import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { BackupFile } from '../backup/layout.js';
import { ltxFileName } from '../ltx/position.js';
import { planRestore, reachOf } from './plan.js';

const file = (level: number, min: number, max: number, sizeBytes = 1000): BackupFile => {
  const range = { minTxid: BigInt(min), maxTxid: BigInt(max) };
  return { ...range, level, key: `${level}/${ltxFileName(range)}`, sizeBytes, modifiedMs: 0 };
};
const shown = (files: readonly BackupFile[] | undefined): string[] | undefined =>
  files?.map(({ level, minTxid, maxTxid }) => `${level}:${minTxid}-${maxTxid}`);

describe('the plan of a restore', () => {
  const bucket = [
    file(9, 1, 10, 20_000),
    file(9, 1, 40, 20_000),
    ...[1, 11, 21, 31, 41].map((min) => file(2, min, min + 9, 5000)),
    ...[41, 43, 45, 47, 49, 51].map((min) => file(1, min, min + 1)),
    ...[51, 52, 53, 54].map((n) => file(0, n, n)),
  ];

  it('takes the last snapshot before the moment and the fewest files after it', () => {
    expect(shown(planRestore(bucket, 54n))).toEqual(['9:1-40', '2:41-50', '1:51-52', '0:53-53', '0:54-54']);
    expect(shown(planRestore(bucket, 46n))).toEqual(['9:1-40', '1:41-42', '1:43-44', '1:45-46']);
    expect(shown(planRestore(bucket, 40n))).toEqual(['9:1-40']);
    expect(shown(planRestore(bucket, 10n))).toEqual(['2:1-10']);
  });

  it('has no plan for a TXID within a compacted file or beyond the end', () => {
    expect(planRestore(bucket, 45n)).toBeUndefined();
    expect(planRestore(bucket, 55n)).toBeUndefined();
    expect(planRestore([], 1n)).toBeUndefined();
    expect(planRestore(bucket, 0n)).toBeUndefined();
  });

  it('goes round a file that is bad, by older or smaller ones', () => {
    const without = (...bad: string[]) => bucket.filter((one) => !bad.includes(shown([one])![0]!));
    expect(shown(planRestore(without('2:41-50'), 54n))).toEqual([
      '9:1-40',
      '1:41-42',
      '1:43-44',
      '1:45-46',
      '1:47-48',
      '1:49-50',
      '1:51-52',
      '0:53-53',
      '0:54-54',
    ]);
    expect(shown(planRestore(without('9:1-40'), 54n)?.slice(0, 2))).toEqual(['2:1-10', '2:11-20']);
    expect(planRestore(without('0:53-53'), 54n)).toBeUndefined();
  });

  it('takes files that overlap, as Litestream does', () => {
    const files = [file(9, 1, 5), file(1, 3, 8), file(0, 9, 9)];
    expect(shown(planRestore(files, 9n))).toEqual(['9:1-5', '1:3-8', '0:9-9']);
  });

  it('names the holes, and not what retention has left over', () => {
    expect(reachOf(bucket).holes).toEqual([]);
    const { files, holes } = reachOf([
      file(0, 2, 2),
      file(9, 1, 5),
      file(0, 6, 6),
      file(0, 9, 9),
      file(0, 10, 10),
    ]);
    expect(shown(files)).toEqual(['9:1-5', '0:6-6']);
    expect(holes).toEqual([{ from: 7n, to: 8n }]);
    expect(reachOf([file(9, 1, 5), file(1, 6, 20), file(0, 12, 12)]).holes).toEqual([]);
    expect(reachOf([file(9, 1, 5), file(0, 12, 12), file(9, 1, 20)]).holes).toEqual([{ from: 6n, to: 11n }]);
  });

  // A history of sets of pages: what a file holds is decided by what its range changed, so any path can be checked against it.
  const scene = fc
    .record({
      changes: fc.array(fc.array(fc.nat(7), { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 30 }),
      ranges: fc.array(fc.tuple(fc.nat(29), fc.nat(29), fc.integer({ min: 1, max: 100_000 })), {
        maxLength: 40,
      }),
    })
    .map(({ changes, ranges }) => {
      const last = changes.length;
      const files = ranges.map(([a, b, size]) => {
        const [min, max] = [1 + (Math.min(a, b) % last), 1 + (Math.max(a, b) % last)];
        return file(1, Math.min(min, max), Math.max(min, max), size);
      });
      return { changes, files };
    });

  /** The version of each page after applying files, by the TXID that wrote it. */
  function apply(changes: readonly (readonly number[])[], path: readonly BackupFile[]): Map<number, number> {
    const pages = new Map<number, number>();
    for (const { minTxid, maxTxid } of path) {
      for (let txid = Number(minTxid); txid <= Number(maxTxid); txid++)
        for (const page of changes[txid - 1]!) pages.set(page, txid);
    }
    return pages;
  }

  it('makes exactly the state of the TXID, whatever files there are, and finds a path when there is one', () => {
    fc.assert(
      fc.property(scene, fc.integer({ min: 1, max: 30 }), ({ changes, files }, txid) => {
        const plan = planRestore(files, BigInt(txid));
        expect(plan !== undefined).toBe(reachOf(files).files.some((one) => one.maxTxid === BigInt(txid)));
        if (!plan) return;
        expect(plan[0]!.minTxid).toBe(1n);
        const wanted = apply(changes, [file(0, 1, txid)]);
        expect(apply(changes, plan)).toEqual(wanted);
      }),
      { numRuns: 500 },
    );
  });
});
