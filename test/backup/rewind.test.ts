import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { runCli, type CliRun } from '../cli/run-cli.js';
import { sqlite, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';

/** `kitefs rewind`: a moment of the backups becomes one more transaction of the running cluster. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-rewind-'));
let cluster: TestCluster;

beforeAll(async () => {
  const backups = [{ type: 'file', path: join(dir, 'bucket'), 'sync-interval': '20ms' }];
  cluster = await TestCluster.start({ nodes: 2, config: { backups } });
});

afterAll(async () => {
  await cluster.stop();
  rmSync(dir, { recursive: true, force: true });
});

const rewind = async (node: TestNode, ...words: string[]): Promise<CliRun> =>
  await runCli(['rewind', '-url', `http://127.0.0.1:${node.httpPort}`, ...words]);

const txidOf = async (node: TestNode, name: string): Promise<string> => {
  // Also what capture has not told yet.
  const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=20000`, { method: 'POST' });
  expect(answer.status).toBe(200);
  return (await node.database(name))!.position.slice(0, 16);
};

const SUM = 'SELECT count(*), sum(a), sum(length(b)) FROM t';

it.each(['wal', 'delete'])(
  'puts a database in journal_mode=%s back, for open connections and replicas too',
  async (mode) => {
    const [primary, replica] = [cluster.node(1), cluster.node(2)];
    const name = `${mode}.db`;
    await primary.sql(
      name,
      `PRAGMA journal_mode=${mode}`,
      'CREATE TABLE t (a INTEGER PRIMARY KEY, b)',
      'INSERT INTO t SELECT value, randomblob(1000) FROM generate_series(1, 300)',
    );
    const then = await txidOf(primary, name);
    const sum = await primary.sql(name, SUM);
    const pages = Number(await primary.sql(name, 'PRAGMA page_count'));
    // A connection that stays open, with its schema and pages in memory.
    const shell = spawn('sqlite3', ['-cmd', '.timeout 20000', primary.path(name)], { stdio: 'pipe' });
    let said = '';
    shell.stdout.on('data', (text: Buffer) => (said += text.toString()));
    shell.stdin.write('SELECT count(*) FROM t;\n');
    await waitFor('the shell', () => said.includes('300\n'));
    // Shrinks, grows elsewhere and has another schema.
    await primary.sql(
      name,
      'UPDATE t SET b = randomblob(1000) WHERE a % 50 = 0',
      'ALTER TABLE t ADD COLUMN c DEFAULT 7',
      'DELETE FROM t WHERE a > 250',
      'VACUUM',
      'CREATE TABLE later (x)',
    );
    const undone = BigInt(`0x${await txidOf(primary, name)}`) - BigInt(`0x${then}`);
    const dry = await rewind(primary, '-dry-run', '-cluster-txid', then, name);
    expect(dry.code, dry.stderr).toBe(0);
    expect(dry.stdout).toContain(`${undone} transactions of ${name}`);
    expect(dry.stdout).toContain('nothing was changed');
    const done = await rewind(primary, '-yes', '-cluster-txid', then, name);
    expect(done.code, done.stderr).toBe(0);
    expect(await primary.sql(name, SUM)).toBe(sum);
    // One transaction more, and nothing of the database but the pages that differ.
    expect(BigInt(`0x${await txidOf(primary, name)}`)).toBe(BigInt(`0x${then}`) + undone + 1n);
    if (mode === 'wal') expect(Number(/(\d+) of \d+ pages/.exec(done.stdout)?.[1])).toBeLessThan(pages);
    said = '';
    shell.stdin.end(
      'SELECT sum(a) FROM t; SELECT count(*) FROM pragma_table_info($$t$$);\n'.replaceAll('$$', "'"),
    );
    await waitFor('the shell', () => said.split('\n').length > 2);
    expect(said).toBe('45150\n2\n');
    // A schema made after this one must not be taken for the one that was undone.
    await primary.sql(name, 'CREATE TABLE other (y)', 'INSERT INTO other VALUES (1)');
    await cluster.assertSame(name);
    expect(await replica.sql(name, 'SELECT count(*) FROM t')).toBe('300');
    // And the bucket goes on.
    const last = await txidOf(primary, name);
    const path = join(dir, `${mode}-restored.db`);
    const words = ['-cluster-txid', last, '-config', primary.configPath, '-o', path, name];
    const restored = await runCli(['restore', ...words]);
    expect(restored.code, restored.stderr).toBe(0);
    expect(await sqlite(path, `${SUM}; SELECT y FROM other; PRAGMA integrity_check`)).toBe(`${sum}\n1\nok`);
  },
);

it('asks before it does anything, says who the primary is, and knows a page size of before', async () => {
  const [primary, replica] = [cluster.node(1), cluster.node(2)];
  await primary.sql('size.db', 'CREATE TABLE t (a INTEGER PRIMARY KEY, b)', 'INSERT INTO t VALUES (1, 2)');
  const then = await txidOf(primary, 'size.db');
  const silent = await rewind(primary, '-cluster-txid', then, 'size.db');
  expect(silent.code).toBe(2);
  expect(silent.stderr).toContain('-yes');
  const elsewhere = await rewind(replica, '-yes', '-cluster-txid', then, 'size.db');
  expect(elsewhere.code).toBe(1);
  expect(elsewhere.stderr).toContain(`the primary is ${primary.id}`);
  expect((await rewind(primary, '-yes', '-timestamp', '90d ago', 'size.db')).stderr).toContain(
    'ERR_RESTORE_MOMENT',
  );
  await primary.sql('size.db', 'PRAGMA page_size=8192', 'VACUUM', 'PRAGMA journal_mode=wal', 'DELETE FROM t');
  const done = await rewind(primary, '-yes', '-cluster-txid', then, 'size.db');
  expect(done.code, done.stderr).toBe(0);
  expect(done.stdout).toContain('the page size is another');
  expect(await primary.sql('size.db', 'SELECT a, b FROM t; PRAGMA page_size')).toBe('1|2\n4096');
  await cluster.assertSame('size.db');
});
