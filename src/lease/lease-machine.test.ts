import { describe, expect, test } from 'vitest';
import { LeaseMachine } from './lease-machine.js';
import { MemoryLeaseStore } from './memory.js';
import type { LeaseAnswer, LeaseCall, LeaseInput, LeaseMachineOptions } from './protocol.js';
import type { LeaseEvent, LeaseRecord, Member } from './types.js';

const TTL = 5000;
const MARGIN = 500;

/** One machine on a store that answers at once, unless `silent`; time moves only by `pass`. */
class Bench {
  readonly events: LeaseEvent[] = [];
  readonly calls: { id: number; call: LeaseCall }[] = [];
  readonly machine: LeaseMachine;
  readonly store: MemoryLeaseStore;
  readonly ended = new Set<string>();
  nowMs = 1000;
  silent = false;
  failure: string | undefined;

  constructor(store: MemoryLeaseStore, options: Partial<LeaseMachineOptions> & { nodeId?: string } = {}) {
    this.store = store;
    const nodeId = options.nodeId ?? 'me';
    this.machine = new LeaseMachine({
      clusterId: 'c',
      node: { ...member(nodeId), candidate: true },
      incarnation: `${nodeId}-1`,
      highestEpoch: 0n,
      ttlMs: TTL,
      marginMs: MARGIN,
      lockDelayMs: 0,
      electionWaitMs: 1000,
      provesEnd: false,
      positions: () => ({}),
      followed: () => true,
      powerWasCut: false,
      ...options,
    });
  }

  give(input: LeaseInput): this {
    const inputs = [input];
    for (let next = inputs.shift(); next; next = inputs.shift()) {
      for (const effect of this.machine.step(this.nowMs, next)) {
        if (effect.kind === 'event') this.events.push(effect.event);
        else if (effect.kind === 'left') this.failure = effect.failure;
        else if (this.silent || effect.call.op === 'watch') this.calls.push(effect);
        else inputs.push({ kind: 'answer', id: effect.id, answer: this.answer(effect.call) });
      }
    }
    return this;
  }

  /** Lets time pass in steps of 50 ms; the watch answers when the record has changed. */
  pass(ms: number): this {
    for (const endMs = this.nowMs + ms; this.nowMs < endMs;) {
      this.nowMs = Math.min(this.nowMs + 50, endMs);
      const index = this.calls.findIndex(
        ({ call }) => call.op === 'watch' && call.version !== this.store.current.version,
      );
      const [watch] = index === -1 || this.silent ? [] : this.calls.splice(index, 1);
      if (watch) this.give({ kind: 'answer', id: watch.id, answer: this.answer({ op: 'read' }) });
      this.give({ kind: 'tick' });
    }
    return this;
  }

  answer(call: LeaseCall): LeaseAnswer {
    switch (call.op) {
      case 'compareAndSet':
        return { op: 'compareAndSet', version: this.store.compareAndSet(call.expected, call.record) };
      case 'members':
        return { op: 'members', members: this.store.members };
      case 'register':
        this.store.register(call.member);
        return { op: 'done' };
      case 'unregister':
        this.store.unregister('me');
        return { op: 'done' };
      case 'ended':
        return { op: 'ended', ended: this.ended.has(call.process.incarnation) };
      default:
        return { op: 'record', seen: this.store.current };
    }
  }

  /** Starts, wins and is ready. */
  asPrimary(): this {
    this.give({ kind: 'tick' });
    return this.give({ kind: 'ready', epoch: this.store.current.record!.epoch });
  }

  kinds(): string[] {
    return this.events.map((event) => event.kind);
  }

  last<K extends LeaseEvent['kind']>(kind: K): Extract<LeaseEvent, { kind: K }> | undefined {
    return this.events.findLast((event) => event.kind === kind) as never;
  }

  /** The call of a kind that is still unanswered. */
  pending(op: LeaseCall['op']): { id: number; call: LeaseCall } {
    return this.calls.findLast(({ call }) => call.op === op)!;
  }
}

