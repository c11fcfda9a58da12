import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, it } from 'vitest';
import { generator } from '../equivalence/statements.js';
import { runCli, type CliRun } from '../cli/run-cli.js';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { Shell } from '../helpers/shell.js';
import { Connection } from '../traps/scene.js';
import { Load } from './load.js';

/** The primary's role passes from node to node while applications write, and nothing that was acknowledged is lost. */
let cluster: TestCluster | undefined;

afterEach(async () => {
  await cluster?.stop();
  cluster = undefined;
});

const NAME = 'app.db';
/** 50 are the campaign: `npm run promotes`. */
const PROMOTES = Number(process.env['PROMOTES'] ?? 4);
const SEED = Number(process.env['SEED'] ?? Math.floor(Math.random() * 1_000_000));

async function start(options: Parameters<typeof TestCluster.start>[0] = {}): Promise<TestCluster> {
  cluster = await TestCluster.start({ ttl: '3s', ...options });
  await cluster.node(1).sql(NAME, 'PRAGMA journal_mode=wal', Load.table);
  await cluster.caughtUp(NAME);
  return cluster;
}

const urlOf = (node: TestNode): string => `http://127.0.0.1:${node.httpPort}`;
const promote = (node: TestNode, ...more: string[]): Promise<CliRun> =>
  runCli(['promote', '--url', urlOf(node), ...more]);
const roleOf = async (node: TestNode): Promise<string> => (await node.status()).role;
const events = async (node: TestNode, kind: string): Promise<string[]> =>
  (await node.status()).events.filter((event) => event.kind === kind).map((event) => event.message);

it(
  `goes back and forth ${PROMOTES} times under the load of processes in WAL and rollback mode and loses nothing`,
  async () => {
    const { nodes } = await start();
    await nodes[0]!.sql('rollback.db', 'PRAGMA journal_mode=delete', Load.table);
    await cluster!.caughtUp('rollback.db');
    const load = new Load(nodes, NAME, 2);
    const rollbackLoad = new Load(nodes, 'rollback.db', 1);
    const next = generator(SEED);
    const spans: [number, number][] = [];
    const nowMs = (): number => performance.timeOrigin + performance.now();
    await sleep(500);
    for (let round = 0; round < PROMOTES; round += 1) {
      const target = cluster!.node(2 - (round % 2));
      const fromMs = nowMs();
      expect(await promote(target)).toMatchObject({ code: 0, stdout: expect.stringContaining(target.id) });
      spans.push([fromMs, nowMs()]);
      expect(await roleOf(target)).toBe('primary');
      await sleep(100 + next(200));
    }
    for (const one of [load, rollbackLoad]) {
      const { rows, longestGapsMs, errors } = await one.finish(cluster!, spans);
      const sorted = longestGapsMs.toSorted((a, b) => a - b);
      console.log(
        `${PROMOTES} hand-offs under load, SEED=${SEED}: ${rows} rows, longest gap of each: ` +
          `median ${sorted[sorted.length >> 1]} ms, worst ${sorted.at(-1)} ms; ${errors.join(', ')}`,
      );
      expect(rows).toBeGreaterThan(100);
    }
    for (const node of nodes) console.log(node.id, (await events(node, 'handed-off')).slice(-3));
    // Both daemons have lived through it.
    expect(nodes.map((node) => node.running)).toEqual([true, true]);
  },
  120_000 + PROMOTES * 10_000,
);

it('cuts off only a writer that keeps its lock for ever', async () => {
  await start();
  const [first, second] = [cluster!.node(1), cluster!.node(2)];
  await first.sql('other.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)', 'INSERT INTO t VALUES (1)');
  await cluster!.caughtUp('other.db');
  const exclusive = new Shell(first.path('other.db'));
  expect(await exclusive.ask('PRAGMA locking_mode=exclusive', 'INSERT INTO t VALUES (2)')).toBe('exclusive');
  const idle = new Shell(first.path(NAME));
  expect(await idle.ask('SELECT count(*) FROM t')).toBe('0');
  expect(await promote(second, '--wait', '300ms')).toMatchObject({ code: 0 });
  expect(await exclusive.ask('INSERT INTO t VALUES (3)')).toMatch(/disk I\/O|readonly/);
  // A connection that was idle reads on, and is refused as on any replica.
  expect(await idle.ask('SELECT count(*) FROM t')).toBe('0');
  expect(await idle.ask("INSERT INTO t VALUES ('w', 1, '')")).toMatch(/disk I\/O|readonly/);
  const cut = await events(first, 'hand-off-cuts-off');
  expect(cut).toEqual([expect.stringContaining('sqlite3')]);
  await second.sql('other.db', 'INSERT INTO t VALUES (4)');
  await exclusive.close();
  await idle.close();
  await cluster!.assertSame('other.db');
  expect(await first.sql('other.db', 'SELECT group_concat(n) FROM t')).toBe('1,2,4');
});

