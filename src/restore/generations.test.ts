import { describe, expect, it } from 'vitest';
import { parseGenerations, planGenerations } from './generations.js';

const object = (key: string, modifiedMs: number) => ({ key, modifiedMs, sizeBytes: 10 });
const GENERATION = '0123456789abcdef';
const OTHER = 'fedcba9876543210';
const objects = [
  object(`app/generations/${OTHER}/snapshots/00000005.snapshot.lz4`, 5),
  object(`app/generations/${GENERATION}/snapshots/00000000.snapshot.lz4`, 10),
  object(`app/generations/${GENERATION}/snapshots/00000001.snapshot.lz4`, 30),
  object(`app/generations/${GENERATION}/wal/00000000_00000000.wal.lz4`, 11),
  object(`app/generations/${GENERATION}/wal/00000000_00001038.wal.lz4`, 20),
  object(`app/generations/${GENERATION}/wal/00000001_00000000.wal.lz4`, 25),
  object(`app/generations/${GENERATION}/wal/00000002_00000000.wal.lz4`, 40),
  object(`app/generations/${GENERATION}/wal/notes.txt`, 40),
  object('app/0000/0000000000000001-0000000000000001.ltx', 50),
];
const names = (plan: ReturnType<typeof planGenerations>): string[] | undefined =>
  plan && [plan.plan.snapshot, ...plan.plan.pieces].map(({ key }) => key.slice(33));

describe('the plan of a restore from Litestream 0.3', () => {
  it('takes the last copy, and the WAL from its index on', () => {
    expect(names(planGenerations(parseGenerations(objects)))).toEqual([
      'snapshots/00000001.snapshot.lz4',
      'wal/00000001_00000000.wal.lz4',
      'wal/00000002_00000000.wal.lz4',
    ]);
  });

  it('takes what was there at a moment, and no piece behind one that came later', () => {
    expect(names(planGenerations(parseGenerations(objects), 24))).toEqual([
      'snapshots/00000000.snapshot.lz4',
      'wal/00000000_00000000.wal.lz4',
      'wal/00000000_00001038.wal.lz4',
    ]);
    expect(names(planGenerations(parseGenerations(objects), 9))).toEqual(['snapshots/00000005.snapshot.lz4']);
    expect(planGenerations(parseGenerations(objects), 4)).toBeUndefined();
  });

  it('names a WAL that is missing', () => {
    const without = (part: string) => parseGenerations(objects.filter(({ key }) => !key.includes(part)));
    expect(planGenerations(without('wal/00000001'))?.missing).toBe('the WAL with index 00000001');
    expect(planGenerations(without('0_00000000'), 24)?.missing).toBe(
      'the start of the WAL with index 00000000',
    );
    expect(planGenerations(without('nothing'))?.missing).toBeUndefined();
  });
});
