import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { answerHeaders, readNeeds } from './annotate.js';
import { decideRead, type ReadNeeds } from './decide-read.js';
import type { Question } from './decide.js';
import { type History, proceed } from './history.js';
import type { DatabaseView, NodeSnapshot, NodeView, PrimaryView } from './node-view.js';
import { NO_TOKEN, type Token, type TokenEntry } from './token.js';

const NAME = 'app.db';
const at = (epoch: number, txid: number): TokenEntry => ({ epoch: BigInt(epoch), txid: BigInt(txid) });
const seen = (epoch: number, txid: number): Token => new Map([[NAME, at(epoch, txid)]]);

const SETTINGS = {
  databases: [] as string[],
  withoutPrimary: 'serve',
  token: 'cookie',
  tokenSecret: undefined,
  readWaitMs: 5000,
  primaryWaitMs: 5000,
  maxStalenessMs: undefined,
  staleReads: 'primary',
  responseHeaders: true,
} as const;

const primaryAt = (nodeId: string): PrimaryView => ({
  nodeId,
  proxyAddress: `${nodeId}:80`,
  instance: undefined,
  region: '',
  hostname: nodeId,
});

function snapshot(of: Partial<NodeSnapshot>, database?: Partial<DatabaseView>): NodeSnapshot {
  return {
    nodeId: 'r1',
    clusterId: 'c',
    region: '',
    role: 'replica',
    ready: true,
    epoch: 7n,
    writableUntilMs: 0,
    primary: primaryAt('p'),
    databases: new Map([[NAME, { position: at(7, 100), ends: [], freshAtMs: 900, ...database }]]),
    ...of,
  };
}

const ask = (needs: Partial<ReadNeeds>, more: Partial<Question> = {}): Question => ({
  class: { kind: 'read', route: undefined },
  needs: { positions: NO_TOKEN, maxStalenessMs: undefined, ...needs },
  arrivedMs: 1000,
  nowMs: 1000,
  forwardedEpoch: undefined,
  ...more,
});

