import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

import { buildWalHeader, sealFrame, type WalChecksum } from '../sqlite/wal.js';
import { WalTracker } from './wal-tracker.js';

const PAGE = 512;
const FRAME = 24 + PAGE;

/** A WAL of transactions with these numbers of frames, and where each ends. */
function walOf(transactions: readonly number[]): { bytes: Buffer; ends: number[] } {
  const fields = { bigEndianChecksum: false, pageSize: PAGE, checkpointSequence: 0, salt1: 1, salt2: 2 };
  const { bytes: head, header } = buildWalHeader(fields);
  const frames = transactions.reduce((sum, count) => sum + count, 0);
  const bytes = Buffer.alloc(32 + frames * FRAME);
  head.copy(bytes);
  const ends: number[] = [];
  let checksum: WalChecksum = header;
  let at = 32;
  for (const count of transactions) {
    for (let i = 1; i <= count; i += 1) {
      bytes.fill(i, at + 24, at + FRAME);
      checksum = sealFrame(bytes, at, fields, { pgno: i, commitPages: i === count ? 9 : 0 }, checksum);
      at += FRAME;
    }
    ends.push(at);
  }
  return { bytes, ends };
}

describe('WalTracker', () => {
  it('finds the same commits however the writes are split', () => {
    const transactions = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 5 });
    const cuts = fc.array(fc.nat(12_000), { maxLength: 40 });
    fc.assert(
      fc.property(transactions, cuts, (counts, anyCuts) => {
        const { bytes, ends } = walOf(counts);
        const tracker = new WalTracker();
        const at = [...new Set([0, ...anyCuts.filter((cut) => cut < bytes.length), bytes.length])].toSorted(
          (a, b) => a - b,
        );
        for (let i = 0; i + 1 < at.length; i += 1) {
          tracker.wrote(at[i]!, bytes.subarray(at[i], at[i + 1]));
          const complete = ends.filter((end) => end <= at[i + 1]!).at(-1) ?? 0;
          expect(tracker.committedEnd).toBe(complete);
        }
      }),
      { numRuns: 300 },
    );
  });

  it('announces a commit with the write that completes its frame, and not before', () => {
    const { bytes, ends } = walOf([1]);
    const tracker = new WalTracker();
    expect(tracker.wrote(0, bytes.subarray(0, 32))).toBe(0);
    expect(tracker.wrote(32, bytes.subarray(32, 40))).toBe(0);
    expect(tracker.wrote(40, bytes.subarray(40, 56))).toBe(0);
    expect(tracker.wrote(56, bytes.subarray(56, 300))).toBe(0);
    expect(tracker.wrote(300, bytes.subarray(300))).toBe(ends[0]);
  });

  it('announces again when the frame headers of a commit are mended, the last one last (trap 20)', () => {
    const { bytes, ends } = walOf([3]);
    const tracker = new WalTracker();
    tracker.wrote(0, bytes);
    const header = (frame: number): [number, Buffer] => {
      const at = 32 + frame * FRAME;
      return [at, bytes.subarray(at, at + 24)];
    };
    expect(tracker.wrote(...header(1))).toBe(0);
    expect(tracker.committedEnd).toBe(ends[0]);
    expect(tracker.wrote(...header(2))).toBe(ends[0]);
  });

  it('knows which writes destroy captured bytes', () => {
    const { bytes, ends } = walOf([2, 1]);
    const tracker = new WalTracker();
    expect(tracker.destroys(0, 32, 0)).toBeUndefined();
    tracker.wrote(0, bytes);
    expect(tracker.destroys(ends[1]!, FRAME, bytes.length)).toBeUndefined();
    expect(tracker.destroys(ends[0]!, 24, bytes.length)).toEqual({ kind: 'overwrite', fromBytes: ends[0] });
    expect(tracker.destroys(0, 32, bytes.length)).toEqual({ kind: 'header', fromBytes: 0 });
  });

  it('takes a commit back when a frame without mark is written over it', () => {
    const { bytes, ends } = walOf([1, 1]);
    const tracker = new WalTracker();
    tracker.wrote(0, bytes);
    const other = Buffer.from(bytes.subarray(ends[0], ends[0]! + 24));
    other.writeUInt32BE(0, 4);
    const before = tracker.generation;
    tracker.wrote(ends[0]!, other);
    expect(tracker.committedEnd).toBe(ends[0]);
    expect(tracker.generation).not.toBe(before);
  });

  it('starts anew with a new header and after a truncation', () => {
    const { bytes, ends } = walOf([1, 2]);
    const tracker = new WalTracker();
    tracker.wrote(0, bytes);
    tracker.truncated(ends[0]!);
    expect(tracker.committedEnd).toBe(ends[0]);
    tracker.wrote(0, bytes.subarray(0, 32));
    expect(tracker.committedEnd).toBe(0);
    tracker.truncated(0);
    expect(tracker.pageSize).toBe(0);
  });
});
