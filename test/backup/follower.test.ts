import { afterAll, beforeAll, expect, it } from 'vitest';
import { run, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { TestMinio } from '../helpers/minio.js';
import { TestSshd } from '../helpers/sshd.js';

/** Replicas that are fed from backups alone: one from S3, one by SFTP. Their primary knows nothing of them. */

let minio: TestMinio;
let sshd: TestSshd;
let cluster: TestCluster;
let primary: TestNode;
let follower: TestNode;

beforeAll(async () => {
  [minio, sshd] = await Promise.all([TestMinio.start(['backups']), TestSshd.start()]);
  const often = {
    'sync-interval': '20ms',
    levels: [{ interval: '300ms' }, { interval: '900ms' }],
    'l0-retention': '300ms',
    snapshot: { interval: '700ms', retention: '1s' },
  };
  const backup = {
    type: 's3',
    bucket: 'backups',
    path: 'app',
    endpoint: minio.endpoint,
    'access-key-id': minio.env.AWS_ACCESS_KEY_ID,
    'secret-access-key': minio.env.AWS_SECRET_ACCESS_KEY,
    ...often,
  };
  const { host, user, keyPath, hostKey } = sshd;
  const beside = {
    type: 'sftp',
    host,
    user,
    path: 'app',
    'key-path': keyPath,
    'host-key': hostKey,
    ...often,
  };
  cluster = await TestCluster.start({ nodes: 1, ttl: '1s', config: { backups: [backup, beside] } });
  primary = cluster.node(1);
  await primary.sql('app.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(id INTEGER PRIMARY KEY, b)');
  await write(20);
  follower = await cluster.add({
    candidate: false,
    config: { lease: { type: 'static' } },
    env: {
      ...minio.env,
      KITEFS_FOLLOW: `s3://backups/app?endpoint=${encodeURIComponent(minio.endpoint)}`,
      KITEFS_FOLLOW_INTERVAL: '50ms',
    },
  });
  const keys = new URLSearchParams({ 'key-path': keyPath, 'host-key': hostKey });
  const url = `sftp://${user}@${host}/~/app?${keys.toString()}`;
  await cluster.add({
    candidate: false,
    config: { lease: { type: 'static' } },
    env: { KITEFS_FOLLOW: url, KITEFS_FOLLOW_INTERVAL: '50ms' },
  });
});

afterAll(async () => {
  await cluster?.stop();
  await minio?.stop();
  sshd?.stop();
});

async function write(rows: number, name = 'app.db'): Promise<void> {
  for (let i = 0; i < rows; i += 5)
    await primary.sql(name, ...Array.from({ length: 5 }, () => 'INSERT INTO t(b) VALUES (randomblob(900))'));
}

const eventsOf = async (node: TestNode, kind: string): Promise<string[]> =>
  (await node.status()).events.filter((event) => event.kind === kind).map(({ message }) => message);

it('has every database as the primary has it, and says how old it is', async () => {
  await cluster.assertSame('app.db');
  await write(10);
  await primary.sql('second.db', 'CREATE TABLE t(id INTEGER PRIMARY KEY, b)');
  await primary.sql('app.db', 'DELETE FROM t WHERE id % 3 = 0', 'VACUUM');
  await cluster.assertSame('app.db');
  await cluster.assertSame('second.db');
  await primary.sql('second.db', 'PRAGMA page_size=8192', 'VACUUM');
  await write(5, 'second.db');
  await cluster.assertSame('second.db');
  const whole = await eventsOf(follower, 'resync');
  expect(
    whole.filter((message) => message.includes('app.db')),
    'once, at the beginning',
  ).toHaveLength(1);
  await waitFor('a fresh copy', async () => ((await follower.database('app.db'))?.maxAgeMs ?? 1e9) < 2000);
  expect(Number(await run('cat', [follower.path('.lag')]))).toBeLessThan(60_000);
  await expect(follower.sql('app.db', 'DELETE FROM t')).rejects.toThrow(/readonly|unable to open/);
  await run('rm', [primary.path('second.db')]);
  await waitFor('the drop', async () => (await follower.database('second.db')) === undefined);
});

it('goes on when the bucket was away, after kill -9, and when its next object was compacted meanwhile', async () => {
  await minio.kill();
  await write(10);
  await waitFor('the loss of the bucket to be seen', async () => {
    return (
      ((await follower.database('app.db'))?.maxAgeMs ?? 0) > 500 && follower.log().includes('not connected')
    );
  });
  expect(await follower.sql('app.db', 'PRAGMA quick_check')).toBe('ok');
  await minio.up();
  // The primary's pauses between attempts are not what this is about.
  await fetch(`http://127.0.0.1:${primary.httpPort}/sync?wait=20000`, { method: 'POST' });
  await cluster.assertSame('app.db');
  const writing = write(20);
  await follower.kill();
  await follower.clear();
  await writing;
  const removed = (): number => primary.log().split('past the retention').length;
  const before = removed();
  await waitFor('retention', async () => {
    await write(5);
    return removed() > before + 2;
  });
  await follower.start();
  await cluster.assertSame('app.db');
  // Another epoch of the primary, which knows no more of its own.
  await primary.kill();
  await primary.clear();
  await primary.start();
  await write(5);
  await cluster.assertSame('app.db');
  const { epoch } = await primary.status();
  expect((await follower.status()).epoch).toBe(epoch);
  expect(await eventsOf(follower, 'lost-transactions')).toEqual([]);
});
