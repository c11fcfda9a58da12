import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

import type { EpochPosition } from '../store/types.js';
import { Durability, type DurabilityEvent } from './durability.js';
import { policyFor, replicasNeeded, type DurabilityPolicy } from './policy.js';
import { chooseSyncSet } from './sync-set.js';

const EIO = 5;
const ONE: DurabilityPolicy = {
  pattern: '*',
  waitFor: 1,
  backup: false,
  acknowledge: 'fsync',
  spread: 'any',
  timeoutMs: 2000,
  onTimeout: 'block',
};

const at = (txid: number, lineage = 0): EpochPosition => ({
  txid: BigInt(txid),
  checksum: BigInt(1000 * lineage + txid),
  epoch: 1n,
});

/** A primary `p` with a lease record that this test answers for, and databases whose positions it sets. */
class Bench {
  readonly answers = new Map<number, number>();
  readonly events: DurabilityEvent[] = [];
  readonly positions = new Map<string, EpochPosition>();
  readonly durability: Durability;
  /** What the record may hold. */
  sets: (readonly string[])[] = [[]];
  candidates = ['p', 'a', 'b'];
  /** Nodes in another region than the primary. */
  elsewhere: string[] = [];
  wanted: readonly string[] | undefined;

  constructor(...policies: DurabilityPolicy[]) {
    this.durability = new Durability({
      nodeId: 'p',
      region: 'here',
      policies,
      candidatesOnly: true,
      lease: {
        setSyncSet: (_epoch, members) => {
          this.wanted = members;
          this.sets = [...this.sets, members];
        },
        syncSets: () => this.sets,
        members: () =>
          ['p', 'a', 'b', 'c'].map((nodeId) => ({
            nodeId,
            candidate: this.candidates.includes(nodeId),
            region: this.elsewhere.includes(nodeId) ? 'there' : 'here',
          })),
      },
      store: { databases: () => [...this.positions.keys()], position: (name) => this.positions.get(name) },
      answer: (id, errno) => this.answers.set(id, errno),
      onEvent: (event) => this.events.push(event),
      nowMs: () => Date.now(),
    });
  }

  /** The last renewal was answered. */
  confirm(): this {
    if (this.wanted) this.sets = [this.wanted];
    this.durability.renewed();
    return this;
  }

  commit(txid: number, name = 'app.db'): number {
    const position = at(txid);
    this.positions.set(name, position);
    const file = { path: '', sizeBytes: 1, minTxid: position.txid, maxTxid: position.txid, epoch: 1n };
    const more = {
      preApplyChecksum: 0n,
      postApplyChecksum: position.checksum,
      pageSize: 512,
      commitPages: 1,
    };
    this.durability.logged({ kind: 'transaction', name, file: { ...file, ...more } });
    this.durability.commit(txid, name, position);
    return txid;
  }

  acknowledge(nodeId: string, position: EpochPosition, name = 'app.db'): this {
    this.durability.acknowledged(nodeId, name, { received: position, durable: position, applied: undefined });
    return this;
  }

  /** A replica that has what this node has. */
  connect(nodeId: string): this {
    this.durability.connected(nodeId);
    for (const [name, position] of this.positions) this.acknowledge(nodeId, position, name);
    return this;
  }
}

