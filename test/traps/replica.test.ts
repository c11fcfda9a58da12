import { afterAll, beforeAll, expect, it } from 'vitest';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { Connection } from './scene.js';

/** What applications on a replica do to its wal-index must not stop replication; traps 11, 15, 16, 23 and 25. */
let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;

beforeAll(async () => {
  cluster = await TestCluster.start();
  [primary, replica] = [cluster.node(1), cluster.node(2)];
});

afterAll(async () => {
  await cluster.stop();
});

const REFUSED = /readonly|disk I\/O|IOERR/;
const rows = (count: number, bytes: number): string =>
  `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count})
   INSERT INTO t SELECT randomblob(${bytes}) FROM n`;

async function start(name: string): Promise<void> {
  await primary.sql(name, 'PRAGMA journal_mode=wal', 'CREATE TABLE t(x)', rows(100, 2000));
  await cluster.caughtUp(name);
}

it('goes on after applications have restarted the WAL by their refused writes and checkpoints (trap 15)', async () => {
  const name = 'restarts.db';
  await start(name);
  const open = await Connection.open(replica.path(name));
  const provoke = [
    'INSERT INTO t VALUES (0)',
    'PRAGMA wal_checkpoint(TRUNCATE)',
    'PRAGMA wal_checkpoint(PASSIVE)',
    'INSERT INTO t VALUES (0)',
    'PRAGMA wal_checkpoint(RESTART)',
    'DELETE FROM t',
  ];
  for (const [i, sql] of provoke.entries()) {
    const done = open.run(sql);
    if (sql.startsWith('PRAGMA')) await done;
    else await expect(done).rejects.toThrow(REFUSED);
    await primary.sql(
      name,
      `INSERT INTO t VALUES (${i})`,
      `UPDATE t SET x = randomblob(2000) WHERE rowid = ${i}`,
    );
    await cluster.caughtUp(name);
    expect(await open.run('SELECT count(*) FROM t')).toBe(String(101 + i));
  }
  await cluster.assertSame(name);
  await open.close();
});

it('goes on after a VACUUM that shrinks, beside a reader that stays open (trap 11)', async () => {
  const name = 'shrinks.db';
  await start(name);
  const open = await Connection.open(replica.path(name));
  expect(await open.run('SELECT count(*) FROM t')).toBe('100');
  for (let i = 0; i < 3; i += 1) {
    await primary.sql(name, 'DELETE FROM t WHERE rowid > 5', 'VACUUM');
    await cluster.caughtUp(name);
    expect(await open.run('SELECT count(*) FROM t')).toBe('5');
    await primary.sql(name, rows(95, 2000));
    await cluster.caughtUp(name);
    expect(await open.run('SELECT count(*) FROM t')).toBe('100');
  }
  expect(await open.run('PRAGMA integrity_check')).toBe('ok');
  await open.close();
  // A connection that does not notice the new size says so; a new one would then have taken its place.
  expect(replica.log()).not.toContain('malformed');
  await cluster.assertSame(name);
});

it('names an application that keeps the write lock, and goes on when it lets go (trap 15)', async () => {
  const name = 'locked.db';
  await start(name);
  await start('free.db');
  const open = await Connection.open(replica.path(name));
  await open.run('BEGIN IMMEDIATE');
  await primary.sql(name, 'INSERT INTO t VALUES (1)');
  await primary.sql('free.db', 'INSERT INTO t VALUES (1)');
  await cluster.caughtUp('free.db');
  await waitFor('the event that names the process', async () => {
    const { events } = await replica.status();
    return events.some(
      (event) => event.kind === 'apply-blocked' && event.message.includes(`process ${open.pid} `),
    );
  });
  await open.run('ROLLBACK');
  await cluster.assertSame(name);
  await open.close();
});

it('checkpoints beside readers of short transactions (trap 16)', async () => {
  const name = 'read.db';
  await start(name);
  const script = fileURLToPath(new URL('short-reader.mjs', import.meta.url));
  const readers = await Promise.all(
    Array.from({ length: 4 }, async () => {
      const child = spawn(process.execPath, [script, replica.path(name)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(child.stdout, 'data');
      return child;
    }),
  );
  try {
    const wal = join(replica.dataDir, 'dbs', name, 'database-wal');
    for (let i = 0; i < 6; i += 1) await primary.sql(name, 'UPDATE t SET x = randomblob(12000)');
    // What began after the checkpoint is far less than what was written.
    await waitFor(
      () => `a checkpoint: -wal has ${statSync(wal).size} bytes`,
      async () => {
        await primary.sql(name, 'UPDATE t SET x = randomblob(4000) WHERE rowid <= 20');
        return statSync(wal).size < 1 << 20;
      },
    );
    expect(readers.map((child) => child.exitCode)).toEqual([null, null, null, null]);
  } finally {
    for (const child of readers) child.kill('SIGKILL');
  }
  await cluster.assertSame(name);
});

it('shows an empty database to readers of one that was dropped, and then the new one (trap 25)', async () => {
  const name = 'dropped.db';
  await start(name);
  const open = await Connection.open(replica.path(name));
  expect(await open.run('SELECT count(*) FROM t')).toBe('100');
  await primary.sql(name, 'PRAGMA wal_checkpoint(TRUNCATE)');
  await new Promise((resolve, reject) => {
    const rm = spawn('rm', [primary.path(name)], { stdio: 'inherit' });
    rm.once('exit', (code) => (code === 0 ? resolve(code) : reject(new Error(`rm: ${code}`))));
  });
  await waitFor('the replica to drop it', () => !existsSync(join(replica.dataDir, 'dbs', name, 'database')));
  await expect(open.run('SELECT count(*) FROM t')).rejects.toThrow('no such table');
  expect(await open.run('SELECT count(*) FROM sqlite_schema')).toBe('0');
  await open.close();
  await primary.sql(name, 'CREATE TABLE other(x)');
  await cluster.assertSame(name);
});
