import { expect, it } from 'vitest';
import type { BackupFile } from '../backup/layout.js';
import { standstill } from './standstill.js';

const SETTINGS = { levelIntervalsMs: [30_000, 300_000], snapshotIntervalMs: 3_600_000 };
const MINUTE = 60_000;

const file = (level: number, min: number, max: number, minute: number): BackupFile => ({
  level,
  key: `${level}/${min}-${max}`,
  minTxid: BigInt(min),
  maxTxid: BigInt(max),
  sizeBytes: 1000,
  modifiedMs: minute * MINUTE,
});

/** One upload a minute for an hour, all levels as they should be. */
const hour = (): BackupFile[] => [
  file(9, 1, 5, 5),
  ...[10, 20, 30, 40, 50, 60].map((end) => file(2, end - 9, end, end)),
  ...Array.from({ length: 60 }, (_, i) => file(1, i + 1, i + 1, i + 1)),
  ...Array.from({ length: 5 }, (_, i) => file(0, 56 + i, 56 + i, 56 + i)),
];

it('says nothing of a backup whose levels go on, nor of one that has just begun', () => {
  expect(standstill(hour(), SETTINGS)).toEqual([]);
  expect(standstill([file(0, 1, 1, 7)], SETTINGS)).toEqual([]);
  expect(standstill([], SETTINGS)).toEqual([]);
});

it('says which level is missing or stands still', () => {
  const without = (gone: (file: BackupFile) => boolean): string[] =>
    standstill(
      hour().filter((one) => !gone(one)),
      SETTINGS,
    ).map((text) => text.split(':')[0]!);
  expect(without(({ level }) => level === 2)).toEqual(['level 2 is missing']);
  expect(without(({ level }) => level === 9)).toEqual(['the level of snapshots is missing']);
  expect(without(({ level, maxTxid }) => level === 2 && maxTxid > 20n)).toEqual(['level 2 stands still']);
  expect(without(({ level }) => level === 1)).toEqual(['level 1 is missing']);
});