describe('a read', () => {
  const primary = snapshot(
    { role: 'primary', writableUntilMs: 2000, primary: undefined },
    { freshAtMs: Infinity },
  );
  const alone = snapshot({ primary: undefined });
  const fenced = snapshot(
    { role: 'fenced', writableUntilMs: 0, primary: undefined },
    { freshAtMs: Infinity },
  );
  const behind = { positions: seen(7, 101) };
  const late = { nowMs: 6001 };
  const gone = { nowMs: 11_001 };

  it.each<[string, Question, NodeSnapshot, Partial<typeof SETTINGS> | object, string]>([
    ['with no needs', ask({}), snapshot({}), {}, 'local'],
    ['that has seen what is here', ask({ positions: seen(7, 100) }), snapshot({}), {}, 'local'],
    ['that has seen more', ask(behind), snapshot({}), {}, 'wait'],
    ['… and has waited long enough', ask(behind, late), snapshot({}), {}, 'primary'],
    [
      '… where such reads are refused',
      ask(behind, late),
      snapshot({}),
      { staleReads: 'refuse' },
      'ERR_PROXY_STALE',
    ],
    ['… while there is no primary', ask(behind, gone), alone, {}, 'ERR_PROXY_STALE'],
    [
      '… of a database that clients are not held to',
      ask(behind),
      snapshot({}),
      { databases: ['b'] },
      'local',
    ],
    ['… at the primary', ask(behind), primary, {}, 'local'],
    ['that has seen a lost transaction', ask({ positions: seen(6, 101) }), snapshot({}), {}, 'local'],
    ['that has seen a newer epoch', ask({ positions: seen(8, 1) }), snapshot({}), {}, 'wait'],
    ['that may be 100 ms old', ask({ maxStalenessMs: 100 }), snapshot({}), {}, 'local'],
    ['that may be 99 ms old', ask({ maxStalenessMs: 99 }), snapshot({}), {}, 'primary'],
    ['… by the setting', ask({}), snapshot({}), { maxStalenessMs: 99 }, 'primary'],
    [
      '… by the setting, which a request cannot loosen',
      ask({ maxStalenessMs: 900 }),
      snapshot({}),
      { maxStalenessMs: 99 },
      'primary',
    ],
    [
      '… where such reads are refused',
      ask({ maxStalenessMs: 99 }),
      snapshot({}),
      { staleReads: 'refuse' },
      'ERR_PROXY_STALE',
    ],
    ['… while a primary is awaited', ask({ maxStalenessMs: 99 }), alone, {}, 'wait'],
    ['… while there is no primary', ask({ maxStalenessMs: 99 }, gone), alone, {}, 'ERR_PROXY_STALE'],
    ['that may be 0 ms old, at the primary', ask({ maxStalenessMs: 0 }), primary, {}, 'local'],
    ['… at one whose lease is over', ask({ maxStalenessMs: 0 }, { nowMs: 2000 }), primary, {}, 'wait'],
    ['… of unknown age', ask({ maxStalenessMs: 9e9 }), snapshot({}, { freshAtMs: undefined }), {}, 'primary'],
    ['… on a fenced node', ask({ maxStalenessMs: 9e9 }), fenced, {}, 'wait'],
    ['without a primary', ask({}), alone, {}, 'local'],
    [
      'without a primary, where those are refused',
      ask({}),
      alone,
      { withoutPrimary: 'refuse' },
      'ERR_PROXY_NO_PRIMARY',
    ],
    [
      'sent here as to the primary',
      ask({}, { forwardedEpoch: 7n }),
      snapshot({}),
      {},
      'ERR_PROXY_NOT_PRIMARY',
    ],
    ['sent here as to the primary, which it is', ask({}, { forwardedEpoch: 7n }), primary, {}, 'local'],
  ])('%s', (_, question, node, settings, expected) => {
    const decision = decideRead(question, { ...SETTINGS, ...settings }, node);
    expect(decision.kind === 'refuse' ? decision.code : decision.kind, decision.why).toBe(expected);
    expect(decision.why).not.toBe('');
  });

  it('is bounded by its route before the setting for all', () => {
    const route = {
      path: '*',
      methods: undefined,
      as: undefined,
      withoutPrimary: 'refuse',
      upgrade: undefined,
      maxStalenessMs: 50,
      readWaitMs: 10,
    } as const;
    const on = (question: Question, node = snapshot({})) =>
      decideRead({ ...question, class: { kind: 'read', route } }, { ...SETTINGS, maxStalenessMs: 1e6 }, node)
        .kind;
    expect(on(ask({}))).toBe('primary');
    expect(on(ask({}), alone)).toBe('refuse');
    expect(on(ask(behind), snapshot({}, { freshAtMs: 1000 }))).toBe('wait');
    expect(on(ask(behind, { nowMs: 1011 }), snapshot({}, { freshAtMs: 1000 }))).toBe('primary');
  });
});

/**
 * A cluster as far as reads can tell: nodes with a prefix of some history each, a primary that may be lost with its last transactions,
 * and clients that go from node to node. Time is a number.
 */
class World {
  nowMs = 0;
  epoch = 1n;
  primary: number | undefined = 0;
  readonly nodes = [0, 1, 2].map(() => ({
    log: [] as (TokenEntry & { atMs: number })[],
    /** How many of `log` readers see. */
    applied: 0,
    history: undefined as History | undefined,
    freshAtMs: undefined as number | undefined,
    probes: [] as { atMs: number; count: number }[],
  }));

  commit(): TokenEntry | undefined {
    if (this.primary === undefined) return undefined;
    const node = this.nodes[this.primary]!;
    const entry = { epoch: this.epoch, txid: BigInt(node.log.length + 1), atMs: this.nowMs };
    node.log.push(entry);
    this.#apply(this.primary, node.log.length);
    return entry;
  }

