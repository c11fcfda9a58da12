import { expect, it } from 'vitest';
import { Retention } from './retention.js';

it('removes what was the end of the log one retention ago, and nothing younger', async () => {
  let txid = 5n;
  const removed: [string, bigint][] = [];
  const trimmed: [string, number][] = [];
  const retention = new Retention(
    {
      databases: () => ['app.db'],
      position: () => ({ txid }),
      removeBefore: async (name, bound) => void removed.push([name, bound]),
      trimTo: async (name, maxBytes) => void trimmed.push([name, maxBytes]),
    },
    1000,
    5000,
  );
  await retention.run(0);
  expect(trimmed).toEqual([['app.db', 5000]]);
  txid = 7n;
  await retention.run(600);
  expect(removed).toEqual([]);
  txid = 9n;
  await retention.run(1000);
  expect(removed).toEqual([['app.db', 5n]]);
  await retention.run(1700);
  expect(removed).toEqual([
    ['app.db', 5n],
    ['app.db', 7n],
  ]);
});
