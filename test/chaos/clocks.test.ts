import { afterEach, expect, it } from 'vitest';
import { Load } from '../daemon/load.js';
import { Clocks } from '../helpers/clocks.js';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { TestConsul } from '../helpers/consul.js';
import { Connection } from '../traps/scene.js';

/** Nodes whose clocks are stepped by an hour, and one whose machine was suspended: at no time do two nodes acknowledge writes. */
let consul: TestConsul | undefined;
let cluster: TestCluster | undefined;
const clocks: Clocks[] = [];

afterEach(async () => {
  consul?.signal('SIGCONT');
  await cluster?.stop();
  await consul?.stop();
  cluster = consul = undefined;
  for (const one of clocks.splice(0)) one.remove();
});

const NAME = 'app.db';
const HOUR_MS = 3_600_000;

async function start(config: Record<string, Record<string, unknown>> = {}): Promise<TestNode[]> {
  cluster = await TestCluster.start({ nodes: 0 });
  for (let i = 0; i < 2; i += 1) {
    const own = new Clocks();
    clocks.push(own);
    await cluster.add({ ttl: '3s', config, env: own.env });
  }
  await cluster.node(1).sql(NAME, 'PRAGMA journal_mode=wal', Load.table);
  await cluster.caughtUp(NAME);
  return cluster.nodes;
}

const insert = (node: TestNode, n: number): Promise<string> =>
  node.sql(NAME, `INSERT INTO t VALUES ('test', ${n}, '')`);
const events = async (node: TestNode, kind: string): Promise<string[]> =>
  (await node.status()).events.filter((event) => event.kind === kind).map(({ message }) => message);
const takesWrites = (node: TestNode, n: number): Promise<void> =>
  waitFor(`${node.id} to take a write`, () =>
    insert(node, n).then(
      () => true,
      () => false,
    ),
  );

/** Steps the wall clock of a node by an hour; resolves when its log says so and the first node takes writes. */
async function step(number: number, wallMs: number): Promise<void> {
  const node = cluster!.node(number);
  const before = (await events(node, 'clock-gap')).length;
  clocks[number - 1]!.step({ wallMs });
  await waitFor(`${node.id} to notice ${wallMs} ms`, async () => {
    return (await events(node, 'clock-gap')).length > before;
  });
  const moved = wallMs > 0 ? /wall clock moved 3\d{6} ms/ : /wall clock moved -3\d{6} ms/;
  expect((await events(node, 'clock-gap')).at(-1)).toMatch(moved);
  await waitFor('node1 to be primary', async () => (await cluster!.node(1).status()).role === 'primary');
}

it('is fenced until a renewal when its wall clock is stepped by an hour, and goes on by itself', async () => {
  const [first, second] = (await start()) as [TestNode, TestNode];
  const load = new Load([first, second], NAME, 1);
  const { epoch } = await first.status();
  await step(1, HOUR_MS);
  await step(1, -HOUR_MS);
  expect(await events(first, 'fenced')).toEqual([
    expect.stringContaining('writes are refused: the wall clock moved 3'),
    expect.stringContaining('writes are refused: the wall clock moved -3'),
  ]);
  expect((await load.finish(cluster!)).rows).toBeGreaterThan(10);
  expect(await first.status()).toMatchObject({ role: 'primary', epoch });
});

it('does so with Consul, on primary and replica, and acknowledges nothing from the step to the renewal; nor after a suspension', async () => {
  consul = await TestConsul.start();
  const lease = { type: 'consul', consul: { url: consul.url, key: 'app/primary' } };
  const [first, second] = (await start({ lease })) as [TestNode, TestNode];
  const load = new Load([first, second], NAME, 1);
  const { epoch } = await first.status();
  for (const wallMs of [HOUR_MS, -HOUR_MS]) {
    await step(1, wallMs);
    await step(2, wallMs);
  }
  expect(await first.status()).toMatchObject({ role: 'primary', epoch });

  // No renewal succeeds, and no deadline has passed on the monotonic clock.
  consul.signal('SIGSTOP');
  clocks[0]!.step({ wallMs: HOUR_MS });
  await expect(insert(first, 666)).rejects.toThrow(/readonly|disk I\/O/);
  consul.signal('SIGCONT');
  await takesWrites(first, 1);
  consul.signal('SIGSTOP');
  clocks[0]!.step({ wallMs: -HOUR_MS });
  await waitFor('the primary to notice', async () => (await first.status()).role === 'fenced');
  await expect(insert(first, 666)).rejects.toThrow(/readonly|disk I\/O/);
  consul.signal('SIGCONT');
  await takesWrites(first, 2);
  expect((await load.finish(cluster!)).rows).toBeGreaterThan(10);
  expect(await events(second, 'won')).toEqual([]);

  // Its machine is suspended: the monotonic clock stands still, so by that its lease runs on.
  const application = await Connection.open(first.path(NAME), 'SELECT count(*) FROM t');
  process.kill(first.pid, 'SIGSTOP');
  const suspendedMs = performance.now();
  // Under way when the machine goes on.
  const written = Promise.allSettled([application.run("INSERT INTO t VALUES ('test', 666, '')")]);
  await waitFor('the other one to be primary', async () => (await second.status()).role === 'primary');
  await insert(second, 3);
  clocks[0]!.step({ monotonicMs: suspendedMs - performance.now() });
  process.kill(first.pid, 'SIGCONT');
  expect(await written).toMatchObject([{ status: 'rejected' }]);
  for (let n = 667; n < 672; n += 1) {
    await expect(application.run(`INSERT INTO t VALUES ('test', ${n}, '')`)).rejects.toThrow();
  }
  await waitFor('it to follow', async () => (await first.status()).role === 'replica');
  expect((await events(first, 'clock-gap')).at(-1)).toMatch(/this machine may have been suspended/);
  await application.close();
  await cluster!.assertSame(NAME);
  expect(await first.sql(NAME, "SELECT group_concat(n) FROM t WHERE writer = 'test'")).toBe('1,2,3');
});