  /** What the primary has arrives and is applied, in part: `n` transactions. */
  replicate(of: number, n: number): void {
    if (this.primary === undefined || of === this.primary) return;
    const [source, node] = [this.nodes[this.primary]!, this.nodes[of]!];
    if (!this.#isPrefix(of)) {
      // A rejoin: one file takes the place of what differs.
      node.log = [...source.log];
      node.applied = node.log.length;
      const last = node.log.at(-1);
      node.history = last && proceed(node.history, last, false);
      node.probes = [];
      node.freshAtMs = undefined;
      return;
    }
    node.log = [...source.log];
    this.#apply(of, Math.min(node.log.length, node.applied + n));
  }

  probe(of: number): void {
    if (this.primary === undefined || of === this.primary || !this.#isPrefix(of)) return;
    const node = this.nodes[of]!;
    node.probes.push({ atMs: this.nowMs, count: this.nodes[this.primary]!.log.length });
    this.#apply(of, node.applied);
  }

  /**
   * The primary is gone; `winner` goes on with what it has received. One that stands on a branch that was given up is not
   * elected (only `promote --accept-loss` makes it one).
   */
  failOver(winner: number): void {
    if (this.primary === winner || !this.#isPrefix(winner)) return;
    const old = this.primary === undefined ? undefined : this.nodes[this.primary];
    this.epoch += 1n;
    this.primary = winner;
    if (old) [old.freshAtMs, old.probes] = [undefined, []];
    const node = this.nodes[winner]!;
    this.#apply(winner, node.log.length);
  }

  view(of: number): NodeSnapshot {
    const node = this.nodes[of]!;
    const isPrimary = this.primary === of;
    const { primary } = this;
    return snapshot({
      nodeId: String(of),
      role: isPrimary ? 'primary' : 'replica',
      epoch: this.epoch,
      writableUntilMs: isPrimary ? this.nowMs + 1000 : 0,
      primary: isPrimary || primary === undefined ? undefined : primaryAt(String(primary)),
      databases: new Map(
        node.history && [[NAME, { ...node.history, freshAtMs: isPrimary ? Infinity : node.freshAtMs }]],
      ),
    });
  }

  survives(entry: TokenEntry): boolean {
    // The history of the primary is the one that counts; without one, the last primary's.
    const log = this.nodes[this.primary ?? 0]!.log;
    return log[Number(entry.txid) - 1]?.epoch === entry.epoch;
  }

  #apply(of: number, count: number): void {
    const node = this.nodes[of]!;
    for (let i = node.applied; i < count; i += 1) node.history = proceed(node.history, node.log[i]!, true);
    node.applied = count;
    for (let next = node.probes[0]; next && next.count <= count; next = node.probes[0]) {
      node.freshAtMs = next.atMs;
      node.probes.shift();
    }
  }

  #isPrefix(of: number): boolean {
    const source = this.nodes[this.primary!]!.log;
    return this.nodes[of]!.log.every((entry, i) => source[i]?.epoch === entry.epoch);
  }
}

type Step =
  | { readonly kind: 'write'; readonly client: number }
  | {
      readonly kind: 'read';
      readonly client: number;
      readonly node: number;
      readonly maxStalenessMs: number | undefined;
    }
  | { readonly kind: 'replicate'; readonly node: number; readonly count: number }
  | { readonly kind: 'probe'; readonly node: number }
  | { readonly kind: 'pass'; readonly ms: number }
  | { readonly kind: 'failOver'; readonly node: number };

const three = fc.nat(2);
const step = fc.oneof<fc.WeightedArbitrary<Step>[]>(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('write'), client: three }) },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant('read'),
      client: three,
      node: three,
      maxStalenessMs: fc.option(fc.integer({ min: 0, max: 3000 }), { nil: undefined }),
    }),
  },
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('replicate'), node: three, count: fc.nat(4) }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('probe'), node: three }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('pass'), ms: fc.nat(1500) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('failOver'), node: three }) },
);