const member = (nodeId: string, more: Partial<Member> = {}): Member => ({
  nodeId,
  clusterId: 'c',
  incarnation: `${nodeId}-1`,
  advertiseUrl: '',
  peerAddress: '',
  candidate: true,
  region: '',
  priority: 0,
  epoch: 0n,
  seen: 1n,
  positions: {},
  ...more,
});

const heldBy = (nodeId: string, more: Partial<LeaseRecord> = {}): LeaseRecord => ({
  clusterId: 'c',
  epoch: 4n,
  holder: { nodeId, incarnation: `${nodeId}-1`, advertiseUrl: '', peerAddress: '' },
  heartbeat: 10n,
  ttlMs: TTL,
  positions: {},
  syncSet: [],
  handoffTo: undefined,
  ...more,
});

const beat = (store: MemoryLeaseStore): void => {
  const { record, version } = store.current;
  store.compareAndSet(version, { ...record!, heartbeat: record!.heartbeat + 1n });
};

describe('taking the lease', () => {
  test('a new cluster has a primary at once, but only once its daemon is ready', () => {
    const bench = new Bench(new MemoryLeaseStore()).give({ kind: 'tick' });
    expect(bench.kinds()).toEqual(['replica', 'won']);
    expect(bench.pass(3000).kinds()).toEqual(['replica', 'won']);
    bench.give({ kind: 'ready', epoch: 1n });
    expect(bench.last('primary')?.epoch).toBe(1n);
  });

  test('a silent holder is followed by an epoch more after ttl + margin of watching, not before', () => {
    const bench = new Bench(new MemoryLeaseStore(heldBy('other'))).give({ kind: 'tick' });
    bench.pass(TTL + MARGIN - 1);
    expect(bench.last('won')).toBeUndefined();
    expect(bench.pass(1).last('won')?.epoch).toBe(5n);
  });

  test('each heartbeat starts the wait again, and lock-delay makes it longer', () => {
    const store = new MemoryLeaseStore(heldBy('other'));
    const bench = new Bench(store, { lockDelayMs: 2000 }).give({ kind: 'tick' }).pass(TTL);
    beat(store);
    bench.pass(TTL + MARGIN + 1950);
    expect(bench.last('won')).toBeUndefined();
    expect(bench.pass(100).last('won')?.epoch).toBe(5n);
  });

  test('the wait is the holder’s ttl, not our own', () => {
    const bench = new Bench(new MemoryLeaseStore(heldBy('other', { ttlMs: 9000 }))).give({ kind: 'tick' });
    expect(bench.pass(9000).last('won')).toBeUndefined();
    expect(bench.pass(600).last('won')).toBeDefined();
  });

  test('an emptied lease is taken at once, also by a node that started long after', () => {
    const store = new MemoryLeaseStore(heldBy('other', { holder: undefined }));
    expect(new Bench(store).give({ kind: 'tick' }).last('won')?.epoch).toBe(5n);
  });

  test('a handed-off lease is its target’s alone for one ttl', () => {
    const empty = heldBy('other', { holder: undefined, handoffTo: 'me', positions: { db: '4:9' } });
    expect(new Bench(new MemoryLeaseStore(empty)).give({ kind: 'tick' }).last('won')).toBeDefined();
    const third = new Bench(new MemoryLeaseStore({ ...empty, positions: {} }), { nodeId: 'third' });
    expect(
      third
        .give({ kind: 'tick' })
        .pass(TTL - 50)
        .last('won'),
    ).toBeUndefined();
    expect(third.pass(100).last('won')?.epoch).toBe(5n);
  });

  test('a holder whose process is proven dead is not waited for', () => {
    const bench = new Bench(new MemoryLeaseStore(heldBy('other')), { provesEnd: true }).give({
      kind: 'tick',
    });
    bench.pass(500);
    expect(bench.last('won')).toBeUndefined();
    bench.ended.add('other-1');
    expect(bench.pass(250).last('won')?.reason).toBe('the process of other has ended');
  });

  test('a node that is no candidate never takes it', () => {
    const node = { ...member('me'), candidate: false };
    const bench = new Bench(new MemoryLeaseStore(heldBy('other', { holder: undefined })), { node });
    expect(bench.give({ kind: 'tick' }).pass(60_000).kinds()).toEqual(['replica']);
  });

  test('a node outside the sync set never takes it', () => {
    const store = new MemoryLeaseStore(heldBy('other', { holder: undefined, syncSet: ['other', 'third'] }));
    expect(new Bench(store).give({ kind: 'tick' }).pass(60_000).last('won')).toBeUndefined();
  });

  test('a node that is behind the record waits for a better one, then says what is missing', () => {
    const store = new MemoryLeaseStore(heldBy('other', { holder: undefined, positions: { 'a.db': '4:9' } }));
    const bench = new Bench(store, { positions: () => ({ 'a.db': '3:12' }) }).give({ kind: 'tick' });
    expect(bench.last('waiting')?.reason).toContain('the previous primary had more');
    expect(bench.pass(950).last('won')).toBeUndefined();
    expect(bench.pass(100).last('won')?.recorded).toEqual({ 'a.db': '4:9' });
  });

  test('an old copy does not take it by itself: a person lets it, or somebody alive has what it lacks', () => {
    const record = heldBy('other', { positions: { 'a.db': '4:9' } });
    const old = { positions: () => ({ 'a.db': '4:8' }), followed: () => false };
    const alone = new Bench(new MemoryLeaseStore(record), old).give({ kind: 'tick' });
    expect(alone.pass(10 * TTL).last('won')).toBeUndefined();
    expect(alone.last('waiting')?.reason).toContain('was away');
    alone.give({ kind: 'acceptLoss', forMs: 1000 });
    expect(alone.last('won')).toMatchObject({ complete: false, mustFetch: false });

    const store = new MemoryLeaseStore(record);
    const beside = new Bench(store, old).give({ kind: 'tick' });
    for (let seen = 1n; seen < 10n; seen += 1n) {
      store.register(member('reader', { candidate: false, seen, positions: { 'a.db': '4:9' } }));
      beside.pass(1000);
    }
    expect(beside.last('won')).toMatchObject({ mustFetch: true, recorded: { 'a.db': '4:9' } });
  });

  test('accepting a loss shortens no wait for a holder that may still write', () => {
    const bench = new Bench(new MemoryLeaseStore(heldBy('other'))).give({ kind: 'tick' });
    bench.give({ kind: 'acceptLoss', forMs: 10 * TTL });
    expect(bench.pass(TTL + MARGIN - 1).last('won')).toBeUndefined();
    expect(bench.pass(1).last('won')?.epoch).toBe(5n);
  });

  test('who handed it over takes it back, with a new epoch, when the successor does not come', () => {
    const store = new MemoryLeaseStore();
    store.register(member('other'));
    const bench = new Bench(store).asPrimary();
    bench.give({ kind: 'leave', leave: { kind: 'handOff', target: 'other' } });
    expect(store.current.record).toMatchObject({ handoffTo: 'other', epoch: 1n });
    expect(bench.pass(TTL / 5 - 1).last('won')?.epoch).toBe(1n);
    expect(bench.pass(1).last('won')?.epoch).toBe(2n);
  });

  test('among equals the higher priority goes first', () => {
    const store = new MemoryLeaseStore(heldBy('other', { holder: undefined }));
    store.register(member('better', { priority: 5 }));
    const bench = new Bench(store).give({ kind: 'tick' });
    expect(bench.last('waiting')?.reason).toBe('better has a higher priority');
    expect(bench.pass(TTL / 10).last('won')).toBeDefined();
  });

  test('a missing record is not a new cluster: ttl + margin pass, and no epoch is given twice', () => {
    const store = new MemoryLeaseStore();
    store.register(member('third', { epoch: 9n }));
    const bench = new Bench(store, { highestEpoch: 7n }).give({ kind: 'tick' }).pass(TTL + MARGIN - 1);
    expect(bench.last('won')).toBeUndefined();
    expect(bench.pass(50).last('won')?.epoch).toBe(10n);
  });
});

