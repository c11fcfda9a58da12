import { describe, expect, it } from 'vitest';
import type { History } from '../proxy/history.js';
import type { StoreChange } from '../replication/store.js';
import { PositionWaits } from './position-waits.js';

describe('who waits for a position', () => {
  const listeners = new Set<(change: StoreChange) => void>();
  let history: History | undefined;
  const waits = new PositionWaits({
    history: () => history,
    subscribe: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  });
  const comeTo = (epoch: bigint, txid: bigint): void => {
    history = { position: { epoch, txid }, ends: [] };
    for (const listener of listeners) listener({ kind: 'applied', name: 'app.db' });
  };

  it('is woken when it is reached, or can never be', async () => {
    const first = waits.wait('app.db', { epoch: 1n, txid: 5n }, 60_000);
    const second = waits.wait('app.db', { epoch: 1n, txid: 9n }, 60_000);
    comeTo(1n, 4n);
    comeTo(1n, 5n);
    expect(await first).toBe(true);
    // Epoch 2 has gone on without it.
    comeTo(2n, 6n);
    expect(await second).toBe(true);
    expect(await waits.wait('app.db', { epoch: 2n, txid: 6n }, 0)).toBe(true);
  });

  it('waits no longer than it may', async () => {
    const gone = new AbortController();
    const aborted = waits.wait('app.db', { epoch: 3n, txid: 1n }, 60_000, gone.signal);
    gone.abort();
    expect(await aborted).toBe(false);
    expect(await waits.wait('app.db', { epoch: 3n, txid: 1n }, 5)).toBe(false);
    const stopped = waits.wait('app.db', { epoch: 3n, txid: 1n }, 60_000);
    waits.stop();
    expect(await stopped).toBe(false);
    expect(listeners.size).toBe(0);
  });
});
