import { afterAll, beforeAll, expect, it } from 'vitest';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { TestCluster, waitFor } from '../helpers/cluster.js';
import { Connection, StoppedWriter, type StopPoint } from './scene.js';

/** A primary that lost its lease without noticing, and one that hands it over; traps 10, 13, 14, 19 and 22. */
let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ ttl: '3s' });
});

afterAll(async () => {
  await cluster.stop();
});

/** Where a transaction of each journal mode is about to commit. */
const COMMIT_POINTS: Readonly<Record<string, StopPoint>> = {
  delete: { at: 'unlink', file: '-journal' },
  truncate: { at: 'truncate', file: '-journal' },
  persist: { at: 'zero-header', file: '-journal' },
  wal: { at: 'wal-frame', file: '-wal' },
};
const MODES = Object.keys(COMMIT_POINTS);

/** More than a cache of five pages holds: SQLite writes pages into the database before the transaction commits. */
const FILL = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
  INSERT INTO t SELECT randomblob(1000) FROM n`;

it('refuses every kind of commit once another node is primary, and readers go on (traps 10, 14, 22)', async () => {
  const [first, second] = [cluster.node(1), cluster.node(2)];
  for (const mode of MODES) {
    await first.sql(
      `${mode}.db`,
      `PRAGMA journal_mode=${mode}`,
      'CREATE TABLE t(n)',
      'INSERT INTO t VALUES (1)',
    );
  }
  const spilled = await Connection.open(
    first.path('spilled.db'),
    'PRAGMA journal_mode=delete',
    'CREATE TABLE t(n)',
    'INSERT INTO t VALUES (1)',
    'PRAGMA cache_size=5',
    'PRAGMA cache_spill=5',
  );
  for (const name of [...MODES.map((mode) => `${mode}.db`), 'spilled.db']) await cluster.caughtUp(name);
  await spilled.run('BEGIN');
  await spilled.run(FILL);
  const writers = await Promise.all(
    Object.entries(COMMIT_POINTS).map(async ([mode, point]) => {
      return await StoppedWriter.stopped(
        first.path(`${mode}.db`),
        [`PRAGMA journal_mode=${mode}`, 'INSERT INTO t VALUES (666)'],
        point,
      );
    }),
  );

  process.kill(first.pid, 'SIGSTOP');
  try {
    await waitFor('node2 to be primary', async () => (await second.status()).role === 'primary');
  } finally {
    process.kill(first.pid, 'SIGCONT');
  }
  for (const [i, writer] of writers.entries()) {
    const { code, output } = await writer.continue();
    expect({ mode: MODES[i], failed: code !== 0 }, output).toEqual({ mode: MODES[i], failed: true });
  }
  await expect(spilled.run('COMMIT')).rejects.toThrow(/IOERR|READONLY/);
  await spilled.run('ROLLBACK').catch(() => undefined); // SQLite has done it when the COMMIT failed
  await spilled.close();

  await waitFor('node1 to be a replica', async () => (await first.status()).role === 'replica');
  for (const name of [...MODES.map((mode) => `${mode}.db`), 'spilled.db']) {
    await second.sql(name, 'INSERT INTO t VALUES (2)');
    await cluster.assertSame(name);
    expect(await first.sql(name, 'SELECT group_concat(n) FROM t'), name).toBe('1,2');
  }
});

it('reads a rollback-mode database whose transaction it refused, while no lease can be had (trap 14)', async () => {
  const primary = await cluster.primary();
  const name = 'unled.db';
  const spilled = await Connection.open(
    primary.path(name),
    'PRAGMA journal_mode=delete',
    'CREATE TABLE t(n)',
    'INSERT INTO t VALUES (1)',
    'PRAGMA cache_size=5',
    'PRAGMA cache_spill=5',
  );
  await cluster.caughtUp(name);
  await spilled.run('BEGIN');
  await spilled.run(FILL);
  // Nobody becomes primary, nobody a replica: no applier comes and rolls back.
  const lock = await Connection.open(join(cluster.dir, 'lease.db'), 'BEGIN EXCLUSIVE');
  try {
    await waitFor('the primary to be fenced', async () => (await primary.status()).role === 'fenced');
    await expect(spilled.run('COMMIT')).rejects.toThrow(/IOERR|READONLY/);
    await spilled.run('ROLLBACK').catch(() => undefined); // SQLite has done it when the COMMIT failed
    expect(await primary.sql(name, 'SELECT group_concat(n) FROM t')).toBe('1');
    expect(await spilled.run('SELECT n FROM t')).toBe('1');
  } finally {
    await lock.run('ROLLBACK');
    await lock.close();
  }
  await spilled.close();
  await (await cluster.primary()).sql(name, 'INSERT INTO t VALUES (2)');
  await cluster.assertSame(name);
});

it('loses no row whose COMMIT returned when it hands over under load (traps 13, 19)', async () => {
  const from = await cluster.primary();
  const to = cluster.nodes.find((node) => node !== from);
  if (!to) throw new Error('no other node');
  await from.sql('load.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n INTEGER PRIMARY KEY, body)');
  await cluster.caughtUp('load.db');
  const script = fileURLToPath(new URL('../chaos/writer.mjs', import.meta.url));
  const writer = spawn(process.execPath, [script, from.path('load.db'), '1', 'NORMAL', 'wal']);
  let said = '';
  writer.stdout.on('data', (text: Buffer) => (said += text.toString()));
  const ended = once(writer, 'close');
  const done = (): number => Number(/.*^done (\d+)$/ms.exec(said)?.[1] ?? 0);
  await waitFor('some rows', () => done() > 200);
  await from.stop();
  writer.kill('SIGKILL');
  await ended;
  await waitFor('the other node to be primary', async () => (await to.status()).role === 'primary');
  const [count, max] = (await to.sql('load.db', 'SELECT count(*), max(n) FROM t')).split('|').map(Number);
  expect(max).toBeGreaterThanOrEqual(done());
  expect(count).toBe(max);
  await from.start();
  await cluster.assertSame('load.db');
  // What was demoted, in WAL mode since then, becomes primary again and takes rollback-journal writers.
  await to.sql('delete.db', 'INSERT INTO t VALUES (3)');
  await cluster.assertSame('delete.db');
});