describe('holding the lease', () => {
  test('the deadline counts from when the renewal was sent', () => {
    const bench = new Bench(new MemoryLeaseStore()).asPrimary();
    bench.silent = true;
    bench.pass(1000);
    const sentMs = bench.nowMs;
    const { id, call } = bench.pending('compareAndSet');
    bench.nowMs += 700;
    bench.give({ kind: 'answer', id, answer: bench.answer(call) });
    expect(bench.last('renewed')?.deadlineNs).toBe(BigInt((sentMs + TTL - MARGIN) * 1e6));
  });

  test('an unanswered renewal moves nothing and the record is read before the next', () => {
    const bench = new Bench(new MemoryLeaseStore()).asPrimary();
    bench.silent = true;
    bench.pass(1000);
    const { id, call } = bench.pending('compareAndSet');
    bench.answer(call); // carried out, but the answer is lost
    bench.give({ kind: 'failed', id, why: 'timed out' }).pass(300);
    expect(bench.last('renewed')).toBeUndefined();
    expect(bench.calls.at(-1)?.call.op).toBe('read');
    bench.silent = false;
    bench.give({ kind: 'answer', id: bench.calls.at(-1)!.id, answer: bench.answer({ op: 'read' }) });
    expect(bench.last('renewed')).toBeDefined();
  });

  test('without renewals it is fenced at its deadline, and writes again under the same epoch after one', () => {
    const bench = new Bench(new MemoryLeaseStore()).asPrimary();
    bench.silent = true;
    bench.pass(TTL - MARGIN - 1);
    expect(bench.last('fenced')).toBeUndefined();
    bench.pass(1);
    expect(bench.last('fenced')?.reason).toBe('no renewal succeeded before the deadline');
    bench.silent = false;
    bench.give({ kind: 'failed', id: bench.pending('compareAndSet').id, why: 'timed out' }).pass(1000);
    expect(bench.kinds().slice(-2)).toEqual(['reachable', 'primary']);
    expect(bench.last('primary')?.epoch).toBe(1n);
  });

  test('after a clock gap only a renewal sent after it counts', () => {
    const bench = new Bench(new MemoryLeaseStore()).asPrimary();
    bench.silent = true;
    bench.pass(1000);
    const { id, call } = bench.pending('compareAndSet');
    bench.give({ kind: 'clockGap', why: 'suspended' });
    expect(bench.last('fenced')?.reason).toBe('suspended');
    bench.give({ kind: 'answer', id, answer: bench.answer(call) });
    expect(bench.kinds().at(-1)).toBe('fenced');
    bench.silent = false;
    const read = bench.pending('read');
    bench.give({ kind: 'answer', id: read.id, answer: bench.answer(read.call) });
    expect(bench.kinds().at(-1)).toBe('primary');
  });

  test('a holder that finds another name in the record is fenced and follows', () => {
    const store = new MemoryLeaseStore();
    const bench = new Bench(store).asPrimary();
    store.compareAndSet(store.current.version, heldBy('other', { epoch: 2n }));
    bench.pass(1000);
    expect(bench.kinds().slice(-2)).toEqual(['fenced', 'replica']);
    expect(bench.last('replica')?.of?.nodeId).toBe('other');
  });
});

