import { afterAll, beforeAll, expect, it } from 'vitest';
import { copyFileSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { TestCluster, type TestNode, run, sqlite } from '../helpers/cluster.js';
import { Connection, StoppedWriter } from './scene.js';

/** What a killed daemon finds when it starts again; traps 5, 6, 7 and 21. */
let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;

beforeAll(async () => {
  // Only the first node may be primary: what it has committed must be there when it starts again.
  cluster = await TestCluster.start({ nodes: 1 });
  primary = cluster.node(1);
  replica = await cluster.add({ candidate: false });
});

afterAll(async () => {
  await cluster.stop();
});

const stored = (name: string, file: string): string => join(primary.dataDir, 'dbs', name, file);

/** What recovery in place, not through the mount, would make of a database. */
async function recoveredInPlace(name: string): Promise<string> {
  const dir = join(cluster.dir, 'in-place');
  mkdirSync(dir);
  for (const file of ['database', 'database-journal']) copyFileSync(stored(name, file), join(dir, file));
  try {
    return await sqlite(join(dir, 'database'), 'SELECT n FROM t');
  } finally {
    rmSync(dir, { recursive: true });
  }
}

it('commits a transaction over two databases in both or in none (trap 6)', async () => {
  for (const name of ['a.db', 'b.db']) {
    await primary.sql(name, 'PRAGMA journal_mode=delete', 'CREATE TABLE t(n)', 'INSERT INTO t VALUES (1)');
  }
  await cluster.caughtUp('b.db');
  const both = [
    `ATTACH '${primary.path('b.db')}' AS b`,
    'BEGIN',
    'UPDATE main.t SET n = 2',
    'UPDATE b.t SET n = 2',
    'COMMIT',
  ];
  const rows = async (node: TestNode): Promise<string[]> =>
    await Promise.all(['a.db', 'b.db'].map((name) => node.sql(name, 'SELECT n FROM t')));

  // Before the super-journal goes nothing is committed.
  await StoppedWriter.killed(primary.path('a.db'), both, { at: 'unlink', file: '-mj' });
  await primary.kill();
  expect(await recoveredInPlace('a.db')).toBe('2');
  await primary.start();
  expect(await rows(primary)).toEqual(['1', '1']);
  for (const name of ['a.db', 'b.db']) await cluster.assertSame(name);

  // After it both are.
  await StoppedWriter.killed(primary.path('a.db'), both, { at: 'unlink', file: '-journal' });
  await primary.kill();
  await primary.start();
  expect(await rows(primary)).toEqual(['2', '2']);
  for (const name of ['a.db', 'b.db']) await cluster.assertSame(name);
});

it('goes on from what a rollback leaves in free pages (trap 6)', async () => {
  const name = 'free.db';
  const open = await Connection.open(
    primary.path(name),
    'PRAGMA journal_mode=delete',
    'CREATE TABLE t(x)',
    'INSERT INTO t VALUES (zeroblob(100000))',
    'DELETE FROM t',
  );
  await open.close();
  await cluster.caughtUp(name);
  // SQLite does not journal free pages that it uses again: its recovery does not restore them.
  await StoppedWriter.killed(primary.path(name), ['INSERT INTO t VALUES (randomblob(50000))'], {
    at: 'unlink',
    file: '-journal',
  });
  await primary.kill();
  await primary.start();
  expect(await primary.sql(name, 'PRAGMA journal_mode', 'SELECT count(*) FROM t')).toBe('delete\n0');
  await cluster.assertSame(name);
});

it('logs commits that it had not captured before SQLite touches the WAL, each with its TXID (traps 7, 21)', async () => {
  const name = 'late.db';
  const open = await Connection.open(
    primary.path(name),
    'PRAGMA journal_mode=wal',
    'PRAGMA wal_autocheckpoint=0',
    'CREATE TABLE t(n)',
    'INSERT INTO t VALUES (1)',
  );
  await cluster.caughtUp(name);
  const before = (await primary.database(name))?.position ?? '';
  await primary.kill();
  await open.kill();
  await run('sqlite3', [
    '-cmd',
    '.dbconfig no_ckpt_on_close on',
    stored(name, 'database'),
    'PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES (2); INSERT INTO t VALUES (3); INSERT INTO t VALUES (4)',
  ]);
  rmSync(stored(name, 'database-shm'), { force: true });
  await primary.start();
  const after = (await primary.database(name))?.position ?? '';
  const txid = (position: string): number => Number.parseInt(position, 16);
  expect(txid(after) - txid(before)).toBe(3);
  await cluster.assertSame(name);
  expect(await replica.sql(name, 'SELECT group_concat(n) FROM t')).toBe('1,2,3,4');
});

it('clears a dead mount though the kernel still answers for its folder, and names who still uses it (trap 5)', async () => {
  const frozen = await Connection.open(primary.path('late.db'));
  expect(await frozen.run('SELECT count(*) FROM t')).toBe('4');
  await run('stat', [primary.mountDir]);
  await primary.kill();
  await primary.start();
  await primary.sql('late.db', 'INSERT INTO t VALUES (5)');
  expect(await frozen.run('SELECT count(*) FROM t')).toBe('4'); // old data, no error
  expect(primary.log()).toContain(`process ${frozen.pid} (`);
  await frozen.kill();
  const other = await Connection.open(primary.path('late.db'));
  await primary.stop();
  expect(primary.log()).toContain(`process ${other.pid} (`);
  await other.kill();
  await primary.start();
  await cluster.assertSame('late.db');
});
