import fc from 'fast-check';
import { expect, test } from 'vitest';
import { behind } from './election.js';
import { decodeRecord, encodeRecord } from './record.js';

test('any record survives being stored', () => {
  const text = fc.string({ minLength: 1 });
  const record = fc.record({
    clusterId: text,
    epoch: fc.bigInt({ min: 0n, max: 2n ** 64n }),
    holder: fc.option(
      fc.record({ nodeId: text, incarnation: text, advertiseUrl: fc.string(), peerAddress: fc.string() }),
      { nil: undefined },
    ),
    heartbeat: fc.bigInt({ min: 0n, max: 2n ** 64n }),
    ttlMs: fc.integer({ min: 1 }),
    positions: fc.dictionary(
      text.filter((name) => name !== '__proto__'),
      fc.string(),
      { noNullPrototype: true },
    ),
    syncSet: fc.array(text),
    handoffTo: fc.option(fc.string(), { nil: undefined }),
  });
  fc.assert(
    fc.property(record, (one) => {
      expect(decodeRecord(encodeRecord(one))).toEqual(one);
    }),
    { numRuns: 200 },
  );
});

test.each(['', 'null', '{}', '{"clusterId":"c","epoch":-1}', 'what LiteFS stores'])(
  '%j is refused as no lease record',
  (text) => expect(() => decodeRecord(text)).toThrow(expect.objectContaining({ code: 'ERR_LEASE_RECORD' })),
);

test('positions are compared by epoch before TXID', () => {
  expect(behind({ db: '3:5' }, { db: '2:900' })).toEqual([]);
  expect(behind({ db: '2:900' }, { db: '3:5' })).toEqual(['db 3:5 > 2:900']);
  expect(behind({}, { b: '1:1', a: '1:2' })).toEqual(['a 1:2 > nothing', 'b 1:1 > nothing']);
});
