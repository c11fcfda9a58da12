import { describe, expect, it } from 'vitest';
import type { Applier } from '../applier/applier.js';
import type { AppliedDatabase } from '../applier/messages.js';
import { KiteError } from '../errors.js';
import type { LogFile } from '../store/types.js';
import { ApplyQueue } from './apply-queue.js';

const file = (txid: bigint): LogFile => ({
  path: `${txid}`,
  minTxid: txid,
  maxTxid: txid,
  sizeBytes: 1,
  epoch: 1n,
  preApplyChecksum: 0n,
  postApplyChecksum: 0n,
  pageSize: 4096,
  commitPages: 1,
});

const at = (txid: bigint): AppliedDatabase => ({
  position: { txid, checksum: 0n, epoch: 1n },
  pageCount: 1,
  pageSize: 4096,
});

/** A log of `log.length` transactions, an applier that does as `failing` says, and what came of it. */
function queueOf(log: LogFile[], failing: (KiteError | undefined)[] = [], isNowhere = false) {
  let opened = 0;
  let position = 0n;
  const seen = {
    applied: [] as bigint[],
    calls: [] as number[],
    diverged: 0,
    rebuilt: 0,
    /** Up to where it was said that readers may see; `apply` where the applier was called. */
    told: [] as (bigint | 'apply' | undefined)[],
    trouble: [] as (string | undefined)[],
  };
  const applier: Pick<Applier, 'open' | 'apply'> = {
    open: async () => {
      opened += 1;
      if (isNowhere) throw new KiteError('ERR_APPLIER_DIVERGED', 'at no position of the log');
      return at(position);
    },
    apply: async (_name, files) => {
      seen.told.push('apply');
      const error = failing.shift();
      if (error) throw error;
      seen.calls.push(files.length);
      position = files.at(-1)?.maxTxid ?? position;
      return at(position);
    },
  };
  const queue: ApplyQueue = new ApplyQueue({
    applier: applier as Applier,
    name: 'app.db',
    filesAfter: ({ position: { txid } }) => log.filter((entry) => entry.minTxid > txid),
    onApplying: () => seen.told.push(queue.applying?.txid),
    onApplied: (database) => seen.applied.push(database.position.txid),
    onRebuild: () => (seen.rebuilt += 1),
    onDiverged: () => (seen.diverged += 1),
    onTrouble: (error) => seen.trouble.push(error?.code),
  });
  return { queue, seen, opened: () => opened };
}

describe('the apply queue', () => {
  it('applies everything in the log, several files at a time', async () => {
    const log = Array.from({ length: 300 }, (_, i) => file(BigInt(i + 1)));
    const { queue, seen, opened } = queueOf(log);
    await queue.drained();
    expect(seen.applied.at(-1)).toBe(300n);
    expect(seen.calls).toEqual([256, 44]);
    log.push(file(301n));
    await queue.drained();
    expect(seen.applied.at(-1)).toBe(301n);
    expect(opened()).toBe(1);
  });

  it('says how far readers may see after a call that may have done a part', async () => {
    const { queue } = queueOf([file(1n), file(2n)], [new KiteError('ERR_APPLIER_IO', 'disk full')]);
    expect(queue.applying).toBeUndefined();
    const drained = queue.drained();
    await new Promise((resolve) => setImmediate(resolve));
    const during = queue.applying;
    await drained;
    expect([during?.txid, queue.applying]).toEqual([2n, undefined]);
  });

  it('says how far readers may see before the applier can show it', async () => {
    const { queue, seen } = queueOf([file(1n), file(2n)]);
    await queue.drained();
    expect(seen.told).toEqual([2n, 'apply']);
  });

  it('opens once more what was found damaged while it was being opened or applied', async () => {
    const { queue, seen, opened } = queueOf([file(1n)]);
    const running = queue.drained();
    // The answers of what is under way come after this.
    queue.reopen();
    await running;
    await queue.drained();
    expect([opened(), seen.applied.at(-1)]).toEqual([2, 1n]);
  });

  it('opens again and goes on after the applier was restarted', async () => {
    const restarted = new KiteError('ERR_APPLIER_RESTARTED', 'killed');
    const { queue, seen, opened } = queueOf([file(1n), file(2n)], [restarted]);
    await queue.drained();
    expect(seen.applied.at(-1)).toBe(2n);
    expect(opened()).toBe(2);
    expect(seen.trouble).toEqual([undefined]);
  });

  it('says what is wrong, and tries again', async () => {
    const { queue, seen } = queueOf([file(1n)], [new KiteError('ERR_APPLIER_IO', 'disk full')]);
    await queue.drained();
    expect(seen.trouble).toEqual(['ERR_APPLIER_IO', undefined]);
    expect(seen.applied.at(-1)).toBe(1n);
  });

  it('writes a database that is at no position of the log anew from the snapshot of the log', async () => {
    const { queue, seen } = queueOf([file(1n), file(2n)], [], true);
    await queue.drained();
    expect(seen).toMatchObject({ applied: [2n], rebuilt: 1, diverged: 0 });
  });

  it('asks for a snapshot when the log does not begin with one', async () => {
    const { queue, seen } = queueOf([file(2n)], [], true);
    await queue.drained();
    expect(seen).toMatchObject({ applied: [], rebuilt: 0, diverged: 1 });
  });

  it('asks for a snapshot when the log cannot be read twice in a row', async () => {
    const damaged = new KiteError('ERR_STORE_LOG_DAMAGED', 'cut off');
    const once = queueOf([file(1n)], [damaged]);
    await once.queue.drained();
    expect(once.seen).toMatchObject({ applied: [0n, 0n, 1n], diverged: 0 });
    const twice = queueOf([file(1n)], [damaged, damaged]);
    await twice.queue.drained();
    expect(twice.seen).toMatchObject({ diverged: 1 });
  });

  it('stops at a divergence and asks for a snapshot', async () => {
    const { queue, seen } = queueOf([file(1n)], [new KiteError('ERR_APPLIER_DIVERGED', 'other bytes')]);
    await queue.drained();
    expect(seen.diverged).toBe(1);
    expect(seen.applied.at(-1)).toBe(0n);
  });
});
