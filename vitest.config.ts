import { defineConfig } from 'vitest/config';

/**
 * Two projects: `unit` lives beside the code and needs nothing but Node; `real` needs root, /dev/fuse
 * and a built dist/, and runs one file at a time because the machine's two cores belong to its daemons.
 */
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: ['src/**/*.test.ts', 'test/simulation/**/*.test.ts'],
          testTimeout: 60_000,
        },
      },
      {
        test: {
          name: 'real',
          include: ['test/**/*.test.ts'],
          exclude: ['test/simulation/**'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
          fileParallelism: false,
          pool: 'forks',
        },
      },
    ],
  },
});
