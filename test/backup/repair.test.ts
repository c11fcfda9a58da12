import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { sqlite, TestCluster, waitFor } from '../helpers/cluster.js';
import { flip } from '../helpers/flip.js';

/** `kitefs repair`: the runbook docs/runbooks/damaged-database.md, on a primary without a replica. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-repair-'));
let cluster: TestCluster;

afterAll(async () => {
  await cluster.stop();
  rmSync(dir, { recursive: true, force: true });
});

it('makes a damaged database anew from its backup, by the command that its error names', async () => {
  const backups = [{ type: 'file', path: join(dir, 'bucket'), 'sync-interval': '20ms' }];
  cluster = await TestCluster.start({ nodes: 1, config: { backups } });
  const node = cluster.node(1);
  const SUM = 'SELECT count(*), sum(a), sum(length(b)) FROM t';
  await node.sql(
    'app.db',
    'PRAGMA journal_mode=wal',
    'CREATE TABLE t (a INTEGER PRIMARY KEY, b)',
    'INSERT INTO t SELECT value, randomblob(1000) FROM generate_series(1, 100)',
    'PRAGMA wal_checkpoint(TRUNCATE)',
  );
  const sum = await node.sql('app.db', SUM);
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
