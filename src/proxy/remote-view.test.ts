import { describe, expect, it } from 'vitest';
import type { NodeFacts } from './messages.js';
import { RemoteView } from './remote-view.js';

const FACTS: NodeFacts = {
  nodeId: 'a',
  clusterId: 'c',
  region: '',
  role: 'primary',
  ready: true,
  epoch: 7n,
  writableUntilMs: Infinity,
  primary: undefined,
};
const at = (txid: number): ReadonlyMap<string, { epoch: bigint; txid: bigint }> =>
  new Map([['app.db', { epoch: 7n, txid: BigInt(txid) }]]);

/** A view whose questions are kept, and whose mark the test sets. */
function start() {
  const asked: { id: number; databases: readonly string[] }[] = [];
  const daemon = { mark: 1 as number | undefined };
  const view = new RemoteView(FACTS, [], {
    ask: (id, databases) => asked.push({ id, databases }),
    mark: () => daemon.mark,
  });
  const turn = async (): Promise<void> => await new Promise((resolve) => setImmediate(resolve));
  const answer = async (txid: number | undefined): Promise<void> => {
    await turn();
    view.answered(asked.at(-1)!.id, txid === undefined ? undefined : at(txid));
    await turn();
  };
  return { view, asked, daemon, answer };
}

describe('what has been seen', () => {
  it('is asked once for as long as nothing new can be seen', async () => {
    const { view, asked, daemon, answer } = start();
    const [one, two] = [view.seen(['app.db']), view.seen(['app.db'])];
    await answer(5);
    expect([await one, await two]).toEqual([at(5), at(5)]);
    expect(view.seen(['app.db'])).toEqual(at(5));
    expect(asked.length).toBe(1);
    daemon.mark = 2;
    const next = view.seen(['app.db']);
    await answer(6);
    expect(await next).toEqual(at(6));
    expect([view.seen(['app.db']), asked.length]).toEqual([at(6), 2]);
    // Another database was not in the answer.
    const other = view.seen(['app.db', 'other.db']);
    await answer(6);
    await other;
    expect(asked.length).toBe(3);
  });

  it('is asked again when something has become visible while it was asked', async () => {
    const { view, asked, daemon, answer } = start();
    const first = view.seen(['app.db']);
    await new Promise((resolve) => setImmediate(resolve));
    // After the question was sent: its answer may have it or not.
    daemon.mark = 2;
    await answer(5);
    expect(await first).toEqual(at(5));
    const second = view.seen(['app.db']);
    await answer(6);
    expect([await second, asked.length]).toEqual([at(6), 2]);
  });

  it('is asked each time where there is no mark, and after an answer that was none', async () => {
    const { view, asked, daemon, answer } = start();
    const unknown = view.seen(['app.db']);
    await answer(undefined);
    expect(await unknown).toEqual(new Map());
    daemon.mark = undefined;
    for (const txid of [5, 6]) {
      const seen = view.seen(['app.db']);
      await answer(txid);
      expect(await seen).toEqual(at(txid));
    }
    expect(asked.length).toBe(3);
  });

  it('is nothing, without a question, when no database counts', () => {
    const { view, asked } = start();
    expect([view.seen([]), asked.length]).toEqual([new Map(), 0]);
  });
});
