import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type CliRun, runCli } from '../cli/run-cli.js';
import { Litestream, litestreamRestore } from '../helpers/litestream.js';
import { TestMinio } from '../helpers/minio.js';

/** `kitefs restore` from an object store that the real Litestream has filled. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-restore-s3-'));
let minio: TestMinio;

beforeAll(async () => {
  minio = await TestMinio.start(['backups']);
  const path = join(dir, 'app.db');
  const db = new Database(path);
  db.exec('PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, filler BLOB)');
  const replica = { type: 's3', bucket: 'backups', path: 'some/app', endpoint: minio.endpoint };
  const litestream = new Litestream(dir, path, { ...replica, 'force-path-style': true }, { env: minio.env });
  const insert = db.prepare('INSERT INTO t (filler) VALUES (randomblob(20000))');
  db.transaction(() => {
    // Some parts of an object, so that they are put together again.
    for (let row = 0; row < 500; row += 1) insert.run();
  })();
  const stored = join(minio.dir, 'data/backups/some/app/0000');
  for (let round = 0; round < 3; round += 1) {
    await new Promise((resolve) => setTimeout(resolve, 300));
    insert.run();
  }
  db.close();
  await litestream.stop();
  expect(existsSync(stored), litestream.log).toBe(true);
});

afterAll(async () => {
  await minio.stop();
  rmSync(dir, { recursive: true, force: true });
});

const urlOf = (bucket: string, path = 'some/app'): string =>
  `s3://${bucket}/${path}?endpoint=${encodeURIComponent(minio.endpoint)}&region=us-east-1`;

async function restored(url: string, env: NodeJS.ProcessEnv = {}): Promise<{ path: string; run: CliRun }> {
  const path = join(dir, `restored-${Math.random()}.db`);
  return { path, run: await runCli(['restore', '-o', path, url], { env: { ...minio.env, ...env } }) };
}

it('restores the same bytes as Litestream', async () => {
  const { path, run } = await restored(urlOf('backups'));
  expect(run.code, run.stderr).toBe(0);
  const theirs = join(dir, 'theirs.db');
  await litestreamRestore(urlOf('backups'), theirs, [], minio.env);
  expect(readFileSync(path).equals(readFileSync(theirs))).toBe(true);
});

it('says of wrong credentials, a missing bucket and a silent endpoint what each is, and no secret', async () => {
  const secret = 'a-wrong-secret-that-nobody-may-see';
  const denied = await restored(urlOf('backups'), { AWS_SECRET_ACCESS_KEY: secret });
  const missing = await restored(urlOf('nobody'));
  const empty = await restored(urlOf('backups', 'some'));
  expect(denied.run.stderr).toContain('[ERR_BACKUP_DENIED]');
  expect(denied.run.stderr).not.toContain(secret);
  expect(missing.run.stderr).toContain('[ERR_BACKUP_NO_BUCKET]');
  expect(empty.run.stderr).toContain('below it are app');
  await minio.kill();
  const silent = await restored(urlOf('backups'));
  expect(silent.run.stderr).toContain('[ERR_BACKUP_UNREACHABLE]');
  for (const { run, path } of [denied, missing, empty, silent]) {
    expect(run.code).toBe(1);
    expect(existsSync(path)).toBe(false);
    expect(existsSync(`${path}.kitefs-restore`)).toBe(false);
    expect(existsSync(`${path}.kitefs-restore-state`)).toBe(false);
  }
});
