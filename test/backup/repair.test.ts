import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { sqlite, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { flip } from '../helpers/flip.js';

/** `kitefs repair`: the runbook docs/runbooks/damaged-database.md. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-repair-'));
let cluster: TestCluster | undefined;

afterEach(async () => {
  await cluster?.stop();
  cluster = undefined;
});
afterAll(() => {
  rmSync(dir, { recursive: true, force: true });
});

const SUM = 'SELECT count(*), sum(a), sum(length(b)) FROM t';

/** A database that is all in its file; returns what `SUM` says of it. */
async function make(node: TestNode): Promise<string> {
  await node.sql(
    'app.db',
    'PRAGMA journal_mode=wal',
    'CREATE TABLE t (a INTEGER PRIMARY KEY, b)',
    'INSERT INTO t SELECT value, randomblob(1000) FROM generate_series(1, 100)',
    'PRAGMA wal_checkpoint(TRUNCATE)',
  );
  return await node.sql('app.db', SUM);
}

it('makes a damaged database anew from its backup, by the command that its error names', async () => {
  const backups = [{ type: 'file', path: join(dir, 'bucket'), 'sync-interval': '20ms' }];
  cluster = await TestCluster.start({ nodes: 1, config: { backups } });
  const node = cluster.node(1);
  const sum = await make(node);
  const url = `http://127.0.0.1:${node.httpPort}`;
  const sound = await runCli(['repair', '-url', url, 'app.db']);
  expect(sound.stderr).toContain('ERR_REPAIR_SOUND');
  await node.kill();
  await node.clear();
  flip(join(node.dataDir, 'dbs/app.db/database'), 3 * 4096 + 500);
  await node.start();
  let error = '';
  await waitFor('the error', async () => (error = (await node.database('app.db'))?.error ?? '') !== '');
  expect(error).toContain('kitefs repair');
  const ran = await runCli(['repair', '-url', url, 'app.db']);
  expect(ran.code, ran.stderr).toBe(0);
  expect(await node.sql('app.db', SUM)).toBe(sum);
  expect(await node.database('app.db')).not.toHaveProperty('error');
  // What was there is kept.
  const kept = join(node.dataDir, 'lost+found/app.db');
  expect(readdirSync(join(kept, readdirSync(kept)[0]!))).toContain('database');
  await node.sql('app.db', 'INSERT INTO t VALUES (101, 1)', 'PRAGMA integrity_check');
  expect((await runCli(['sync', '-url', url, '-wait'])).code).toBe(0);
  const path = join(dir, 'restored.db');
  const restored = await runCli(['restore', '-config', node.configPath, '-o', path, 'app.db']);
  expect(restored.code, restored.stderr).toBe(0);
  expect(await sqlite(path, 'SELECT max(a) FROM t')).toBe('101');
});

it('makes it anew from a replica, which becomes the primary, when there is one; without backups', async () => {
  cluster = await TestCluster.start({ nodes: 2, ttl: '2s' });
  const [node, replica] = [cluster.node(1), cluster.node(2)];
  const sum = await make(node);
  await cluster.caughtUp('app.db');
  const url = `http://127.0.0.1:${node.httpPort}`;
  const urlOfReplica = `http://127.0.0.1:${replica.httpPort}`;
  expect((await runCli(['repair', '-url', urlOfReplica, 'app.db'])).stderr).toMatch(/NOT_PRIMARY|SOUND/);
  await replica.stop();
  await node.kill();
  await node.clear();
  const path = join(node.dataDir, 'dbs/app.db/database');
  flip(path, 3 * 4096 + 500);
  await node.start();
  await waitFor('the error', async () => (await node.database('app.db'))?.error !== undefined);
  // Nobody has it: the error says what was looked for, and nothing has changed.
  const alone = await runCli(['repair', '-url', url, 'app.db']);
  expect(alone.stderr).toContain('no replica');
  await replica.start();
  await cluster.caughtUp('app.db');
  const ran = await runCli(['repair', '-url', url, 'app.db']);
  expect(ran.code, ran.stderr).toBe(0);
  expect(ran.stdout).toContain(`${replica.id} is the primary now`);
  expect(await node.database('app.db')).not.toHaveProperty('error');
  expect(await node.sql('app.db', SUM)).toBe(sum);
  await replica.sql('app.db', 'INSERT INTO t VALUES (101, 1)');
  await cluster.assertSame('app.db');
});
