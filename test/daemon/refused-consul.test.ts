import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { TestCluster, type TestNode } from '../helpers/cluster.js';
import { TestConsul } from '../helpers/consul.js';

/** Starts over Consul that a person's mistake makes impossible: each ends with one clear error, and no data is touched. */
const TOKEN = 'b1gs33cr3t-0000-0000-0000-000000000000';
const KEY = 'app/primary';
const NAME = 'app.db';

type Settings = Record<string, Record<string, unknown>>;

let consul: TestConsul;
let cluster: TestCluster;
let first: TestNode;

beforeAll(async () => {
  consul = await TestConsul.start({
    token: TOKEN,
    config: { acl: { enabled: true, default_policy: 'deny', tokens: { master: TOKEN } } },
  });
  cluster = await TestCluster.start({ nodes: 0 });
  first = await cluster.add({ ttl: '2s', config: settings() });
  await first.sql(NAME, 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)', 'INSERT INTO t VALUES (1)');
});
afterAll(async () => {
  await cluster.stop();
  await consul.stop();
});

function settings(lease: { token?: string; key?: string } = {}, more: Settings = {}): Settings {
  return {
    lease: { type: 'consul', consul: { url: consul.url, key: KEY, token: TOKEN, ...lease } },
    ...more,
  };
}

/** Starts a node that must end by itself; returns its exit code and what it said. */
async function refused(node: TestNode): Promise<{ code: number; said: string }> {
  const [code] = (await once(node.spawn(), 'exit')) as [number];
  expect(node.log()).not.toContain(TOKEN);
  expect(node.log()).not.toMatch(/^\s+at |ERR_INTERNAL/m);
  expect((await first.status()).role).toBe('primary');
  return { code, said: node.log() };
}

it('is refused with a wrong token, and with a key that holds something else', async () => {
  const wrong = await cluster.prepare({ ttl: '2s', config: settings({ token: 'wr0ng-token-00000' }) });
  const denied = await refused(wrong);
  expect(denied).toMatchObject({ code: 2, said: expect.stringContaining('ERR_LEASE_DENIED') });
  expect(denied.said).not.toContain('wr0ng-token');
  expect(existsSync(join(wrong.dataDir, 'clusterid'))).toBe(false);

  await consul.put('other/key', '{"hostname":"litefs-1"}');
  const taken = await refused(await cluster.prepare({ ttl: '2s', config: settings({ key: 'other/key' }) }));
  expect(taken.said).toMatch(/the key other\/key .* is no lease record[^]*ERR_LEASE_RECORD/);
  expect(await consul.get('other/key')).toBe('{"hostname":"litefs-1"}');
});

it('is refused with a ttl in which no renewal can be in time, and with the id of another cluster', async () => {
  const hasty = await refused(await cluster.prepare({ ttl: '200ms', config: settings() }));
  expect(hasty).toMatchObject({ code: 2, said: expect.stringMatching(/at least 2s is needed/) });
  const other = settings({}, { cluster: { id: 'another' } });
  const foreign = await refused(await cluster.prepare({ ttl: '2s', config: other }));
  expect(foreign).toMatchObject({ code: 2, said: expect.stringContaining('ERR_LEASE_OTHER_CLUSTER') });
});

it('is refused with a copied data directory, until it has an id of its own', async () => {
  // Nothing in its configuration says another id.
  const config = settings({}, { node: { id: undefined } });
  const copy = await cluster.prepare({ ttl: '2s', config });
  execFileSync('cp', ['-a', first.dataDir, copy.dataDir]);
  const before = readFileSync(join(copy.dataDir, 'node.json'), 'utf8');
  const twin = await refused(copy);
  expect(twin.said).toMatch(/another live process uses node id node1[^]*ERR_LEASE_DUPLICATE_NODE/);
  expect(readFileSync(join(copy.dataDir, 'node.json'), 'utf8')).toBe(before);
  expect(await first.sql(NAME, 'INSERT INTO t VALUES (2)', 'SELECT count(*) FROM t')).toBe('2');

  expect(await runCli(['node', 'reset-id', '-config', copy.configPath])).toMatchObject({ code: 0 });
  await copy.start();
  await cluster.assertSame(NAME);
  expect((await copy.status()).role).toBe('replica');
  await copy.stop();
});

it('does not wait for ever for a member that claims what nobody can have', async () => {
  const impossible = { [NAME]: '99999:18446744073709551615', 'none.db': 'x' };
  const status = await first.status();
  const liar = {
    nodeId: 'liar',
    incarnation: 'x',
    advertiseUrl: '',
    peerAddress: '127.0.0.1:1',
    clusterId: status.clusterId,
    candidate: true,
    region: '',
    priority: 9,
    epoch: '1',
    seen: '1',
    positions: impossible,
  };
  await consul.put(`${KEY}/members/liar`, JSON.stringify(liar));
  const second = await cluster.add({ ttl: '2s', config: settings() });
  await cluster.caughtUp(NAME);
  await first.kill();
  await cluster.primary();
  expect((await second.status()).role).toBe('primary');
  await second.sql(NAME, 'INSERT INTO t VALUES (3)');
  await first.clear();
  await first.start();
  await cluster.assertSame(NAME);
});