describe('giving the lease up', () => {
  test('a hand-off fences first, empties the holder, keeps the epoch and names the target', () => {
    const store = new MemoryLeaseStore();
    const bench = new Bench(store).asPrimary();
    store.register(member('target'));
    bench.pass(1000);
    bench.silent = true;
    bench.give({ kind: 'leave', leave: { kind: 'handOff', target: 'target' } });
    expect(bench.kinds().at(-1)).toBe('fenced');
    const { id, call } = bench.pending('compareAndSet');
    bench.give({ kind: 'answer', id, answer: bench.answer(call) });
    expect(store.current.record).toMatchObject({ epoch: 1n, holder: undefined, handoffTo: 'target' });
    expect(bench.failure).toBeUndefined();
    expect(bench.last('replica')).toBeDefined();
  });

  test('a hand-off to an unknown or silent node is refused and fences nobody', () => {
    const store = new MemoryLeaseStore();
    const bench = new Bench(store).asPrimary();
    bench.give({ kind: 'leave', leave: { kind: 'handOff', target: 'target' } });
    expect(bench.failure).toBe('target is not registered');
    store.register(member('target'));
    bench.pass(TTL + MARGIN + 1000).give({ kind: 'leave', leave: { kind: 'handOff', target: 'target' } });
    expect(bench.failure).toBe('target is silent');
    expect(bench.last('fenced')).toBeUndefined();
  });

  test('a clean stop empties the holder, keeps the epoch and unregisters', () => {
    const store = new MemoryLeaseStore();
    const bench = new Bench(store).asPrimary().give({ kind: 'leave', leave: { kind: 'release' } });
    expect(store.current.record).toMatchObject({ epoch: 1n, holder: undefined, handoffTo: undefined });
    expect(store.members).toEqual([]);
    expect(bench.last('fenced')).toBeDefined();
    expect(bench.machine.wakeAtMs).toBe(Infinity);
  });

  test('a daemon that gave up lets others go first', () => {
    const bench = new Bench(new MemoryLeaseStore()).give({ kind: 'tick' });
    bench.give({ kind: 'leave', leave: { kind: 'giveUp', why: 'no disk' } });
    expect(bench.store.current.record?.holder).toBeUndefined();
    expect(bench.pass(2 * TTL - 100).last('won')?.epoch).toBe(1n);
    expect(bench.pass(200).last('won')?.epoch).toBe(2n);
  });
});