/** A primary whose set, with replica `a`, is in force. */
function started(policy: Partial<DurabilityPolicy> = {}): Bench {
  const bench = new Bench({ ...ONE, ...policy });
  bench.durability.primary(1n);
  bench.connect('a').confirm().confirm();
  expect(bench.sets).toEqual([['p', 'a']]);
  return bench;
}

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe('a commit that waits for replicas', () => {
  test('returns when a member has it, and not before the record names that member', () => {
    const bench = new Bench(ONE);
    bench.durability.primary(1n);
    bench.confirm();
    expect(bench.sets).toEqual([['p']]);
    const id = bench.commit(1);
    bench.connect('a');
    expect(bench.wanted).toEqual(['p', 'a']);
    expect(bench.answers.has(id)).toBe(false);
    bench.confirm();
    expect(bench.answers.get(id)).toBe(0);
  });

  test('waits for the members of every set that the record may have', () => {
    const bench = started();
    bench.connect('b');
    bench.durability.disconnected('a');
    expect(bench.sets).toEqual([
      ['p', 'a'],
      ['p', 'b'],
    ]);
    const id = bench.commit(1);
    bench.acknowledge('b', at(1));
    expect(bench.answers.has(id)).toBe(false);
    bench.confirm();
    expect(bench.answers.get(id)).toBe(0);
  });

  test('is not acknowledged by another lineage, nor by a replica that is none of the set', () => {
    const bench = started();
    bench.commit(1);
    bench.connect('b').acknowledge('a', at(9, 7)).acknowledge('a', at(1, 7));
    expect(bench.answers.size).toBe(0);
    bench.acknowledge('a', at(1));
    expect(bench.answers.get(1)).toBe(0);
  });

  test('counts an older acknowledgement only where it is in our own log', () => {
    const bench = started();
    bench.commit(1);
    bench.commit(2);
    bench.acknowledge('a', at(1));
    expect(bench.answers.size).toBe(0);
    bench.acknowledge('a', at(2));
    expect([...bench.answers]).toEqual([[2, 0]]);
  });

  test('fails when this node may not write any more, and so does one that comes later', () => {
    const bench = started();
    bench.commit(1);
    bench.durability.stop();
    bench.commit(2);
    expect([...bench.answers]).toEqual([
      [1, EIO],
      [2, EIO],
    ]);
  });

  test('does not wait to roll back what a dead writer left', () => {
    const bench = started();
    bench.commit(1);
    bench.acknowledge('a', at(1)).commit(2);
    bench.durability.commit(3, 'app.db', { ...at(3), checksum: at(1).checksum });
    expect([...bench.answers]).toEqual([
      [1, 0],
      [3, 0],
    ]);
  });

  test('goes by what was fsynced, or by what is in memory, as configured', () => {
    for (const acknowledge of ['fsync', 'memory'] as const) {
      const bench = started({ acknowledge });
      bench.commit(1);
      const received = { received: at(1), durable: undefined, applied: at(1) };
      bench.durability.acknowledged('a', 'app.db', received);
      expect(bench.answers.get(1)).toBe(acknowledge === 'memory' ? 0 : undefined);
    }
  });
});

describe('the sync set', () => {
  test('takes in only who has everything promised, in every database, also by the primaries before', () => {
    const bench = new Bench(ONE);
    bench.positions.set('x.db', at(7));
    bench.positions.set('y.db', at(3));
    bench.sets = [['old', 'p']];
    bench.durability.primary(2n);
    bench.confirm();
    expect(bench.sets).toEqual([['p']]);
    bench.durability.connected('a');
    bench.acknowledge('a', at(7), 'x.db').acknowledge('a', at(2), 'y.db').confirm();
    expect(bench.sets).toEqual([['p']]);
    bench.acknowledge('a', at(3), 'y.db').confirm();
    expect(bench.sets).toEqual([['p', 'a']]);
  });

  test('has only candidates, and a member that says hello anew counts from nothing', () => {
    const bench = started();
    bench.connect('c');
    bench.durability.disconnected('a');
    expect(bench.wanted).toEqual(['p', 'a']);
    const id = bench.commit(1);
    bench.acknowledge('c', at(1));
    bench.durability.connected('a');
    bench.confirm();
    expect(bench.answers.has(id)).toBe(false);
  });

  test('gives the place of a member that is late to one that has everything', () => {
    const bench = started();
    bench.connect('b').commit(1);
    bench.acknowledge('b', at(1));
    vi.advanceTimersByTime(900);
    expect(bench.wanted).toEqual(['p', 'a']);
    vi.advanceTimersByTime(300);
    expect(bench.wanted).toEqual(['p', 'b']);
    expect(bench.answers.size).toBe(0);
    expect(bench.confirm().answers.get(1)).toBe(0);
  });

  test('stays as it is while there is nobody better, and says that a commit is blocked', () => {
    const bench = started();
    bench.commit(1);
    bench.durability.disconnected('a');
    vi.advanceTimersByTime(60_000);
    expect(bench.sets).toEqual([['p', 'a']]);
    expect(bench.events.filter(({ kind }) => kind === 'blocked').length).toBe(1);
    expect(bench.durability.state).toMatchObject({ waiting: 1, degraded: [] });
  });

  test('is made smaller in the record before a commit returns with fewer, and grows again', () => {
    const bench = started({ onTimeout: 'degrade' });
    bench.commit(1);
    vi.advanceTimersByTime(2200);
    expect(bench.sets).toEqual([['p', 'a'], ['p']]);
    expect(bench.answers.size).toBe(0);
    bench.confirm();
    expect(bench.answers.get(1)).toBe(0);
    expect(bench.durability.state).toEqual({ syncSet: ['p'], waiting: 0, degraded: ['app.db'] });
    bench.commit(2);
    expect(bench.answers.get(2)).toBe(0);

    vi.advanceTimersByTime(6000);
    bench.acknowledge('a', at(1));
    // It is near: from now on commits wait for it, until it has everything.
    bench.commit(3);
    expect(bench.answers.has(3)).toBe(false);
    bench.acknowledge('a', at(3));
    expect(bench.answers.get(3)).toBe(0);
    bench.confirm().confirm();
    expect(bench.durability.state).toEqual({ syncSet: ['p', 'a'], waiting: 0, degraded: [] });
    expect(bench.events.at(-1)).toEqual({ kind: 'restored', name: 'app.db' });
  });

  test('is emptied where nothing waits any more', () => {
    const bench = new Bench({ ...ONE, waitFor: 'async' });
    bench.sets = [['old', 'p']];
    bench.durability.primary(2n);
    expect(bench.confirm().sets).toEqual([[]]);
    expect(bench.durability.state).toBeUndefined();
  });

  test('keeps one of two where that is enough for a commit that waits', () => {
    const spread = { spread: 'any' as const, isElsewhere: () => false };
    const question = { current: ['a', 'b'], healthy: new Set(['a']), eligible: [], needed: 2, ...spread };
    expect(chooseSyncSet({ ...question, enough: Infinity })).toEqual(['a', 'b']);
    expect(chooseSyncSet({ ...question, enough: 2 })).toEqual(['a', 'b']);
    expect(chooseSyncSet({ ...question, enough: 1 })).toEqual(['a']);
    expect(chooseSyncSet({ ...question, eligible: ['c'], enough: 2 })).toEqual(['a', 'c']);
  });
});