describe('clients of a cluster in which anything is late, and primaries are lost', () => {
  const counts = { local: 0, waited: 0, primary: 0, refused: 0, lost: 0 };

  /** One client with its cookie, as its browser keeps it. */
  class Client {
    cookie: string | undefined;
    /** The last transaction that was in an answer to it. */
    saw: TokenEntry | undefined;

    get headers() {
      return this.cookie === undefined ? {} : { cookie: `a=b; ${this.cookie}` };
    }

    /** An answer of a node, through the headers that are really sent. */
    async took(
      world: World,
      node: number,
      kind: 'read' | 'write',
      entry: TokenEntry | undefined,
    ): Promise<void> {
      const { log, applied } = world.nodes[node]!;
      const last = log[applied - 1];
      const view: Partial<NodeView> = {
        now: world.view(node),
        seen: () => Promise.resolve(new Map(last && [[NAME, last]])),
      };
      const needs = readNeeds(this.headers, SETTINGS);
      const added = await answerHeaders(
        { kind, needs, headers: this.headers, waitedMs: 0, status: 200, rawHeaders: [] },
        view as NodeView,
        SETTINGS,
        world.nowMs,
      );
      const cookie = added[added.indexOf('Set-Cookie') + 1];
      if (added.includes('Set-Cookie')) this.cookie = cookie?.split(';')[0];
      if (added.includes('Kitefs-Lost')) counts.lost += 1;
      this.saw = entry;
    }
  }

  it(
    'never read older than what they wrote or read, nor staler than their bound',
    { timeout: 120_000 },
    async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 80, size: 'max' }), async (steps) => {
          const world = new World();
          const clients = [0, 1, 2].map(() => new Client());
          const queue = [...steps];
          const happen = (one: Step): void => {
            world.nowMs += 1;
            if (one.kind === 'replicate') world.replicate(one.node, one.count);
            if (one.kind === 'probe') world.probe(one.node);
            if (one.kind === 'pass') world.nowMs += one.ms;
            if (one.kind === 'failOver') world.failOver(one.node);
          };
          for (let next = queue.shift(); next; next = queue.shift()) {
            happen(next);
            if (next.kind === 'write') {
              const entry = world.commit();
              if (entry) await clients[next.client]!.took(world, world.primary!, 'write', entry);
            }
            if (next.kind !== 'read') continue;
            const client = clients[next.client]!;
            const { maxStalenessMs } = next;
            const headers = {
              ...client.headers,
              ...(maxStalenessMs !== undefined && { 'kitefs-max-staleness': `${maxStalenessMs}ms` }),
            };
            const needs = readNeeds(headers, SETTINGS);
            const arrivedMs = world.nowMs;
            let answering = next.node;
            let decision = decideRead(
              ask({}, { needs, arrivedMs, nowMs: world.nowMs }),
              SETTINGS,
              world.view(answering),
            );
            if (decision.kind === 'wait') counts.waited += 1;
            while (decision.kind === 'wait') {
              const meanwhile = queue.shift();
              if (meanwhile) happen(meanwhile);
              else world.nowMs += 1000;
              decision = decideRead(
                ask({}, { needs, arrivedMs, nowMs: world.nowMs }),
                SETTINGS,
                world.view(answering),
              );
            }
            counts[decision.kind === 'refuse' ? 'refused' : decision.kind] += 1;
            if (decision.kind === 'refuse') continue;
            if (decision.kind === 'primary') answering = Number(decision.primary.nodeId);

            const { log, applied } = world.nodes[answering]!;
            const shown = log.slice(0, applied);
            const { saw } = client;
            if (saw && world.survives(saw)) {
              expect(shown[Number(saw.txid) - 1]?.epoch, `client saw ${saw.epoch}:${saw.txid}`).toBe(
                saw.epoch,
              );
            }
            if (maxStalenessMs !== undefined && world.primary !== undefined) {
              const missing = world.nodes[world.primary]!.log[applied];
              if (missing) expect(world.nowMs - missing.atMs).toBeLessThanOrEqual(maxStalenessMs);
            }
            await client.took(world, answering, 'read', shown.at(-1));
          }
        }),
        { numRuns: Number(process.env['READS'] ?? 300) },
      );
      // It would prove nothing if every read had been served where it came.
      const { local, waited, primary, refused, lost } = counts;
      expect((waited + primary + refused) / (local + primary + refused)).toBeGreaterThan(0.15);
      expect(Math.min(local, waited, primary, lost), JSON.stringify(counts)).toBeGreaterThan(5);
    },
  );
});