const remote = { remote: true };

describe('a store that was wiped or restored', () => {
  test('after an outage the wait for a silent holder starts anew, and what this node followed still counts', () => {
    const store = new MemoryLeaseStore(heldBy('other', { positions: { db: '4:9' } }));
    const asked: number[] = [];
    const bench = new Bench(store, {
      ...remote,
      positions: () => ({ db: '4:8' }),
      followed: (_, atMs) => asked.push(atMs) > 0,
    }).give({ kind: 'tick' });
    bench.pass(1000);
    const seenMs = bench.nowMs;
    beat(store);
    bench.pass(50);
    bench.silent = true;
    bench.give({ kind: 'failed', id: bench.pending('watch').id, why: 'timed out' }).pass(60_000);
    bench.silent = false;
    const read = bench.pending('read');
    bench.give({ kind: 'answer', id: read.id, answer: bench.answer(read.call) });
    bench.pass(TTL + MARGIN - 100);
    expect(bench.last('won')).toBeUndefined();
    bench.pass(2 * TTL);
    expect(bench.last('won')?.epoch).toBe(5n);
    expect(Math.max(...asked)).toBeLessThan(seenMs + 100);
  });

  const put = (store: MemoryLeaseStore, record: LeaseRecord | undefined): void => {
    store.compareAndSet(store.current.version, record);
  };

  test('a lease that nobody ever held is waited for, except by the node that founded the cluster with it', () => {
    const store = new MemoryLeaseStore();
    const bench = new Bench(store, remote).give({ kind: 'tick' }).pass(TTL + MARGIN - 50);
    expect(store.current.record).toMatchObject({ epoch: 0n, holder: undefined });
    expect(bench.last('won')).toBeUndefined();
    expect(bench.pass(100).last('won')?.epoch).toBe(1n);

    const founded = new MemoryLeaseStore(heldBy('nobody', { epoch: 0n, holder: undefined }));
    const founder = new Bench(founded, { ...remote, foundedWith: founded.current.version });
    expect(founder.give({ kind: 'tick' }).last('won')?.epoch).toBe(1n);
  });

  test('a primary whose lease holds writes its record again and goes on', () => {
    const store = new MemoryLeaseStore();
    const bench = new Bench(store, { ...remote, highestEpoch: 6n }).give({ kind: 'tick' }).pass(TTL + MARGIN);
    bench.give({ kind: 'ready', epoch: 7n }).pass(3000);
    const written = store.current.record!;
    for (const lost of [undefined, heldBy('other'), { ...written, heartbeat: 1n }]) {
      put(store, lost);
      bench.pass(1100);
      expect(bench.kinds()).not.toContain('fenced');
      expect(store.current.record).toMatchObject({ epoch: 7n, holder: { nodeId: 'me' } });
      expect(store.current.record!.heartbeat).toBeGreaterThan(written.heartbeat);
      expect(bench.last('refused')).toMatchObject({ code: 'ERR_LEASE_EPOCH_BACK', fatal: false });
    }
  });

  test('a primary whose deadline has passed does not go on from a record that was put back', () => {
    const store = new MemoryLeaseStore();
    const bench = new Bench(store, { ...remote, highestEpoch: 6n }).give({ kind: 'tick' }).pass(TTL + MARGIN);
    bench.give({ kind: 'ready', epoch: 7n });
    const old = store.current.record!;
    bench.pass(3000);
    bench.silent = true;
    bench.pass(TTL);
    expect(bench.kinds().at(-1)).toBe('fenced');
    put(store, old);
    bench.silent = false;
    bench.give({ kind: 'failed', id: bench.pending('compareAndSet').id, why: 'timed out' }).pass(TTL);
    expect(bench.events.findLast((event) => event.kind === 'primary')?.reason).toBe('the daemon is ready');
    expect(bench.pass(MARGIN + 500).last('won')?.epoch).toBe(8n);
  });

  test('a record put back to where it was free is not free: its holder may still write', () => {
    const store = new MemoryLeaseStore(heldBy('other', { epoch: 5n }));
    const bench = new Bench(store, remote).give({ kind: 'tick' });
    put(store, heldBy('other', { epoch: 3n, holder: undefined }));
    expect(bench.pass(TTL + MARGIN - 50).last('won')).toBeUndefined();
    expect(bench.last('waiting')?.reason).toBe('the lease record was lost');
    expect(bench.pass(150).last('won')?.epoch).toBe(6n);
  });

  test('a lost record keeps the sync set and the positions that its last reader knew', () => {
    const store = new MemoryLeaseStore(heldBy('other', { syncSet: ['other'], positions: { db: '4:9' } }));
    const bench = new Bench(store, remote).give({ kind: 'tick' });
    put(store, undefined);
    bench.pass(60_000);
    expect(bench.last('won')).toBeUndefined();
    expect(store.current.record).toMatchObject({ epoch: 0n, syncSet: ['other'], positions: { db: '4:9' } });
  });

  test('a primary that hears of a higher epoch from a member gives way, and takes the lease above it', () => {
    const bench = new Bench(new MemoryLeaseStore(), remote).give({ kind: 'tick' }).pass(TTL + MARGIN);
    bench.give({ kind: 'ready', epoch: 1n });
    bench.store.register(member('third', { epoch: 9n }));
    expect(bench.pass(1000).kinds()).toContain('fenced');
    expect(bench.pass(TTL + MARGIN + 1000).last('won')?.epoch).toBe(10n);
  });

  test('members of another cluster are not listened to', () => {
    const bench = new Bench(new MemoryLeaseStore()).asPrimary();
    bench.store.register(member('stray', { clusterId: 'x', epoch: 500n }));
    bench.pass(10_000);
    expect(bench.kinds()).not.toContain('fenced');
    expect(bench.machine.members.map(({ nodeId }) => nodeId)).toEqual(['me']);
  });

  test.each([2000, 3100, 5000, 12_000])(
    'a healthy cluster with a ttl of %i ms writes at most twice a second, and all its members count as living',
    (ttlMs) => {
      const store = new MemoryLeaseStore();
      const options = { ...remote, ttlMs, marginMs: ttlMs / 10 };
      const benches = ['a', 'b', 'c', 'd'].map((nodeId) => new Bench(store, { ...options, nodeId }));
      const run = (ms: number, look = (): void => undefined): void => {
        for (let i = 0; i < ms; i += 50) {
          for (const bench of benches) bench.pass(50);
          look();
        }
      };
      for (const bench of benches) bench.give({ kind: 'tick' });
      run(1.1 * ttlMs + 100);
      const holder = benches.find((bench) => bench.last('won'))!;
      holder.give({ kind: 'ready', epoch: 1n });
      run(10_000);
      const writes = (): bigint =>
        store.members.reduce((sum, { seen }) => sum + seen, store.current.record!.heartbeat);
      const before = writes();
      run(60_000, () => {
        for (const { machine, nowMs } of benches) expect(machine.living(nowMs)).toHaveLength(4);
      });
      expect(Number(writes() - before)).toBeLessThanOrEqual(2 * 60);
      expect(benches.every((bench) => !bench.kinds().includes('fenced'))).toBe(true);
    },
  );

  test('a better candidate that dies with the primary holds nobody up, however long its turn would have been', () => {
    const store = new MemoryLeaseStore(heldBy('other', { ttlMs: 2000 }));
    for (const nodeId of ['better', 'x', 'y', 'z']) {
      store.register(member(nodeId, { positions: nodeId === 'better' ? { db: '4:9' } : {} }));
    }
    const options = { ...remote, ttlMs: 2000, marginMs: 200, electionWaitMs: 60_000 };
    const bench = new Bench(store, options).give({ kind: 'tick' });
    bench.pass(1000);
    beat(store);
    expect(bench.pass(2100).last('won')).toBeUndefined();
    expect(bench.pass(200).last('won')).toBeDefined();
  });
});

