import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { Shell } from '../helpers/shell.js';
import { NO_POSITION } from '../../src/ltx/position.js';
import { databasePaths } from '../../src/store/data-directory.js';
import { Log } from '../../src/store/log.js';
import { type NodeOptions, run, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';

/**
 * A replica loses power, and the primary is gone for good: what the replica acknowledged with `fsync` must be on its disk.
 * Its data directory is a file system in an image file. What the image holds while it is mounted is what a disk
 * would: nothing that waits in the page cache without an fsync. A copy of it is what a power cut leaves.
 */
let cluster: TestCluster | undefined;
const mounted = new Set<string>();

afterEach(async () => {
  for (const node of cluster?.nodes ?? []) await node.kill();
  for (const path of mounted) execFileSync('umount', ['-l', path]);
  mounted.clear();
  await cluster?.stop();
  cluster = undefined;
});

const imageOf = (node: TestNode): string => join(node.dir, 'disk');

function mount(image: string, path: string): void {
  // A commit of the file system's own journal would be as good as an fsync: not by time.
  execFileSync('mount', ['-o', 'loop,commit=300', image, path]);
  mounted.add(path);
}

/** A node with a disk of its own. */
async function withDisk(options: NodeOptions): Promise<TestNode> {
  const node = await cluster!.prepare(options);
  mkdirSync(node.dataDir);
  execFileSync('truncate', ['-s', '32M', imageOf(node)]);
  execFileSync('mkfs.ext4', ['-q', imageOf(node)]);
  mount(imageOf(node), node.dataDir);
  return node;
}

async function cutPower(node: TestNode): Promise<void> {
  process.kill(node.pid, 'SIGSTOP');
  execFileSync('cp', ['--sparse=always', imageOf(node), `${imageOf(node)}.left`]);
  await node.kill();
  await node.clear();
  execFileSync('umount', ['-l', node.dataDir]);
  mounted.delete(node.dataDir);
  mount(`${imageOf(node)}.left`, node.dataDir);
  // This machine did not boot anew: the marks of the boot before are made to look like it.
  const marks = readdirSync(node.dataDir, { recursive: true, encoding: 'utf8' });
  for (const mark of marks.filter((path) => path.endsWith('applier-boot')))
    writeFileSync(join(node.dataDir, mark), 'the boot before');
}

const isPrimary = async (node: TestNode): Promise<boolean> =>
  (await node.status().catch(() => undefined))?.role === 'primary';

/** Makes a node the primary that would not become it by itself. */
async function takeOver(node: TestNode): Promise<void> {
  await waitFor(
    () => `${node.id} to be the primary; its log ends:\n${node.logTail(10)}`,
    async () => {
      if (await isPrimary(node)) return true;
      await runCli(['promote', '--url', `http://127.0.0.1:${node.httpPort}`, '--accept-loss']);
      return await isPrimary(node);
    },
    10_000,
  );
}

const lease = { 'election-wait': '200ms' };
const TABLE = 'CREATE TABLE t (id INTEGER PRIMARY KEY, body)';
const ROWS =
  'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO t SELECT i, hex(randomblob(100)) FROM n';

it('has what it acknowledged after it had rejoined by difference', async () => {
  cluster = await TestCluster.start({ nodes: 0, ttl: '1s' });
  const replica = await withDisk({ config: { lease } });
  await replica.start();
  const durability = { commit: 'replicas: 1', acknowledge: 'fsync' };
  const primary = await cluster.add({ config: { lease, durability } });
  // As an application does that goes on: the last connection to close would checkpoint, and fsync.
  const application = new Shell(replica.path('app.db'));
  await application.ask('PRAGMA journal_mode=WAL', 'PRAGMA synchronous=NORMAL', TABLE, ROWS);
  await cluster.caughtUp('app.db');
  // With a transaction that nobody else has it rejoins by difference, and its log begins with that.
  process.kill(primary.pid, 'SIGSTOP');
  await application.ask('UPDATE t SET body = 0 WHERE id = 1');
  await replica.kill();
  await replica.clear();
  await application.kill();
  process.kill(primary.pid, 'SIGCONT');
  await takeOver(primary);
  await replica.start();
  await cluster.caughtUp('app.db');
  expect(await replica.metric('kitefs_difference_count{direction="received"}')).toBe(1);
  await primary.sql('app.db', "INSERT INTO t VALUES (1000, 'acknowledged')");
  expect((await primary.status()).durability?.syncSet).toContain(replica.id);
  const rows = await primary.sql('app.db', 'SELECT count(*), sum(length(body)) FROM t');
  await primary.sql('again.db', TABLE, ROWS);
  await run('rm', [primary.path('again.db')]);
  await primary.sql('again.db', TABLE, ROWS);

  await cutPower(replica);
  // As if retention had passed in between: the log begins with the deletion, which nothing need be there for.
  for (const file of Log.open(databasePaths(replica.dataDir, 'again.db').ltx, { repair: false }).filesAfter(
    NO_POSITION,
  )!) {
    if (file.commitPages === 0) break;
    rmSync(file.path);
  }
  await primary.kill();
  replica.spawn();
  await takeOver(replica);
  expect(await replica.sql('app.db', 'PRAGMA integrity_check')).toBe('ok');
  expect(await replica.sql('app.db', 'SELECT count(*), sum(length(body)) FROM t')).toBe(rows);
  expect(await replica.sql('again.db', 'SELECT count(*) FROM t')).toBe('200');
});

it('has what retention has removed from its log', async () => {
  cluster = await TestCluster.start({ nodes: 0, ttl: '1s' });
  const durability = { commit: 'replicas: 1', acknowledge: 'fsync' };
  const primary = await cluster.add({ config: { lease, durability } });
  const data = { 'max-log-size': '1KB', 'retention-monitor-interval': '100ms' };
  const replica = await withDisk({ config: { lease, data } });
  await replica.start();
  const names = ['app.db', 'small-pages.db', 'again.db'];
  for (const name of names) await primary.sql(name, 'PRAGMA journal_mode=WAL', TABLE, ROWS);
  await primary.sql('small-pages.db', 'PRAGMA journal_mode=DELETE', 'PRAGMA page_size=1024', 'VACUUM');
  await run('rm', [primary.path('again.db')]);
  await cluster.caughtUp('app.db');
  await primary.sql('again.db', 'PRAGMA journal_mode=WAL', TABLE, ROWS);
  for (const name of names) {
    for (let i = 0; i < 3; i += 1) await primary.sql(name, `INSERT INTO t (body) VALUES ('${i}')`);
    await cluster.caughtUp(name);
    const { ltx } = databasePaths(replica.dataDir, name);
    await waitFor('retention', () => readdirSync(ltx).filter((file) => file.endsWith('.ltx')).length === 1);
  }

  await cutPower(replica);
  await primary.kill();
  replica.spawn();
  await takeOver(replica);
  for (const name of names) {
    expect(await replica.sql(name, 'PRAGMA integrity_check', 'SELECT count(*) FROM t')).toBe('ok\n203');
  }
});
