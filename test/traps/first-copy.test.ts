import { afterAll, beforeAll, expect, it } from 'vitest';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { TestCluster, waitFor } from '../helpers/cluster.js';
import { Connection } from './scene.js';

let cluster: TestCluster;

beforeAll(async () => {
  // The log soon lacks its beginning: a new replica needs a copy of the database.
  const data = { retention: '100ms', 'retention-monitor-interval': '100ms' };
  cluster = await TestCluster.start({ nodes: 1, config: { data } });
});

afterAll(async () => {
  await cluster.stop();
});

it('copies no page of a transaction that runs and is rolled back later (trap 8)', async () => {
  const primary = cluster.node(1);
  const name = 'running.db';
  await primary.sql(name, 'PRAGMA journal_mode=delete', 'CREATE TABLE t(x)', 'INSERT INTO t VALUES (1)');
  const log = join(primary.dataDir, 'dbs', name, 'ltx');
  await waitFor('the beginning of the log to go', () =>
    readdirSync(log).every((file) => !file.startsWith('0000000000000001-')),
  );
  const open = await Connection.open(primary.path(name), 'PRAGMA cache_size=5', 'PRAGMA cache_spill=5');
  await open.run('BEGIN');
  await open.run(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
    INSERT INTO t SELECT randomblob(1000) FROM n`);
  await open.run('UPDATE t SET x = 2 WHERE rowid = 1');
  const late = await cluster.prepare({ candidate: false });
  late.spawn();
  // The copy waits for pages that are not as they are committed. Which pages SQLite has written by now is its own affair:
  // when there are none the copy is made at once, and its file in the log is gone again.
  const received = join(late.dataDir, 'dbs', name, 'ltx');
  const hasAny = (folder: string, like: RegExp): boolean =>
    existsSync(folder) && readdirSync(folder).some((file) => like.test(file));
  await waitFor('the copy', () => hasAny(log, /^copy-/) || hasAny(received, /\.ltx$/));
  await open.run('ROLLBACK');
  await late.ready();
  await cluster.assertSame(name);
  expect(await late.sql(name, 'SELECT x FROM t')).toBe('1');
  await open.close();
});
