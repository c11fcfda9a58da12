import {
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { databasePaths } from '../../src/store/data-directory.js';
import { run, TestCluster, waitFor, type TestNode } from '../helpers/cluster.js';
import { flip } from '../helpers/flip.js';
import { runCli } from '../cli/run-cli.js';

/**
 * Damage found in the data directory of a node that was stopped. Each case has a database of its own; `good.db`
 * must go on whatever becomes of the others.
 */

let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;

const ON_PRIMARY = ['page.db', 'no-sqlite.db', 'log-foreign.db', 'log-flip.db', 'log-gap.db'];
const ON_REPLICA = [
  'r-page.db',
  'r-no-sqlite.db',
  'r-flip.db',
  'r-cut.db',
  'r-foreign.db',
  'r-order.db',
  'r-last.db',
];

beforeAll(async () => {
  cluster = await TestCluster.start({ nodes: 2, config: { data: { retention: '1h' } } });
  [primary, replica] = [cluster.node(1), cluster.node(2)];
  for (const name of ['good.db', ...ON_PRIMARY, ...ON_REPLICA]) {
    await primary.sql(
      name,
      'PRAGMA journal_mode=WAL',
      'CREATE TABLE t (id INTEGER PRIMARY KEY, body)',
      'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO t SELECT i, hex(randomblob(100)) FROM n',
      'UPDATE t SET body = body || 1 WHERE id = 7',
      'UPDATE t SET body = body || 2 WHERE id = 8',
    );
  }
  for (const name of ['good.db', ...ON_PRIMARY, ...ON_REPLICA]) await cluster.caughtUp(name);
});
afterAll(async () => {
  await cluster.stop();
});

const paths = (node: TestNode, name: string) => databasePaths(node.dataDir, name);

/** The log's files, oldest first. */
const logFiles = (node: TestNode, name: string): string[] => {
  const { ltx } = paths(node, name);
  return readdirSync(ltx)
    .filter((file) => file.endsWith('.ltx'))
    .toSorted()
    .map((file) => join(ltx, file));
};

const at = <T>(list: readonly T[], index: number): T => {
  const found = list.at(index);
  if (found === undefined) throw new Error(`nothing at ${index}`);
  return found;
};

describe('damage on a stopped replica', () => {
  it('is mended by what the log has or the pages that differ, said, and stops nobody else', async () => {
    await replica.stop();
    // All of the WAL is in the database file, so that what is changed there is what counts.
    for (const name of ON_REPLICA)
      await run('sqlite3', [paths(replica, name).database, 'PRAGMA wal_checkpoint(TRUNCATE)']);
    // Without the saved checksums every page and every file of the log is read again.
    for (const name of ON_REPLICA) rmSync(paths(replica, name).checksums, { force: true });
    flip(paths(replica, 'r-page.db').database, 3 * 4096 + 500);
    writeFileSync(paths(replica, 'r-no-sqlite.db').database, 'this was a database\n'.repeat(500));
    flip(at(logFiles(replica, 'r-flip.db'), 1), 130);
    truncateSync(at(logFiles(replica, 'r-cut.db'), 1), 90);
    writeFileSync(at(logFiles(replica, 'r-foreign.db'), 1), 'SQLite format 3\0');
    const [one, two] = [at(logFiles(replica, 'r-order.db'), 1), at(logFiles(replica, 'r-order.db'), 2)];
    renameSync(one, `${one}.x`);
    renameSync(two, one);
    renameSync(`${one}.x`, two);
    const last = at(logFiles(replica, 'r-last.db'), -1);
    truncateSync(last, statSync(last).size - 20);

    await replica.start();
    await primary.sql('good.db', 'INSERT INTO t (body) VALUES (1)');
    await cluster.assertSame('good.db');
    for (const name of ON_REPLICA) {
      await primary.sql(name, 'INSERT INTO t (body) VALUES (1)');
      await cluster.assertSame(name);
      expect(await replica.database(name)).not.toHaveProperty('error');
    }
    expect(await replica.metric('kitefs_apply_seconds_count')).toBeGreaterThan(0);
    expect(await replica.metric('kitefs_difference_count{direction="received"}')).toBeGreaterThan(0);
    expect(await primary.metric('kitefs_difference_count{direction="sent"}')).toBeGreaterThan(0);
    const events = (await replica.status()).events;
    const said = (name: string): string[] =>
      events.filter((event) => event.database === name).map((event) => event.kind);
    for (const name of ['r-page.db', 'r-no-sqlite.db']) expect(said(name)).toContain('rebuild');
    for (const name of ['r-cut.db', 'r-foreign.db', 'r-order.db']) expect(said(name)).toContain('resync');
    // What was unusable is kept, and nothing was said of the others.
    expect(readdirSync(join(replica.dataDir, 'lost+found'))).toEqual(
      expect.arrayContaining(['r-cut.db', 'r-foreign.db', 'r-order.db']),
    );
    expect(said('good.db')).toEqual([]);
    expect(replica.log()).not.toMatch(/ERR_INTERNAL|this is a bug|^\s+at /m);
  });
});

describe('damage on a primary that was killed', () => {
  it('stops that database with one error that names it, and changes nothing of it; others are served', async () => {
    await replica.stop();
    for (const name of ['page.db', 'no-sqlite.db']) {
      await primary.sql(name, 'PRAGMA wal_checkpoint(TRUNCATE)');
    }
    await primary.kill();
    flip(paths(primary, 'page.db').database, 3 * 4096 + 500);
    writeFileSync(paths(primary, 'no-sqlite.db').database, 'this was a database\n'.repeat(500));
    const damaged = ['page.db', 'no-sqlite.db'].map((name) => readFileSync(paths(primary, name).database));
    renameSync(at(logFiles(primary, 'log-gap.db'), 1), join(primary.dir, 'taken-away'));
    writeFileSync(at(logFiles(primary, 'log-foreign.db'), -1), 'SQLite format 3\0');
    flip(at(logFiles(primary, 'log-flip.db'), 1), 130);

    await primary.start();
    for (const [i, name] of ['page.db', 'no-sqlite.db'].entries()) {
      await waitFor(`the error of ${name}`, async () => {
        const error = (await primary.database(name))?.error ?? '';
        return /\[ERR_(CAPTURE|APPLIER)_DAMAGED\]$/.test(error) && error.includes(name);
      });
      expect(readFileSync(paths(primary, name).database).equals(damaged[i] as Buffer)).toBe(true);
    }
    // What would be in no log must not be acknowledged either.
    await expect(primary.sql('page.db', 'INSERT INTO t (body) VALUES (1)')).rejects.toThrow(
      /disk I\/O|readonly/,
    );
    for (const name of ['good.db', 'log-gap.db', 'log-flip.db', 'log-foreign.db']) {
      await primary.sql(name, 'INSERT INTO t (body) VALUES (1)');
      expect(await primary.sql(name, 'PRAGMA integrity_check')).toBe('ok');
    }
    expect(primary.log()).not.toMatch(/ERR_INTERNAL|this is a bug|^\s+at /m);
  });

  it('lets one that is out of service be removed, and another one take its name', async () => {
    const url = `http://127.0.0.1:${primary.httpPort}`;
    const copy = join(primary.dir, 'copy.db');
    expect((await runCli(['export', '-url', url, '-name', 'good.db', copy])).code).toBe(0);
    const refused = await runCli(['import', '-url', url, '-name', 'page.db', copy]);
    expect(refused.stderr).toMatch(/page\.db is out of service.*\n.*\[ERR_APPLIER_REPLACE\]/);
    for (const name of ['page.db', 'no-sqlite.db']) {
      await run('sh', ['-c', 'rm "$0"*', primary.path(name)]);
      expect(await runCli(['import', '-url', url, '-name', name, copy])).toMatchObject({ code: 0 });
      await primary.sql(name, 'INSERT INTO t (body) VALUES (1)');
      expect(await primary.database(name)).not.toHaveProperty('error');
    }
  });

  it('lets a replica have what is sound, also of a database whose log was lost', async () => {
    await replica.start();
    for (const name of ['good.db', ...ON_PRIMARY]) await cluster.assertSame(name);
  });
});
