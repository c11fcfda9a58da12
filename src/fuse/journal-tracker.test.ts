import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

import { JournalTracker } from './journal-tracker.js';

/** The 28 bytes that SQLite begins a journal with, for a database of `pages` pages of 1024 bytes. */
function header(pages: number): Buffer {
  const bytes = Buffer.alloc(28);
  bytes.write('d9d505f920a163d7', 0, 'hex');
  bytes.writeUInt32BE(1, 8);
  bytes.writeUInt32BE(pages, 16);
  bytes.writeUInt32BE(512, 20);
  bytes.writeUInt32BE(1024, 24);
  return bytes;
}

describe('JournalTracker', () => {
  it('is live once the whole magic is there, however it was written', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 12 }), { minLength: 3, maxLength: 30 }), (lengths) => {
        const tracker = new JournalTracker();
        const bytes = header(4);
        let at = 0;
        for (const length of lengths) {
          tracker.wrote(at, bytes.subarray(at, at + length), () => 4096);
          at = Math.min(bytes.length, at + length);
          expect(tracker.live).toBe(at >= 8);
        }
      }),
    );
  });

  it('lists the pages written while it is live, and the size before', () => {
    const tracker = new JournalTracker();
    tracker.wrote(0, header(4), () => 4096);
    tracker.wroteDatabase(3000, 200);
    tracker.wroteDatabase(0, 1024);
    expect(tracker.dirtyPages).toEqual([1, 3, 4]);
    expect(tracker.oldSizeBytes).toBe(4096);
    expect(tracker.durable).toBe(false);
    tracker.syncedDatabase();
    expect(tracker.durable).toBe(true);
  });

  it('believes a hot journal about the size before it', () => {
    const tracker = new JournalTracker();
    tracker.wrote(0, header(4), () => 10 * 1024);
    expect(tracker.oldSizeBytes).toBe(4096);
  });

  it('sees the commit in a zeroed header, in a truncation, and not in a header written again', () => {
    const tracker = new JournalTracker();
    tracker.wrote(0, header(4), () => 4096);
    expect(tracker.endsBy(0, header(4).subarray(0, 12))).toBe(false);
    expect(tracker.endsBy(28, Buffer.alloc(100))).toBe(false);
    expect(tracker.endsBy(0, Buffer.alloc(28))).toBe(true);
    expect(tracker.endsBy(4, Buffer.alloc(2))).toBe(true);
    tracker.wroteDatabase(0, 1024);
    tracker.truncated(0);
    expect(tracker.live).toBe(false);
    expect(tracker.dirtyPages).toEqual([]);
  });
});
