import fc from 'fast-check';
import { expect, test } from 'vitest';

import { Freshness } from './freshness.js';

const at = (txid: bigint, checksum = txid) => ({ txid, checksum });

test('data is as old as the probe whose answer has been applied', () => {
  const freshness = new Freshness();
  freshness.applied('a.db', at(3n));
  expect(freshness.report('a.db', 0)).toEqual({
    position: at(3n),
    lagTransactions: undefined,
    maxAgeMs: undefined,
  });
  freshness.probeSent(1, 100);
  freshness.answered(1, true, [['a.db', at(5n)]]);
  expect(freshness.report('a.db', 150)).toMatchObject({ lagTransactions: 2, maxAgeMs: undefined });
  freshness.applied('a.db', at(4n));
  expect(freshness.report('a.db', 150)?.maxAgeMs).toBeUndefined();
  freshness.applied('a.db', at(5n));
  expect(freshness.report('a.db', 150)).toMatchObject({ lagTransactions: 0, maxAgeMs: 50 });
  // Nothing changed since: the next answer names no position.
  freshness.probeSent(2, 600);
  freshness.answered(2, true, []);
  expect(freshness.report('a.db', 610)?.maxAgeMs).toBe(10);
});

test('an answer without a valid lease, an unknown answer and another history prove nothing', () => {
  const freshness = new Freshness();
  freshness.applied('a.db', at(5n));
  freshness.probeSent(1, 100);
  freshness.answered(1, false, [['a.db', at(5n)]]);
  freshness.answered(7, true, []);
  freshness.probeSent(2, 200);
  freshness.answered(2, true, [['a.db', at(5n, 99n)]]);
  freshness.probeSent(3, 300);
  freshness.answered(3, true, [['a.db', at(4n)]]);
  expect(freshness.report('a.db', 400)?.maxAgeMs).toBeUndefined();
  freshness.probeSent(4, 400);
  freshness.answered(4, true, [['a.db', at(6n, 60n)]]);
  freshness.applied('a.db', at(6n));
  expect(freshness.report('a.db', 500)?.maxAgeMs).toBeUndefined();
});

test('the age goes on growing while the stream is down, and what was promised by the old one is forgotten', () => {
  const freshness = new Freshness();
  freshness.applied('a.db', at(1n));
  freshness.probeSent(1, 100);
  freshness.answered(1, true, [['a.db', at(1n)]]);
  freshness.probeSent(2, 200);
  freshness.answered(2, true, [['a.db', at(2n)]]);
  freshness.streamStarted();
  freshness.applied('a.db', at(2n));
  expect(freshness.report('a.db', 1100)).toMatchObject({ lagTransactions: undefined, maxAgeMs: 1000 });
  freshness.dropped('a.db');
  expect(freshness.report('a.db', 1100)).toBeUndefined();
});

test('the age is never said to be less than it is', () => {
  // A model: commits, probes, answers and applies in any order that the network allows.
  const step = fc.constantFrom('commit', 'probe', 'answer', 'apply', 'wait');
  fc.assert(
    fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
      const freshness = new Freshness();
      const committedAtMs = [0];
      const probes: number[] = [];
      let [now, applied, probe] = [0, 0, 0];
      freshness.applied('a.db', at(0n));
      for (const next of steps) {
        now++;
        if (next === 'commit') committedAtMs.push(now);
        if (next === 'wait') now += 50;
        if (next === 'probe') {
          freshness.probeSent(++probe, now);
          probes.push(probe);
        }
        const primary = committedAtMs.length - 1;
        if (next === 'answer' && probes.length > 0) {
          freshness.answered(probes.shift()!, true, [['a.db', at(BigInt(primary))]]);
        }
        if (next === 'apply' && applied < primary) freshness.applied('a.db', at(BigInt(++applied)));
        // The truth: the oldest commit that is missing here; nothing missing means age 0.
        const missing = committedAtMs[applied + 1];
        const report = freshness.report('a.db', now);
        if (report?.maxAgeMs !== undefined && missing !== undefined) {
          expect(report.maxAgeMs).toBeGreaterThanOrEqual(now - missing);
        }
      }
    }),
    { numRuns: 500 },
  );
});
