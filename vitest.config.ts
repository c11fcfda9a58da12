import { defineConfig } from 'vitest/config';

/**
 * They measure time, count on deadlines of seconds under full load, or fill memory or a disk: nothing runs beside them. What merely waits
 * (for a ttl, for a node that starts) does not belong here.
 */
const ALONE = [
  'test/chaos/{clocks,failover,kills,links}.test.ts',
  'test/daemon/{full-disk,hand-off}.test.ts',
  'test/mount/large.test.ts',
  'test/traps/{durability,fencing,native}.test.ts',
];

const real = {
  testTimeout: 120_000,
  hookTimeout: 120_000,
  pool: 'forks',
} as const;

/**
 * `unit` lives beside the code and needs nothing but Node. `real` and `alone` need root, /dev/fuse and a built dist/: of `real` two
 * files run at a time, of `alone` one, because the machine's two cores then belong to its daemons.
 */
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: ['src/**/*.test.ts', 'test/simulation/**/*.test.ts'],
          testTimeout: 60_000,
          // Both cores: by itself vitest leaves one free.
          maxWorkers: 2,
        },
      },
      {
        test: {
          ...real,
          name: 'real',
          include: ['test/**/*.test.ts'],
          exclude: ['test/simulation/**', ...ALONE],
          maxWorkers: 2,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          ...real,
          name: 'alone',
          include: ALONE,
          fileParallelism: false,
          sequence: { groupOrder: 2 },
        },
      },
      // Not of `npm test`: these fetch whole distributions.
      { test: { ...real, name: 'long', include: ['test/**/*.long.ts'], testTimeout: 1_800_000 } },
    ],
  },
});
