import { existsSync } from 'node:fs';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { freePort, type TestNode, TestCluster, waitFor } from '../helpers/cluster.js';
import { runCli } from '../cli/run-cli.js';
import { TestConsul } from '../helpers/consul.js';

/** Whole nodes whose lease is in Consul: the primary dies, Consul hangs for longer than the deadline, Consul is not there. */

const TTL_MS = 2000;

let consul: TestConsul;
let cluster: TestCluster | undefined;

beforeEach(async () => {
  consul = await TestConsul.start();
});
afterEach(async () => {
  consul.signal('SIGCONT');
  await cluster?.stop();
  cluster = undefined;
  await consul.stop();
});

const inConsul = (url: string): Record<string, Record<string, unknown>> => ({
  lease: { type: 'consul', consul: { url, key: 'app/primary' } },
});

const insert = async (node: TestNode, n: number): Promise<void> => {
  await node.sql('app.db', `INSERT INTO t VALUES (${n})`);
};

it('has a new primary after a kill -9, hands over and back, reads only while Consul hangs, and goes on by itself', async () => {
  cluster = await TestCluster.start({ ttl: `${TTL_MS}ms`, config: inConsul(consul.url) });
  const [first, second] = [cluster.node(1), cluster.node(2)];
  await first.sql('app.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)', 'INSERT INTO t VALUES (1)');
  await cluster.caughtUp('app.db');

  await first.kill();
  const killedMs = performance.now();
  // The product promises ttl + 1.5 s; the limit leaves room for a busy machine.
  await waitFor(
    'the second node to take a write',
    async () =>
      await insert(second, 2).then(
        () => true,
        () => false,
      ),
    TTL_MS + 15_000,
  );
  console.log(
    `kill -9 to the first write elsewhere: ${Math.round(performance.now() - killedMs)} ms, ttl ${TTL_MS} ms`,
  );
  await first.start();
  await cluster.caughtUp('app.db');
  for (const [node, n] of [
    [first, 3],
    [second, 4],
  ] as const) {
    // It waits until a node that was started a moment ago is heard of again.
    const promoted = await runCli(['promote', '--url', `http://127.0.0.1:${node.httpPort}`]);
    expect(promoted, promoted.stderr).toMatchObject({ code: 0 });
    await insert(node, n);
  }

  consul.signal('SIGSTOP');
  await waitFor('the primary to be fenced', async () => (await second.status()).role === 'fenced');
  await expect(insert(second, 666)).rejects.toThrow(/readonly|disk I\/O/);
  expect(await second.sql('app.db', 'SELECT group_concat(n) FROM t')).toBe('1,2,3,4');
  const { events } = await second.status();
  expect(events.map(({ message }) => message).join('\n')).toMatch(
    /writes are refused: no renewal succeeded before the deadline \(.*(Consul at http|no answer).*\)/,
  );
  consul.signal('SIGCONT');
  const primary = await cluster.primary();
  await insert(primary, 5);
  await cluster.assertSame('app.db');
  expect(await primary.sql('app.db', 'SELECT group_concat(n) FROM t')).toBe('1,2,3,4,5');
});

it('says what is wrong and leaves no data when Consul is not there at the first start', async () => {
  cluster = await TestCluster.start({ nodes: 0 });
  const url = `http://:t0ps3cret@127.0.0.1:${await freePort()}`;
  const node = await cluster.prepare({ config: inConsul(url) });
  const [code] = (await once(node.spawn(), 'exit')) as [number];
  expect(code).toBe(1);
  expect(node.log()).toMatch(/Consul at http:\/\/127\.0\.0\.1:\d+: .*ECONNREFUSED[^]*ERR_LEASE_UNREACHABLE/);
  expect(node.log()).not.toContain('t0ps3cret');
  expect(existsSync(join(node.dataDir, 'clusterid'))).toBe(false);
  const doctor = await runCli(['doctor', '-config', node.configPath]);
  expect(doctor.stdout).toMatch(/FAIL {2}lease\.consul\.key app\/primary: Consul at .*ECONNREFUSED/);
});
