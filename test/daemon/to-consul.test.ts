import { afterEach, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { TestConsul } from '../helpers/consul.js';

/** The steps of docs/runbooks/to-consul.md, and the way back. */
let cluster: TestCluster | undefined;
let consul: TestConsul | undefined;

afterEach(async () => {
  await cluster?.stop();
  await consul?.stop();
});

const NAME = 'app.db';

const statusOf = async (node: TestNode): Promise<string> =>
  (await runCli(['status', '--url', `http://127.0.0.1:${node.httpPort}`])).stdout;

it('moves a static cluster to Consul with its databases, id and a higher epoch, and back', async () => {
  consul = await TestConsul.start();
  cluster = await TestCluster.start({ nodes: 0 });
  const first = await cluster.prepare();
  const second = await cluster.prepare();
  const toStatic = (): void => {
    for (const node of [first, second]) {
      // Their cluster is that of the primary which they name.
      const lease = { type: 'static', candidate: node === first, primary: `127.0.0.1:${first.peerPort}` };
      node.configure('', '2s', { config: { lease } });
    }
  };
  toStatic();
  await first.start();
  await second.start();
  await first.sql(NAME, 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)', 'INSERT INTO t VALUES (1)');
  await cluster.caughtUp(NAME);
  const [before, clusterId] = [Number((await first.status()).epoch), (await first.status()).clusterId];
  expect(await statusOf(first)).toMatch(
    new RegExp(`role +primary, epoch ${before}\\n[^]*cluster +${clusterId}`),
  );

  await second.stop();
  await first.stop();
  const lease = { type: 'consul', consul: { url: consul.url, key: 'app/primary' } };
  for (const node of [first, second]) node.configure('', '2s', { config: { lease } });
  await first.start();
  await waitFor('the former primary to be it', async () => /role +primary/.test(await statusOf(first)));
  const { epoch, clusterId: same } = await first.status();
  expect(same).toBe(clusterId);
  expect(Number(epoch)).toBeGreaterThan(before);
  await second.start();
  expect(await statusOf(second)).toMatch(/role +replica/);
  await first.sql(NAME, 'INSERT INTO t VALUES (2)');
  await cluster.assertSame(NAME);
  expect((await second.status()).clusterId).toBe(clusterId);

  await second.stop();
  await first.stop();
  toStatic();
  await first.start();
  await first.sql(NAME, 'INSERT INTO t VALUES (3)');
  await second.start();
  await cluster.assertSame(NAME);
  expect(await second.sql(NAME, 'SELECT group_concat(n) FROM t')).toBe('1,2,3');
  expect(Number((await first.status()).epoch)).toBeGreaterThanOrEqual(Number(epoch));
});
