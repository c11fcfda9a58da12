import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { TestAzure, TestGcs } from '../helpers/cloud.js';
import { sqlite, TestCluster } from '../helpers/cluster.js';
import { litestreamRestore } from '../helpers/litestream.js';
import { TestSshd } from '../helpers/sshd.js';

/** A real node that ships to what is not S3, restored by `kitefs restore` and by the real Litestream. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-elsewhere-'));
let gcs: TestGcs;
let azure: TestAzure;
let sshd: TestSshd;
let cluster: TestCluster | undefined;

beforeAll(async () => {
  [gcs, azure, sshd] = await Promise.all([
    TestGcs.start('backups'),
    TestAzure.start('backups'),
    TestSshd.start(),
  ]);
});
afterEach(async () => {
  await cluster?.stop();
  cluster = undefined;
});
afterAll(() => {
  for (const server of [gcs, azure, sshd]) server.stop();
  rmSync(dir, { recursive: true, force: true });
});

const QUICK = {
  'sync-interval': '50ms',
  levels: [{ interval: '500ms' }],
  'l0-retention': '500ms',
  snapshot: { interval: '2s', retention: '4s' },
};

const SUM = 'SELECT count(*), sum(length(b)), max(id) FROM t';

it('keeps all of them up to date, through snapshots and retention, and both programs restore each', async () => {
  const backups = [
    { type: 'gs', bucket: 'backups', path: 'p' },
    {
      type: 'abs',
      bucket: 'backups',
      path: 'p',
      endpoint: azure.accountEndpoint,
      'account-name': azure.account,
      'account-key': azure.key,
    },
    {
      type: 'sftp',
      host: sshd.host,
      user: sshd.user,
      path: 'p',
      'key-path': sshd.keyPath,
      'host-key': sshd.hostKey,
    },
  ];
  cluster = await TestCluster.start({
    nodes: 1,
    env: gcs.env,
    config: { backups: backups.map((entry) => ({ ...entry, ...QUICK })) },
  });
  const node = cluster.node(1);
  await node.sql('app.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(id INTEGER PRIMARY KEY, b)');
  for (let round = 0; round < 4; round += 1) {
    await node.sql(
      'app.db',
      ...Array.from({ length: 10 }, () => 'INSERT INTO t(b) VALUES (randomblob(400))'),
    );
    const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=20000`, { method: 'POST' });
    expect(answer.ok, answer.ok ? '' : await answer.text()).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
  const expected = await node.sql('app.db', SUM);
  expect((await node.status()).backups.map(({ error }) => error)).toEqual([undefined, undefined, undefined]);
  const seen = JSON.stringify(await node.status()) + node.log();
  await cluster.stop();
  for (const secret of [azure.key, readFileSync(sshd.keyPath, 'utf8').split('\n')[2]!])
    expect(seen).not.toContain(secret);

  const config = join(dir, 'kitefs.yml');
  for (const [i, backup] of backups.entries()) {
    writeFileSync(config, JSON.stringify({ fuse: { dir: '/nowhere' }, data: { dir }, backups: [backup] }));
    const ours = join(dir, `ours-${i}.db`);
    const flags = ['-config', config, '-integrity-check', 'full'];
    const restored = await runCli(['restore', ...flags, '-o', ours, 'app.db'], { env: gcs.env });
    expect(restored.code, restored.stderr).toBe(0);
    expect(await sqlite(ours, SUM), backup.type).toBe(expected);
    const listed = await runCli(['backups', '-config', config, '-json'], { env: gcs.env });
    expect(listed.code, listed.stderr).toBe(0);
    expect(listed.stdout + listed.stderr).not.toContain(azure.key);
    const drill = await runCli(['drill', '-config', config, 'app.db'], { env: gcs.env });
    expect(drill.code, drill.stderr + drill.stdout).toBe(0);

    const theirs = join(dir, `theirs-${i}.db`);
    const path = `${backup.path}/app.db`;
    const theirConfig = join(dir, `litestream-${i}.yml`);
    const { path: _path, ...replica } = backup;
    writeFileSync(
      theirConfig,
      JSON.stringify({ dbs: [{ path: '/the/app.db', replica: { ...replica, path } }] }),
    );
    await litestreamRestore('/the/app.db', theirs, ['-config', theirConfig], gcs.env);
    expect(await sqlite(theirs, SUM), backup.type).toBe(expected);
  }

  // By URL, where no configuration is at hand.
  const url = `abs://${azure.account}@backups/p/app.db?endpoint=${encodeURIComponent(azure.accountEndpoint)}`;
  const byUrl = await runCli(['restore', '-o', join(dir, 'url.db'), url], {
    env: { AZURE_STORAGE_KEY: azure.key },
  });
  expect(byUrl.code, byUrl.stderr).toBe(0);
  const sftp = `sftp://${sshd.user}@${sshd.host}/~/p/app.db?key-path=${sshd.keyPath}`;
  const unknown = await runCli(['restore', '-o', join(dir, 'unknown.db'), sftp]);
  expect(unknown.stderr).toContain('[ERR_BACKUP_HOST_KEY]');
  expect(unknown.stderr, 'what can be put into host-key').toContain(sshd.hostKey);
  const known = await runCli([
    'restore',
    '-o',
    join(dir, 'known.db'),
    `${sftp}&host-key=${encodeURIComponent(sshd.hostKey)}`,
  ]);
  expect(known.code, known.stderr).toBe(0);
});
