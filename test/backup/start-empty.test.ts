import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { run, sqlite, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { litestreamRestore } from '../helpers/litestream.js';
import { TestMinio } from '../helpers/minio.js';

/** A node without a volume: `restore-if-missing`. */

let dir: string;
let minio: TestMinio;
let cluster: TestCluster | undefined;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-start-'));
  minio = await TestMinio.start(['backups']);
});

afterEach(async () => {
  await cluster?.stop();
  cluster = undefined;
});

afterAll(async () => {
  await minio.stop();
  rmSync(dir, { recursive: true, force: true });
});

const s3 = (path: string): Record<string, unknown> => ({
  type: 's3',
  bucket: 'backups',
  path,
  endpoint: minio.endpoint,
  'access-key-id': minio.env.AWS_ACCESS_KEY_ID,
  'secret-access-key': minio.env.AWS_SECRET_ACCESS_KEY,
  'sync-interval': '20ms',
});

async function prepare(backups: Record<string, unknown>[], lease: object = {}): Promise<TestNode> {
  cluster = await TestCluster.start({ nodes: 0 });
  const node = await cluster.prepare({ config: { backups, lease: lease as Record<string, unknown> } });
  writeFileSync(node.configPath, `${readFileSync(node.configPath, 'utf8')}restore-if-missing: true\n`);
  return node;
}

/** Whether a log has its first file. */
const isThere = (folder: string): boolean =>
  existsSync(folder) && readdirSync(folder).some((name) => name.endsWith('.ltx'));

const forget = async (node: TestNode): Promise<void> => {
  await node.clear();
  rmSync(node.dataDir, { recursive: true, force: true });
};

const insert = async (node: TestNode, name: string, value: number): Promise<string> =>
  await node.sql(
    name,
    'CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b BLOB)',
    `INSERT INTO t VALUES (${value}, randomblob(20000))`,
  );

const rows = async (node: TestNode, name = 'app.db'): Promise<string> =>
  await node.sql(name, 'SELECT group_concat(a) FROM t');

const sync = async (node: TestNode): Promise<void> => {
  const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=20000`, { method: 'POST' });
  if (!answer.ok) throw new Error(await answer.text());
};

it('goes on in the same bucket after its disk is gone, again and again', async () => {
  // The lease goes with the disk.
  const node = await prepare([s3('zero')], { path: undefined });
  await node.start();
  await node.sql('app.db', 'PRAGMA journal_mode=wal');
  await run('mkdir', [node.path('folder')]);
  let expected = '';
  let epoch = 0n;
  const { clusterId } = await node.status();
  for (let round = 1; round <= 2; round += 1) {
    await insert(node, 'app.db', round);
    await insert(node, 'folder/b.db', round * 10);
    expected = await rows(node);
    const before = await node.database('app.db');
    await node.stop();
    await forget(node);
    await node.start();
    const status = await node.status();
    expect(status.clusterId).toBe(clusterId);
    expect(BigInt(status.epoch) > epoch).toBe(true);
    epoch = BigInt(status.epoch);
    expect(await rows(node)).toBe(expected);
    expect(await rows(node, 'folder/b.db')).toContain(String(round * 10));
    // The cluster's numbering goes on: tokens of before are understood. (A promotion may add the journal mode.)
    expect((await node.database('app.db'))!.position >= before!.position).toBe(true);
    expect(existsSync(join(node.dataDir, 'restoring'))).toBe(false);
    await sync(node);
  }
  expect(node.log(), 'no set of all pages was needed').not.toContain('backup-resync');
  // The bucket is as if nothing had happened.
  await insert(node, 'app.db', 3);
  await sync(node);
  const path = join(dir, 'zero.db');
  const url = `s3://backups/zero/app.db?endpoint=${encodeURIComponent(minio.endpoint)}&region=us-east-1`;
  await litestreamRestore(url, path, [], minio.env);
  expect(await sqlite(path, 'SELECT group_concat(a) FROM t')).toBe('1,2,3');
  // A disk that is there is taken as it is.
  await node.stop();
  const restores = node.log().split('was restored from').length;
  await node.start();
  expect(await rows(node)).toBe('1,2,3');
  expect(node.log().split('was restored from').length).toBe(restores);
  // What an image brings along does not take the place of what was restored.
  const image = join(dir, 'image.db');
  await sqlite(image, 'CREATE TABLE t (a)', 'INSERT INTO t VALUES (99)');
  const url2 = `http://127.0.0.1:${node.httpPort}`;
  const words = ['import', '-url', url2, '-name', 'app.db', '-if-db-not-exists', image];
  expect((await runCli(words)).stdout).toContain('nothing is imported');
  expect(await rows(node)).toBe('1,2,3');
});

it('survives kill -9, of the primary and in the middle of the restore', async () => {
  const folder = join(dir, 'killed');
  const backups = [{ type: 'file', path: folder, 'sync-interval': '20ms' }];
  const node = await prepare(backups, { path: undefined });
  await node.start();
  for (const name of ['a.db', 'b.db', 'c.db']) {
    await insert(node, name, 1);
    await node.sql(name, 'INSERT INTO t SELECT value, randomblob(200000) FROM generate_series(2, 60)');
  }
  await sync(node);
  await insert(node, 'a.db', 100);
  await sync(node);
  await node.kill();
  await forget(node);
  const restoring = join(node.dataDir, 'restoring');
  const logOf = (name: string): string => join(node.dataDir, 'dbs', name, 'ltx');
  const steps: Record<string, () => boolean> = {
    'a restore to begin': () => existsSync(restoring),
    'a first object': () => existsSync(restoring) && readdirSync(restoring).length > 0,
    'a first database': () => ['a.db', 'b.db', 'c.db'].some((name) => isThere(logOf(name))),
    'a second database': () => ['a.db', 'b.db', 'c.db'].filter((name) => isThere(logOf(name))).length > 1,
    'the last database': () => ['a.db', 'b.db', 'c.db'].every((name) => isThere(logOf(name))),
  };
  for (const [what, isReached] of Object.entries(steps)) {
    const daemon = node.spawn();
    while (!isReached()) {
      if (daemon.exitCode !== null) throw new Error(`no chance for ${what}: ${node.logTail()}`);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    await node.kill();
    await node.clear();
  }
  await node.start();
  expect(await rows(node, 'a.db')).toMatch(/,60,100$/);
  for (const name of ['b.db', 'c.db']) expect(await rows(node, name)).toMatch(/,60$/);
  expect(await node.sql('a.db', 'PRAGMA integrity_check')).toBe('ok');
  expect(existsSync(join(node.dataDir, 'restoring'))).toBe(false);
});

it('does not start empty when the backups cannot be reached, or are of another cluster', async () => {
  const node = await prepare([s3('away')]);
  await node.start();
  await insert(node, 'app.db', 1);
  await node.stop();
  await forget(node);
  await minio.kill();
  const refused = node.spawn();
  await waitFor('the node to end', () => refused.exitCode !== null);
  expect(refused.exitCode).toBe(1);
  expect(node.log()).toContain('It does not start empty');
  await minio.up();
  await run('sed', ['-i', 's/^restore-if-missing.*/&\\ncluster: {id: other}/', node.configPath]);
  const other = node.spawn();
  await waitFor('the node to end', () => other.exitCode !== null);
  expect(node.log()).toContain('ERR_BACKUP_OTHER_CLUSTER');
  await run('sed', ['-i', '/^cluster: /d', node.configPath]);
  await node.start();
  expect(await rows(node)).toBe('1');
});
