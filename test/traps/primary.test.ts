import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { TestCluster, type TestNode, run, sqlite, waitFor } from '../helpers/cluster.js';
import { Connection } from './scene.js';

/** What a primary must notice of what applications do to its files; traps 9, 18, 20, 24 and 26. */
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

const txid = async (name: string): Promise<number> => {
  const { position } = (await primary.database(name)) ?? {};
  return Number.parseInt(position?.split('/')[0] ?? '0', 16);
};

describe('a rollback journal (trap 9)', () => {
  it('replicates pages by which the database grew though SQLite never wrote them', async () => {
    const name = 'grown.db';
    // better-sqlite3: Debian's shell has secure_delete on, which writes those pages.
    const open = await Connection.open(primary.path(name), 'PRAGMA journal_mode=delete');
    expect(await open.run('PRAGMA secure_delete')).toBe('0');
    // SQLite does not write pages that are freed in the transaction that adds them.
    const growAndFree = [
      'CREATE TABLE a(x)',
      'CREATE TABLE b(x)',
      'INSERT INTO a VALUES (randomblob(400000))',
      'INSERT INTO b VALUES (1)',
      'DELETE FROM a', // not DROP TABLE: inside a statement's own savepoint SQLite writes them
    ];
    for (const sql of ['BEGIN', ...growAndFree, 'COMMIT']) await open.run(sql);
    await cluster.assertSame(name);
    const again = growAndFree
      .map((sql) => sql.replace('400000', '900000'))
      .filter((sql) => !sql.startsWith('CREATE'));
    for (const sql of ['BEGIN', ...again, 'COMMIT']) await open.run(sql);
    await cluster.assertSame(name);
    await open.close();
  });

  it.each(['delete', 'truncate', 'persist'])(
    'gives each commit of a fast %s writer its own TXID',
    async (mode) => {
      const name = `each-${mode}.db`;
      await primary.sql(name, `PRAGMA journal_mode=${mode}`, 'CREATE TABLE t(n)', 'INSERT INTO t VALUES (0)');
      const before = await txid(name);
      // No sync: the next transaction writes over the same pages at once.
      const updates = Array.from({ length: 60 }, (_, i) => `UPDATE t SET n = ${i + 1}`);
      await primary.sql(name, `PRAGMA journal_mode=${mode}`, 'PRAGMA synchronous=OFF', ...updates);
      expect(await txid(name)).toBe(before + 60);
      await cluster.assertSame(name);
    },
  );
});

describe('a WAL (trap 20)', () => {
  it.each([512, 4096, 65_536])(
    'is captured with pages of %i bytes that are written again before they commit',
    async (pageSize) => {
      const name = `spilled-${pageSize}.db`;
      const open = await Connection.open(
        primary.path(name),
        `PRAGMA page_size=${pageSize}`,
        'PRAGMA journal_mode=wal',
        'PRAGMA cache_size=5',
        'PRAGMA cache_spill=5',
        'CREATE TABLE t(id INTEGER PRIMARY KEY, x)',
        `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)
         INSERT INTO t SELECT i, randomblob(${pageSize}) FROM n`,
      );
      // Each page goes to the WAL several times: SQLite overwrites frames of its own and mends checksums last.
      await open.run('BEGIN');
      for (let i = 0; i < 3; i += 1) await open.run(`UPDATE t SET x = randomblob(${pageSize})`);
      await open.run('COMMIT');
      await cluster.assertSame(name);
      await open.close();
    },
  );
});

it('switches journal modes and locks exclusively beside a replica (trap 18)', async () => {
  const name = 'switches.db';
  const open = await Connection.open(primary.path(name), 'PRAGMA journal_mode=wal', 'CREATE TABLE t(x)');
  await cluster.caughtUp(name);
  for (const mode of ['delete', 'wal', 'truncate', 'wal', 'persist']) {
    expect(await open.run(`PRAGMA journal_mode=${mode}`)).toBe(mode);
    await open.run('INSERT INTO t VALUES (1)');
  }
  await open.run('PRAGMA locking_mode=EXCLUSIVE');
  for (const mode of ['wal', 'delete']) {
    expect(await open.run(`PRAGMA journal_mode=${mode}`)).toBe(mode);
    await open.run('INSERT INTO t VALUES (2)');
  }
  await open.close();
  await cluster.assertSame(name);
});

describe('a file that becomes a database (trap 24)', () => {
  const rows = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
    INSERT INTO t SELECT randomblob(1000) FROM n`;

  it('is replicated once its copy is whole, never half, and nobody opens the half', async () => {
    const source = join(cluster.dir, 'source.db');
    await sqlite(source, 'CREATE TABLE t(x)', rows);
    // One process, one descriptor, two halves.
    const copy = spawn('sh', [
      '-c',
      `exec >"$1"; head -c 40960 "$2"; read go; tail -c +40961 "$2"`,
      'sh',
      primary.path('copied.db'),
      source,
    ]);
    const copied = once(copy, 'close');
    await waitFor('the first half', () => {
      const path = join(primary.dataDir, 'dbs', 'copied.db', 'database');
      return existsSync(path);
    });
    const reader = primary.sql('copied.db', 'SELECT count(*) FROM t');
    let early = false;
    void reader.then(
      () => (early = true),
      () => (early = true),
    );
    await primary.sql('other.db', 'CREATE TABLE t(x)');
    expect(await txid('copied.db')).toBe(0);
    expect(early).toBe(false);
    copy.stdin.end('go\n');
    await copied;
    expect(await reader).toBe('200');
    expect(await txid('copied.db')).toBe(1);
    await cluster.assertSame('copied.db');
  });

  it('is in the log when cp returns, and cp over a database in use is refused', async () => {
    const source = join(cluster.dir, 'source.db');
    await run('cp', [source, primary.path('cp.db')]);
    expect(await txid('cp.db')).toBe(1);
    await expect(run('cp', [source, primary.path('cp.db')])).rejects.toThrow(/busy/i);
    await primary.sql('cp.db', 'DELETE FROM t WHERE rowid > 10');
    await cluster.assertSame('cp.db');
    expect(await replica.sql('cp.db', 'SELECT count(*) FROM t')).toBe('10');
  });

  it('may be made without a journal, and is not written without one later', async () => {
    const open = await Connection.open(
      primary.path('memory.db'),
      'PRAGMA journal_mode=memory',
      'BEGIN', // what is at rest for a second is adopted, and not written without a journal any more
      'CREATE TABLE t(x)',
      rows,
      'COMMIT',
    );
    await waitFor('its adoption', async () => (await txid('memory.db')) > 0);
    await cluster.assertSame('memory.db');
    await expect(open.run('INSERT INTO t VALUES (1)')).rejects.toThrow('SQLITE_IOERR');
    await open.close();
    await cluster.assertSame('memory.db');
    expect(primary.log()).toContain('journal_mode');
  });
});

it('gives a new -wal a new inode, and keeps -shm out of the data directory (traps 17 and 26)', async () => {
  const name = 'inodes.db';
  const inodes = new Set<string>();
  for (let i = 0; i < 3; i += 1) {
    const open = await Connection.open(
      primary.path(name),
      'PRAGMA journal_mode=wal',
      `CREATE TABLE t${i}(x)`,
    );
    inodes.add(await run('stat', ['-c', '%i', primary.path(`${name}-wal`)]));
    expect(readdirSync(join(primary.dataDir, 'dbs', name))).not.toContain('database-shm');
    await open.close();
  }
  expect(inodes.size).toBe(3);
});
