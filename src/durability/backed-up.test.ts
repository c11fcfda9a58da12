import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { EpochPosition } from '../store/types.js';
import { BackedUp, BothAnswers } from './backed-up.js';
import type { DurabilityEvent } from './durability.js';
import type { DurabilityPolicy } from './policy.js';

const EIO = 5;
const BACKUP: DurabilityPolicy = {
  pattern: '*',
  waitFor: 'async',
  backup: true,
  acknowledge: 'fsync',
  spread: 'any',
  timeoutMs: 2000,
  onTimeout: 'block',
};
const at = (txid: number): EpochPosition => ({ txid: BigInt(txid), checksum: BigInt(100 + txid), epoch: 1n });

/** A primary whose backups are where this test says. */
class Bench {
  readonly answers = new Map<number, number>();
  readonly events: DurabilityEvent[] = [];
  readonly hurried: string[] = [];
  shipped: bigint | undefined;
  isFenced = false;
  end = at(0);
  readonly waits: BackedUp;

  constructor(policy: Partial<DurabilityPolicy> = {}) {
    this.waits = new BackedUp({
      policies: [{ ...BACKUP, ...policy }],
      backups: {
        shipped: () => this.shipped,
        isFenced: () => this.isFenced,
        hurry: (name) => this.hurried.push(name),
      },
      store: { position: () => this.end },
      answer: (id, errno) => this.answers.set(id, errno),
      onEvent: (event) => this.events.push(event),
      nowMs: () => Date.now(),
    });
    this.waits.primary(1n);
  }

  commit(txid: number): void {
    this.end = at(txid);
    this.waits.commit(txid, 'app.db', this.end);
  }

  ship(txid: number): void {
    this.shipped = BigInt(txid);
    this.waits.shipped('app.db');
  }

  get kinds(): string[] {
    return this.events.map(({ kind }) => kind);
  }
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test('a commit returns when the bucket has it, and not before', () => {
  const bench = new Bench();
  bench.commit(1);
  expect(bench.hurried).toEqual(['app.db']);
  bench.ship(0);
  expect(bench.answers.size).toBe(0);
  bench.ship(1);
  expect(bench.answers.get(1)).toBe(0);
  expect(bench.waits.waiting).toBe(0);
  // What is there already waits for nothing.
  bench.shipped = 2n;
  bench.commit(2);
  expect(bench.answers.get(2)).toBe(0);
});

test('who is fenced in the bucket, or may not write any more, acknowledges nothing, whatever on-timeout says', () => {
  const bench = new Bench({ onTimeout: 'degrade' });
  bench.commit(1);
  bench.isFenced = true;
  bench.waits.shipped('app.db');
  expect(bench.answers.get(1)).toBe(EIO);
  vi.advanceTimersByTime(3000);
  bench.commit(2);
  expect(bench.answers.get(2)).toBe(EIO);
  bench.isFenced = false;
  bench.commit(3);
  bench.waits.stop();
  expect(bench.answers.get(3)).toBe(EIO);
  bench.commit(4);
  expect(bench.answers.get(4)).toBe(EIO);
});

test('block goes on waiting, says so once and asks for another try; degrade returns until everything is there again', () => {
  const block = new Bench();
  block.commit(1);
  vi.advanceTimersByTime(5000);
  expect(block.kinds).toEqual(['blocked']);
  expect(block.hurried.length).toBeGreaterThan(3);
  expect(block.answers.size).toBe(0);
  const degrade = new Bench({ onTimeout: 'degrade' });
  degrade.commit(1);
  vi.advanceTimersByTime(2200);
  expect(degrade.answers.get(1)).toBe(0);
  degrade.commit(2);
  expect(degrade.answers.get(2)).toBe(0);
  expect(degrade.waits.degraded).toEqual(['app.db']);
  degrade.ship(1);
  expect(degrade.waits.degraded).toEqual(['app.db']);
  degrade.ship(2);
  expect(degrade.kinds.filter((kind) => kind !== 'waited')).toEqual(['degraded', 'restored']);
  degrade.commit(3);
  expect(degrade.answers.has(3)).toBe(false);
});

test('a commit that waits for two is answered when both have it, or when one never will', () => {
  const answers: [number, number][] = [];
  const both = new BothAnswers((id, errno) => answers.push([id, errno]));
  both.begin(1);
  both.answer(1, 0);
  expect(answers).toEqual([]);
  both.answer(1, 0);
  both.begin(2);
  both.answer(2, EIO);
  both.answer(2, 0);
  both.begin(3);
  both.forget(3);
  both.answer(3, 0);
  both.answer(3, 0);
  expect(answers).toEqual([
    [1, 0],
    [2, EIO],
  ]);
});
