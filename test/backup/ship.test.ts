import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { sqlite, TestCluster, type TestNode } from '../helpers/cluster.js';
import { litestreamRestore } from '../helpers/litestream.js';
import { TestMinio } from '../helpers/minio.js';

/** What the primary ships, restored by the real Litestream. */

let dir: string;
let minio: TestMinio;
let cluster: TestCluster | undefined;
let restores = 0;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-ship-'));
  minio = await TestMinio.start(['backups']);
});

afterEach(async () => {
  await cluster?.stop();
  cluster = undefined;
});

afterAll(async () => {
  await minio.stop();
  rmSync(dir, { recursive: true, force: true });
});

/** Everything happens within seconds. */
const QUICK = {
  'sync-interval': '50ms',
  levels: [{ interval: '500ms' }, { interval: '1500ms' }],
  'l0-retention': '500ms',
  snapshot: { interval: '2s', retention: '4s' },
};

const s3 = (path: string): Record<string, unknown> => ({
  type: 's3',
  bucket: 'backups',
  path,
  endpoint: minio.endpoint,
  'access-key-id': minio.env.AWS_ACCESS_KEY_ID,
  'secret-access-key': minio.env.AWS_SECRET_ACCESS_KEY,
  ...QUICK,
});

const urlOf = (path: string, database = 'app.db'): string =>
  `s3://backups/${path}/${database}?endpoint=${encodeURIComponent(minio.endpoint)}&region=us-east-1`;

/** `SELECT` of everything, from what Litestream restores. */
async function restored(url: string, query: string, flags: readonly string[] = []): Promise<string> {
  restores += 1;
  const path = join(dir, `restored-${restores}.db`);
  await litestreamRestore(url, path, flags, minio.env);
  expect(await sqlite(path, 'PRAGMA integrity_check')).toBe('ok');
  return await sqlite(path, query);
}

const sync = async (node: TestNode, waitMs = 20_000): Promise<void> => {
  const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=${waitMs}`, { method: 'POST' });
  if (!answer.ok) throw new Error(await answer.text());
};

const SUM = 'SELECT count(*), sum(length(b)), max(id) FROM t';

async function fill(node: TestNode, rows: number, name = 'app.db'): Promise<void> {
  const insert = 'INSERT INTO t(b) VALUES (randomblob(400))';
  await node.sql(
    name,
    'CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, b)',
    ...Array.from({ length: rows }, () => insert),
  );
}

describe('shipping', () => {
  it('keeps S3 and a folder up to date, with every level, so that Litestream restores both', async () => {
    const folder = join(dir, 'folder');
    cluster = await TestCluster.start({
      nodes: 1,
      config: { backups: [s3('first'), { type: 'file', path: folder, ...QUICK }] },
    });
    const node = cluster.node(1);
    await node.sql('app.db', 'PRAGMA journal_mode=wal');
    for (let round = 0; round < 8; round += 1) {
      await fill(node, 20);
      await sync(node);
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
    await node.sql('app.db', 'DELETE FROM t WHERE id % 2', 'VACUUM');
    await sync(node);
    const expected = await node.sql('app.db', SUM);
    expect(await restored(urlOf('first'), SUM)).toBe(expected);
    expect(await restored(`file://${folder}/app.db`, SUM)).toBe(expected);
    const { backups } = await node.status();
    expect(backups.map(({ error, databases }) => [error, databases[0]?.lagMs])).toEqual([
      [undefined, 0],
      [undefined, 0],
    ]);
    for (const level of ['1', '2', '9'])
      expect(readdirSync(join(folder, 'app.db/ltx', level)).length, level).toBeGreaterThan(0);
    expect(JSON.stringify(await node.status()) + node.log()).not.toContain(minio.env.AWS_SECRET_ACCESS_KEY);
  });
});
