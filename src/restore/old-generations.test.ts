import { expect, it } from 'vitest';
import type { BackupFile } from '../backup/layout.js';
import { parseGenerations } from './generations.js';
import { prefersGenerations } from './old-generations.js';

const old = (modifiedMs: number) =>
  parseGenerations([
    { key: 'generations/0123456789abcdef/snapshots/00000000.snapshot.lz4', modifiedMs, sizeBytes: 1 },
  ]);
const file = (modifiedMs: number): BackupFile => {
  return { key: 'x', level: 0, minTxid: 1n, maxTxid: 1n, sizeBytes: 1, modifiedMs };
};

it('takes what Litestream 0.3 has left only where the newer objects have not got the moment', () => {
  const latest = { kind: 'latest' } as const;
  const at = (timestampMs: number) => ({ kind: 'time', timestampMs }) as const;
  expect(prefersGenerations(old(10), [], latest)).toBe(true);
  expect(prefersGenerations(old(10), [file(20)], latest)).toBe(false);
  expect(prefersGenerations(old(30), [file(20)], latest)).toBe(true);
  expect(prefersGenerations(old(10), [file(20)], at(15))).toBe(true);
  expect(prefersGenerations(old(10), [file(20)], at(20))).toBe(false);
  expect(prefersGenerations(old(30), [file(20)], { kind: 'txid', txid: 1n })).toBe(false);
  expect(prefersGenerations(parseGenerations([]), [], latest)).toBe(false);
});
