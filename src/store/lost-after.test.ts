import fc from 'fast-check';
import { expect, test } from 'vitest';

import { lostAfter } from './lost-after.js';
import type { EpochPosition } from './types.js';

/** A history of transactions, each with the epoch of its writer and something that only this transaction is. */
type History = readonly { readonly epoch: bigint; readonly id: string }[];

const positionOf = (history: History, txid: bigint): EpochPosition | undefined => {
  const last = history[Number(txid) - 1];
  return last && { txid, checksum: 1n, epoch: last.epoch };
};

/** A log that holds the transactions after `start` only. */
function logOf(history: History, start: number) {
  const endOfEpoch = (epoch: bigint): EpochPosition | undefined => {
    const count = history.filter((transaction) => transaction.epoch <= epoch).length;
    return count > start ? positionOf(history, BigInt(count)) : undefined;
  };
  const lastPosition = history.length > start ? positionOf(history, BigInt(history.length)) : undefined;
  return { endOfEpoch, lastPosition };
}

/**
 * Nodes that take turns as the primary. A turn begins with what that node has, adds transactions under its epoch, and
 * reaches some of the others up to some point.
 */
const turns = fc.array(
  fc.record({
    primary: fc.nat(2),
    writes: fc.nat(4),
    reaches: fc.array(fc.nat(4), { minLength: 3, maxLength: 3 }),
  }),
  { minLength: 1, maxLength: 6 },
);

test('gives up exactly what the primary has not got, or more when its log does not reach back', () => {
  fc.assert(
    fc.property(turns, fc.nat(8), fc.nat(8), (list, ourStart, theirStart) => {
      const nodes: History[] = [[], [], []];
      let replica = 0;
      let primary = 0;
      for (const [turn, { primary: index, writes, reaches }] of list.entries()) {
        const epoch = BigInt(turn + 1);
        const before = nodes[index]!;
        const made = Array.from({ length: writes }, (_, i) => ({ epoch, id: `${turn}.${i}` }));
        nodes[index] = [...before, ...made];
        for (const [other, extra] of reaches.entries()) {
          if (other === index) continue;
          // Whoever follows this primary ends up with a prefix of what it has, and has given up everything else.
          const isFollower = extra > 0;
          if (isFollower) nodes[other] = nodes[index].slice(0, before.length + extra - 1);
        }
        primary = index;
        replica = (index + 1) % 3;
      }
      const [ours, theirs] = [nodes[replica]!, nodes[primary]!];
      if (ours.length === 0) return;
      const ourLog = logOf(ours, Math.min(ourStart, ours.length - 1));
      const theirLog = logOf(theirs, Math.min(theirStart, theirs.length));
      let common = 0;
      while (common < ours.length && ours[common]?.id === theirs[common]?.id) common += 1;
      const lost = lostAfter(ourLog, theirLog.endOfEpoch(ours.at(-1)!.epoch));
      if (common < ours.length) {
        expect(lost).toBeDefined();
        expect(lost).toBeLessThanOrEqual(BigInt(common));
      }
      // It knows, unless one of the logs does not reach back to where they part.
      if (lost !== 0n) expect(lost).toBe(common < ours.length ? BigInt(common) : undefined);
    }),
    { numRuns: 2000 },
  );
});

test('gives up all when it has nothing of the last epoch that the primary has', () => {
  const ours: History = [
    { epoch: 1n, id: 'a' },
    { epoch: 3n, id: 'c' },
  ];
  const theirs: History = [{ epoch: 2n, id: 'b' }];
  expect(lostAfter(logOf(ours, 0), logOf(theirs, 0).endOfEpoch(3n))).toBe(0n);
});
