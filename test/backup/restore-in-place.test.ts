import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, expect, it } from 'vitest';
import { type CliRun, runCli } from '../cli/run-cli.js';
import { sqlite, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';

/** `kitefs restore DB` into the place of a node that does not run (decision 037). */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-in-place-'));
let cluster: TestCluster | undefined;

afterEach(async () => {
  await cluster?.stop();
  cluster = undefined;
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const backups = (name: string): Record<string, unknown[]> => ({
  backups: [{ type: 'file', path: join(dir, name), 'sync-interval': '20ms' }],
});
const insert = async (node: TestNode, name: string, value: number): Promise<string> =>
  await node.sql(
    name,
    'PRAGMA journal_mode=wal',
    'CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b)',
    `INSERT INTO t VALUES (${value}, randomblob(20000))`,
  );
const ROWS = 'SELECT group_concat(a) FROM t';
const rows = async (node: TestNode, name = 'app.db'): Promise<string> => await node.sql(name, ROWS);
const sync = async (node: TestNode): Promise<void> => {
  const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=20000`, { method: 'POST' });
  if (!answer.ok) throw new Error(await answer.text());
};
const txid = async (node: TestNode, name = 'app.db'): Promise<string> =>
  (await node.database(name))!.position.slice(0, 16);

const restore = async (node: TestNode, ...words: string[]): Promise<CliRun> =>
  await runCli(['restore', '-config', node.configPath, ...words]);

async function restored(node: TestNode, ...words: string[]): Promise<string> {
  const ran = await restore(node, ...words);
  expect(ran.code, ran.stderr).toBe(0);
  return ran.stdout;
}

/** What the bucket gives, into a new file. */
async function fromBucket(node: TestNode, ...words: string[]): Promise<string> {
  const path = join(dir, `${Math.random()}.db`);
  await restored(node, '-o', path, '-integrity-check', 'full', ...words, 'app.db');
  return await sqlite(path, ROWS);
}

it('puts a moment in the place of a stopped node, the latest state on an empty disk, and the bucket goes on', async () => {
  cluster = await TestCluster.start({ nodes: 0 });
  // The lease goes with the disk.
  const node = await cluster.prepare({ config: { ...backups('one'), lease: { path: undefined } } });
  writeFileSync(node.configPath, `${readFileSync(node.configPath, 'utf8')}restore-if-missing: true\n`);
  await node.start();
  const { clusterId } = await node.status();
  await insert(node, 'other.db', 1);
  await insert(node, 'app.db', 1);
  await sync(node);
  const then = await txid(node);
  await insert(node, 'app.db', 2);
  const undone = await txid(node);
  await sync(node);
  const refused = await restore(node, 'app.db');
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('ERR_RESTORE_RUNNING');
  expect(refused.stderr).toContain(String(node.pid));
  await node.kill();
  await node.clear();
  const said = await restored(node, '-cluster-txid', then, 'app.db');
  expect(said).toContain('new transaction');
  const kept = /What was there is in (.*)/.exec(said)![1]!;
  expect(await sqlite(join(kept, 'database'), ROWS)).toBe('1,2');
  await node.start();
  expect(await rows(node)).toBe('1');
  expect(await rows(node, 'other.db')).toBe('1');
  expect((await txid(node)) > undone, 'no TXID is given twice').toBe(true);
  await insert(node, 'app.db', 3);
  await sync(node);
  const found = await Promise.all([fromBucket(node), fromBucket(node, '-cluster-txid', undone)]);
  expect(found, 'what was undone is kept').toEqual(['1,3', '1,2']);
  // The latest state: nothing is new in it for anybody.
  const before = await txid(node);
  const { epoch } = await node.status();
  const resyncs = node.log().split('backup-resync').length;
  await node.stop();
  rmSync(node.dataDir, { recursive: true, force: true });
  expect(await restored(node, 'app.db')).toContain('its history goes on');
  await node.start();
  expect(await rows(node)).toBe('1,3');
  expect(await rows(node, 'other.db'), 'which the start has restored').toBe('1');
  const status = await node.status();
  expect(status.clusterId).toBe(clusterId);
  expect(BigInt(status.epoch) > BigInt(epoch)).toBe(true);
  expect(await txid(node)).toBe(before);
  await insert(node, 'app.db', 4);
  await sync(node);
  expect(await fromBucket(node)).toBe('1,3,4');
  expect(node.log().split('backup-resync').length, 'no set of all pages was needed').toBe(resyncs);
  expect(node.log()).not.toContain('backup-fenced');
});

it('is what the other members follow, also one that was further and is started first', async () => {
  cluster = await TestCluster.start({ nodes: 2, ttl: '1s', config: backups('three') });
  const [first, second] = cluster.nodes as [TestNode, TestNode];
  await insert(first, 'app.db', 1);
  await sync(first);
  const then = await txid(first);
  await insert(first, 'app.db', 2);
  await sync(first);
  await first.stop();
  await waitFor('the other', async () => (await second.status()).role === 'primary');
  const refused = await restore(first, '-cluster-txid', then, 'app.db');
  expect(refused.stderr).toContain('ERR_RESTORE_RUNNING');
  expect(refused.stderr).toContain(second.id);
  // It has more than anybody, and in a later epoch.
  await insert(second, 'app.db', 9);
  await second.kill();
  await second.clear();
  expect(await restored(first, '-cluster-txid', then, 'app.db')).toContain('new transaction');
  second.spawn();
  await waitFor('it to wait for the other', async () => second.log().includes('start one that has it'));
  await first.start();
  await cluster.primary();
  await insert(first, 'app.db', 3);
  await cluster.assertSame('app.db');
  expect(await rows(second)).toBe('1,3');
  const lost = await runCli(['lost', 'ls', '-config', second.configPath]);
  expect(lost.stdout).toContain('app.db');
});