it('is called off when the successor does not answer, and taken back when it stops after it was named', async () => {
  const { nodes } = await start();
  const [first, second] = [cluster!.node(1), cluster!.node(2)];
  const load = new Load(nodes, NAME, 1);
  await waitFor('rows', async () => Number(await first.sql(NAME, 'SELECT count(*) FROM t')) > 10);
  process.kill(second.pid, 'SIGSTOP');
  // The demotion asks from this side: the other one cannot be asked anything.
  const demoted = await runCli(['demote', '--url', urlOf(first), '--to', second.id, '--wait', '500ms']);
  process.kill(second.pid, 'SIGCONT');
  expect(demoted).toMatchObject({ code: 1, stderr: expect.stringContaining(second.id) });
  expect(await roleOf(first)).toBe('primary');
  expect(await events(first, 'hand-off-failed')).toHaveLength(1);
  expect((await load.finish(cluster!)).errors).toEqual([]);

  // Everything is there already, so the hand-off is over before a stopped stream is noticed.
  process.kill(second.pid, 'SIGSTOP');
  const handed = await fetch(`${urlOf(first)}/handoff?nodeID=${second.id}`, { method: 'POST' });
  await waitFor('node1 to be primary again', async () => (await roleOf(first)) === 'primary');
  await first.sql(NAME, "INSERT INTO t VALUES ('w', 1, '')");
  process.kill(second.pid, 'SIGCONT');
  expect(handed.status).toBe(200);
  await cluster!.assertSame(NAME);
});

it('hands over while commits wait for a replica: they fail, and what was acknowledged is everywhere', async () => {
  await start({ nodes: 3, config: { durability: { commit: 'replicas: 2' } } });
  const [first, second, third] = [cluster!.node(1), cluster!.node(2), cluster!.node(3)];
  const modes = ['wal', 'delete'];
  const writers: Connection[] = [];
  for (const mode of modes) {
    const path = first.path(`${mode}.db`);
    writers.push(await Connection.open(path, `PRAGMA journal_mode=${mode}`, 'CREATE TABLE t(n)'));
  }
  for (const writer of writers) await writer.run('INSERT INTO t VALUES (1)');
  process.kill(third.pid, 'SIGSTOP');
  let outcomes: PromiseSettledResult<string>[];
  try {
    const held = Promise.allSettled(writers.map((writer) => writer.run('INSERT INTO t VALUES (2)')));
    await waitFor('both to be held', async () => (await first.status()).durability?.waiting === 2);
    const done = await promote(second, '--wait', '300ms');
    expect(done, done.stderr).toMatchObject({ code: 0 });
    outcomes = await held;
  } finally {
    process.kill(third.pid, 'SIGCONT');
  }
  expect(outcomes.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
  for (const writer of writers) await writer.close();
  for (const mode of modes) {
    await second.sql(`${mode}.db`, 'INSERT INTO t VALUES (3)');
    await cluster!.assertSame(`${mode}.db`);
    // Whether the one in doubt is there nobody was told; in order, and once.
    expect(await second.sql(`${mode}.db`, 'SELECT group_concat(n) FROM t')).toMatch(/^1,(2,)?3$/);
  }
});

it('refuses what cannot be, and says why', async () => {
  await start({ nodes: 1 });
  const first = cluster!.node(1);
  const alone = await runCli(['demote', '--url', urlOf(first)]);
  expect(alone).toMatchObject({ code: 1, stderr: expect.stringContaining('no other candidate') });
  expect(await promote(first)).toMatchObject({ code: 0 });
  const never = await cluster!.add({ candidate: false });
  await cluster!.caughtUp(NAME);
  for (const refused of [
    await promote(never),
    await runCli(['demote', '--url', urlOf(first), '--to', never.id]),
  ]) {
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining('ERR_LEASE_NOT_CANDIDATE') });
  }
  const notPrimary = await runCli(['demote', '--url', urlOf(never)]);
  expect(notPrimary).toMatchObject({ code: 1, stderr: expect.stringContaining(first.id) });
  expect(await roleOf(first)).toBe('primary');
  await first.sql(NAME, "INSERT INTO t VALUES ('w', 1, '')");
});

it('runs a command on the primary that it has made, with the exit code of the command', async () => {
  await start();
  const second = cluster!.node(2);
  const insert = [
    'sqlite3',
    second.path(NAME),
    "INSERT INTO t VALUES ('run', 1, ''); SELECT count(*) FROM t",
  ];
  const done = await runCli(['run', '--promote', '--url', urlOf(second), '--', ...insert]);
  expect(done).toMatchObject({ code: 0, stdout: expect.stringMatching(/^node2 is the primary.*\n1\n$/) });
  expect(await runCli(['run', '--url', urlOf(second), '--', 'sh', '-c', 'exit 7'])).toMatchObject({
    code: 7,
  });
  const killed = await runCli(['run', '--url', urlOf(second), '--', 'sh', '-c', 'kill -TERM $$']);
  expect(killed).toMatchObject({ code: 143 });
  // A node that wants to be primary is, when it comes up.
  const third = await cluster!.add({ config: { lease: { promote: true } } });
  await waitFor('node3 to be primary', async () => (await roleOf(third)) === 'primary');
  await cluster!.assertSame(NAME);
});

it('lets a winner that was away open only with what a replica has that can never be primary', async () => {
  await start();
  const [first, second] = [cluster!.node(1), cluster!.node(2)];
  const reader = await cluster!.add({ candidate: false });
  await cluster!.caughtUp(NAME);
  await second.stop();
  await first.sql(NAME, "INSERT INTO t VALUES ('only the reader', 1, '')");
  const committed = (await first.database(NAME))?.position;
  await waitFor(
    'the reader to have it',
    async () => (await reader.database(NAME))?.appliedPosition === committed,
  );
  await first.kill();
  await second.start();
  await waitFor('node2 to be primary', async () => (await roleOf(second)) === 'primary');
  expect(await second.sql(NAME, 'SELECT writer FROM t')).toBe('only the reader');
  expect(await events(second, 'pulled')).toHaveLength(1);
  await cluster!.assertSame(NAME);
});