describe('contradictions', () => {
  test('the lease of another cluster stops the node', () => {
    const bench = new Bench(new MemoryLeaseStore(heldBy('other', { clusterId: 'x' }))).give({ kind: 'tick' });
    expect(bench.last('refused')).toMatchObject({ code: 'ERR_LEASE_OTHER_CLUSTER', fatal: true });
    // Who stops the node then waits for an answer all the same.
    const release = { kind: 'release' } as const;
    expect(bench.machine.step(1, { kind: 'leave', leave: release })).toMatchObject([
      { kind: 'left', leave: release },
    ]);
  });

  test('a record below the highest known epoch is not followed, and is taken above it when silent', () => {
    const bench = new Bench(new MemoryLeaseStore(heldBy('other')), { highestEpoch: 8n }).give({
      kind: 'tick',
    });
    expect(bench.last('refused')).toMatchObject({ code: 'ERR_LEASE_EPOCH_BACK', fatal: false });
    expect(bench.last('replica')?.of).toBeUndefined();
    expect(bench.pass(TTL + MARGIN).last('won')?.epoch).toBe(9n);
  });

  test('a second live process with one id is refused, and never stands for election meanwhile', () => {
    const store = new MemoryLeaseStore(heldBy('other', { holder: undefined }));
    const bench = new Bench(store).give({ kind: 'tick' });
    expect(bench.last('won')).toBeDefined(); // alone with its id
    const late = new MemoryLeaseStore(heldBy('other', { holder: undefined }));
    late.register(member('me', { incarnation: 'first' }));
    const second = new Bench(late).give({ kind: 'tick' });
    for (let seen = 2n; seen < 6n; seen += 1n) {
      late.register(member('me', { incarnation: 'first', seen }));
      second.pass(1000);
    }
    expect(second.last('won')).toBeUndefined();
    expect(second.last('refused')).toMatchObject({ code: 'ERR_LEASE_DUPLICATE_NODE', fatal: true });
  });

  test('a former process of the node that is silent, or proven dead, gives its id up', () => {
    const store = new MemoryLeaseStore(heldBy('other', { holder: undefined }));
    store.register(member('me', { incarnation: 'first' }));
    const proven = new Bench(store, { provesEnd: true });
    proven.ended.add('first');
    expect(proven.give({ kind: 'tick' }).pass(500).last('won')).toBeDefined();
    const noted = new MemoryLeaseStore(heldBy('other', { holder: undefined }));
    noted.register(member('me', { incarnation: 'first' }));
    const told = new Bench(noted, { formerIncarnation: 'first' });
    expect(told.give({ kind: 'tick' }).last('won')).toBeDefined();
    const other = new MemoryLeaseStore(heldBy('other', { holder: undefined }));
    other.register(member('me', { incarnation: 'first' }));
    const waiting = new Bench(other).give({ kind: 'tick' });
    expect(waiting.pass(TTL).last('won')).toBeUndefined();
    expect(waiting.pass(2000).last('won')).toBeDefined();
  });
});
