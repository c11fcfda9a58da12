import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { run, sqlite, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { Litestream, litestreamRestore } from '../helpers/litestream.js';
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
    for (let round = 0; round < 6; round += 1) {
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

  it('goes on where it was after its process and the destination were killed under load', async () => {
    cluster = await TestCluster.start({ nodes: 1, config: { backups: [s3('killed')] } });
    const node = cluster.node(1);
    await node.sql('app.db', 'PRAGMA journal_mode=wal');
    await fill(node, 1);
    await sync(node);
    const load = (async () => {
      for (let round = 0; round < 8; round += 1) await fill(node, 40);
    })();
    for (let kills = 0; kills < 4; kills += 1) {
      await new Promise((resolve) => setTimeout(resolve, 150 * kills));
      process.kill(await backupPid(node), 'SIGKILL');
      if (kills === 1) await minio.kill();
    }
    // Nobody who writes has noticed.
    await load;
    const [behind] = (await node.status()).backups;
    expect(behind?.error ?? behind?.databases[0]?.error ?? behind?.databases[0]?.lagMs).not.toBe(0);
    await expect(sync(node, 300)).rejects.toThrow('ERR_BACKUP_BEHIND');
    await minio.up();
    await sync(node);
    expect(await restored(urlOf('killed'), SUM)).toBe(await node.sql('app.db', SUM));
    expect(node.log(), 'no set of all pages was needed').not.toContain('backup-resync');
  });

  it('keeps a dropped database until it is made again, and crosses another page size', async () => {
    cluster = await TestCluster.start({ nodes: 1, config: { backups: [s3('dropped')] } });
    const node = cluster.node(1);
    await fill(node, 30);
    await sync(node);
    const before = await node.sql('app.db', SUM);
    await run('rm', [node.path('app.db')]);
    await sync(node);
    expect(await restored(urlOf('dropped'), SUM)).toBe(before);
    await fill(node, 3);
    await sync(node);
    expect(await restored(urlOf('dropped'), SUM)).toBe(await node.sql('app.db', SUM));
    await node.sql('app.db', 'PRAGMA page_size=8192', 'VACUUM', 'PRAGMA journal_mode=wal');
    await fill(node, 3);
    await sync(node);
    expect(await restored(urlOf('dropped'), `${SUM}; PRAGMA page_size`)).toBe(
      await node.sql('app.db', `${SUM}; PRAGMA page_size`),
    );
  });

  it('says what is wrong with one destination, without a secret, while another goes on', async () => {
    const secret = 'a-wrong-secret-that-nobody-may-see';
    const folder = { type: 'file', path: join(dir, 'beside'), ...QUICK };
    cluster = await TestCluster.start({
      nodes: 1,
      config: {
        backups: [
          { ...s3('x'), bucket: 'nowhere' },
          { ...s3('x'), 'secret-access-key': secret },
          { ...s3('x'), endpoint: 'http://127.0.0.1:1' },
          folder,
        ],
      },
    });
    const node = cluster.node(1);
    await fill(node, 3);
    let backups = (await node.status()).backups;
    await waitFor('the folder to have it, and errors of the others', async () => {
      ({ backups } = await node.status());
      const last = backups[3]?.databases[0];
      return (
        last?.txid !== '0'.repeat(16) &&
        last?.lagMs === 0 &&
        backups.filter(({ error }) => error).length === 3
      );
    });
    expect(backups[0]?.error).toContain('NoSuchBucket');
    expect(backups[1]?.error).toContain('SignatureDoesNotMatch');
    expect(backups[2]?.error).toContain('ECONNREFUSED');
    expect(await restored(`file://${folder.path}/app.db`, SUM)).toBe(await node.sql('app.db', SUM));
    expect(JSON.stringify(await node.status()) + node.log()).not.toContain(secret);
    // Its end would wait for these destinations.
    await node.kill();
  });

  it('goes on in a bucket that Litestream has filled', async () => {
    const path = join(dir, 'theirs.db');
    await sqlite(
      path,
      'PRAGMA journal_mode=wal',
      'CREATE TABLE t(id INTEGER PRIMARY KEY, b)',
      'INSERT INTO t(b) VALUES (1), (2)',
    );
    const { 'access-key-id': _id, 'secret-access-key': _secret, ...replica } = s3('taken');
    const litestream = new Litestream(
      dir,
      path,
      {
        type: 's3',
        bucket: 'backups',
        path: 'taken/app.db',
        endpoint: replica['endpoint'],
        'force-path-style': true,
      },
      { env: minio.env },
    );
    await waitFor('Litestream to ship', () => existsSync(join(minio.dir, 'data/backups/taken/app.db/0000')));
    await litestream.stop();
    const theirs = await restored(urlOf('taken'), SUM);
    cluster = await TestCluster.start({ nodes: 1, config: { backups: [s3('taken')] } });
    const node = cluster.node(1);
    await node.sql('app.db', `.restore ${path}`);
    await fill(node, 3);
    await sync(node);
    const ours = await node.sql('app.db', SUM);
    expect(ours).not.toBe(theirs);
    expect(await restored(urlOf('taken'), SUM)).toBe(ours);
    expect(node.log()).toContain('of Litestream');
  });

  it('passes to the next primary, and a fenced one adds nothing', async () => {
    cluster = await TestCluster.start({ nodes: 2, ttl: '1s', config: { backups: [s3('failover')] } });
    const [old, next] = [cluster.node(1), cluster.node(2)];
    await old.sql('app.db', 'PRAGMA journal_mode=wal');
    await fill(old, 20);
    await sync(old);
    await cluster.caughtUp('app.db');
    // The daemon stands still; its backup process does not, and knows of no successor.
    process.kill(old.pid, 'SIGSTOP');
    await waitFor('the other node to be primary', async () => (await next.status()).role === 'primary');
    await fill(next, 20);
    await sync(next);
    process.kill(old.pid, 'SIGCONT');
    await waitFor('the old one to follow', async () => (await old.status()).role === 'replica');
    await fill(next, 5);
    await sync(next);
    expect(await restored(urlOf('failover'), SUM)).toBe(await next.sql('app.db', SUM));
    expect(next.log(), 'no set of all pages was needed').not.toContain('backup-resync');
    // The end of a node waits for its backups.
    await fill(next, 5);
    const last = await next.sql('app.db', SUM);
    await old.stop();
    await next.stop();
    expect(await restored(urlOf('failover'), SUM)).toBe(last);
  });
});

/** The process of a node that ships. */
async function backupPid(node: TestNode): Promise<number> {
  let pid = 0;
  await waitFor('the backup process', async () => {
    const children = await run('ps', ['-o', 'pid=,args=', '--ppid', String(node.pid)]);
    pid = Number(/^\s*(\d+).*backup\/main\.js/m.exec(children)?.[1] ?? 0);
    return pid > 0;
  });
  return pid;
}