describe('the sync set with regions', () => {
  test('takes a member of another region in as soon as that has everything, and goes on without it where it is only preferred', () => {
    const bench = started({ spread: 'prefer' });
    bench.elsewhere = ['b'];
    bench.connect('b').confirm().confirm();
    expect(bench.sets).toEqual([['p', 'b']]);
    bench.connect('a');
    bench.durability.disconnected('b');
    expect(bench.confirm().sets).toEqual([['p', 'a']]);
    expect(bench.confirm().answers.get(bench.commit(1))).toBeUndefined();
    expect(bench.acknowledge('a', at(1)).answers.get(1)).toBe(0);
  });

  test('lets no commit return without it where it is required, and keeps it as the one that may open', () => {
    const bench = started({ spread: 'require' });
    bench.elsewhere = ['b'];
    bench.commit(1);
    bench.acknowledge('a', at(1)).confirm();
    expect(bench.answers.size).toBe(0);
    bench.connect('b').confirm();
    bench.acknowledge('b', at(1)).confirm();
    expect(bench.sets).toEqual([['p', 'b']]);
    expect(bench.answers.get(1)).toBe(0);
    bench.durability.disconnected('b');
    bench.commit(2);
    bench.acknowledge('a', at(2));
    vi.advanceTimersByTime(60_000);
    expect(bench.confirm().sets).toEqual([['p', 'b']]);
    expect(bench.answers.has(2)).toBe(false);
    expect(bench.events.find(({ kind }) => kind === 'blocked')).toMatchObject({
      message: expect.stringContaining('one of them outside of this region'),
    });
  });

  test('gives it up only as said: degraded, and in the record first', () => {
    const bench = started({ spread: 'require', onTimeout: 'degrade' });
    bench.elsewhere = ['b'];
    bench.connect('b').confirm().confirm();
    expect(bench.sets).toEqual([['p', 'b']]);
    bench.durability.disconnected('b');
    bench.commit(1);
    bench.acknowledge('a', at(1));
    vi.advanceTimersByTime(2200);
    bench.confirm().acknowledge('a', at(1));
    vi.advanceTimersByTime(200);
    expect(bench.sets).toEqual([['p', 'a']]);
    expect(bench.answers.get(1)).toBe(0);
    expect(bench.durability.state).toMatchObject({ degraded: ['app.db'] });
    vi.advanceTimersByTime(6000);
    bench.connect('b').confirm().confirm();
    expect(bench.durability.state).toEqual({ syncSet: ['p', 'b'], waiting: 0, degraded: [] });
  });
});

test('a policy is found by name, the first that matches', () => {
  const policies = [
    { ...ONE, pattern: 'logs/*', waitFor: 'async' as const },
    { ...ONE, pattern: 'a+b.db', waitFor: 2 },
    ONE,
  ];
  expect(policyFor(policies, 'logs/x/y.db')).toBeUndefined();
  expect(policyFor(policies, 'a+b.db')?.waitFor).toBe(2);
  expect(policyFor(policies, 'aab.db')?.waitFor).toBe(1);
  const needed = [1, 2, 3, 4, 5].map((members) => replicasNeeded({ ...ONE, waitFor: 'quorum' }, members));
  expect(needed).toEqual([0, 1, 1, 2, 2]);
});
