import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { sqlite, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';

/** `durability.backup`: a COMMIT that has returned is in the bucket. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-waits-'));
let cluster: TestCluster | undefined;

afterEach(async () => {
  await cluster?.stop();
  cluster = undefined;
});

afterAll(() => rmSync(dir, { recursive: true, force: true }));

// What does not wait would be shipped after an hour.
const config = (name: string): Record<string, Record<string, unknown> | unknown[]> => ({
  backups: [{ type: 'file', path: join(dir, name), 'sync-interval': '1h' }],
  durability: { backup: true },
});

/** A shell that commits one row after the other and says so, until it is killed or its database fails. */
function writer(node: TestNode, name: string): { said: () => number[]; end: () => void } {
  const statements = Array.from({ length: 5000 }, (_, i) => `INSERT INTO t VALUES (${i + 1}) RETURNING a;\n`);
  const shell = spawn('sqlite3', ['-bail', '-cmd', '.timeout 20000', node.path(name)], { stdio: 'pipe' });
  let text = '';
  shell.stdout.on('data', (bytes: Buffer) => (text += bytes.toString()));
  shell.stdin.on('error', () => undefined);
  // A row that is returned is not committed yet: the next statement shows that it is.
  shell.stdin.end(statements.join('SELECT 0;\n'));
  return {
    said: () =>
      text
        .split('\n0\n')
        .slice(0, -1)
        .map((part) => Number(part.trim())),
    end: () => shell.kill('SIGKILL'),
  };
}

it.each(['wal', 'delete'])(
  'has every acknowledged row in the bucket after kill -9, in journal_mode=%s',
  async (mode) => {
    cluster = await TestCluster.start({ nodes: 1, config: config(mode) });
    const node = cluster.node(1);
    await node.sql('app.db', `PRAGMA journal_mode=${mode}`, 'CREATE TABLE t (a INTEGER PRIMARY KEY)');
    const shell = writer(node, 'app.db');
    await waitFor('some commits', () => shell.said().length > 20);
    await node.kill();
    const said = shell.said();
    shell.end();
    const path = join(dir, `${mode}.db`);
    const ran = await runCli(['restore', '-config', node.configPath, '-o', path, 'app.db']);
    expect(ran.code, ran.stderr).toBe(0);
    const there = new Set((await sqlite(path, 'SELECT a FROM t')).split('\n').map(Number));
    expect(said.filter((row) => !there.has(row))).toEqual([]);
    await node.clear();
  },
);

it('gives a node that lacks an acknowledged row what the bucket has, before it opens', async () => {
  cluster = await TestCluster.start({ nodes: 2, ttl: '1s', config: config('takeover') });
  const [first, second] = [cluster.node(1), cluster.node(2)];
  await first.sql('app.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t (a INTEGER PRIMARY KEY)');
  await cluster.caughtUp('app.db');
  await second.stop();
  await first.sql('app.db', 'INSERT INTO t VALUES (1)', 'INSERT INTO t VALUES (2)');
  await first.kill();
  await first.clear();
  rmSync(first.dataDir, { recursive: true });
  await second.start();
  await waitFor('the second to be primary', async () => (await second.status()).role === 'primary');
  expect(await second.sql('app.db', 'SELECT group_concat(a) FROM t')).toBe('1,2');
  await second.sql('app.db', 'INSERT INTO t VALUES (3)');
  const path = join(dir, 'takeover.db');
  const ran = await runCli(['restore', '-config', second.configPath, '-o', path, 'app.db']);
  expect(ran.code, ran.stderr).toBe(0);
  expect(await sqlite(path, 'SELECT group_concat(a) FROM t')).toBe('1,2,3');
});
