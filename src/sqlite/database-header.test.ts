import { expect, it } from 'vitest';
import { carryHeader } from './database-header.js';

it('an older page 1 gets counters above those of now, and the journal mode of now', () => {
  const [older, newer] = [Buffer.alloc(512), Buffer.alloc(512)];
  older.fill(7, 100);
  older.writeUInt32BE(3, 24);
  older.writeUInt32BE(40, 28);
  older.writeUInt32BE(5, 40);
  older.set([1, 1], 18);
  newer.writeUInt32BE(9, 24);
  newer.writeUInt32BE(0xffffffff, 40);
  newer.set([2, 2], 18);
  const page = carryHeader(older, newer);
  expect([page[18], page[19], page.readUInt32BE(24), page.readUInt32BE(28), page.readUInt32BE(92)]).toEqual([
    2, 2, 10, 40, 10,
  ]);
  // It may wrap, as SQLite's does.
  expect(page.readUInt32BE(40)).toBe(0);
  expect(page.subarray(100).every((byte) => byte === 7)).toBe(true);
  expect(older.readUInt32BE(24)).toBe(3);
});
