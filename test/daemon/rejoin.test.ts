import { readdirSync, renameSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { databasePaths } from '../../src/store/data-directory.js';
import { LostAndFound } from '../../src/store/lost-and-found.js';
import { sqlite, TestCluster, waitFor, type ClusterOptions, type TestNode } from '../helpers/cluster.js';
import { flip } from '../helpers/flip.js';
import { runCli } from '../cli/run-cli.js';

/** How a node comes back whose position the primary's log does not hold: by the pages that differ. */

let cluster: TestCluster | undefined;

afterEach(async () => {
  await cluster?.stop();
  cluster = undefined;
});

async function start(config: ClusterOptions['config'] = {}): Promise<[TestCluster, TestNode, TestNode]> {
  cluster = await TestCluster.start({ ttl: '2s', config });
  return [cluster, cluster.node(1), cluster.node(2)];
}

const MADE = [
  'PRAGMA journal_mode=WAL',
  'CREATE TABLE t (id INTEGER PRIMARY KEY, body)',
  'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO t SELECT i, hex(randomblob(100)) FROM n',
];

async function until(node: TestNode, role: string): Promise<void> {
  await waitFor(`${node.id} to be ${role}`, async () => (await node.status()).role === role);
}

/** Makes a node the primary that was away while the last one wrote, which it would not become by itself. */
async function takeOver(node: TestNode): Promise<void> {
  node.spawn();
  const isPrimary = async (): Promise<boolean> =>
    (await node.status().catch(() => undefined))?.role === 'primary';
  await waitFor(`${node.id} to be the primary`, async () => {
    if (await isPrimary()) return true;
    await runCli(['promote', '--url', `http://127.0.0.1:${node.httpPort}`, '--accept-loss']);
    return await isPrimary();
  });
}

const sent = (node: TestNode): Promise<number> => node.metric('kitefs_stream_bytes{direction="sent"}');
const differences = (node: TestNode): Promise<number> =>
  node.metric('kitefs_difference_count{direction="sent"}');
const snapshots = (node: TestNode): Promise<number> => node.metric('kitefs_snapshot_count{direction="sent"}');

async function events(node: TestNode, kind: string, name?: string): Promise<string[]> {
  const { events: all } = await node.status();
  return all.flatMap((event) =>
    event.kind === kind && (name === undefined || event.database === name) ? [event.message] : [],
  );
}

/** The log's files, oldest first. */
const logFiles = (node: TestNode, name: string): string[] => {
  const { ltx } = databasePaths(node.dataDir, name);
  return readdirSync(ltx)
    .filter((file) => file.endsWith('.ltx'))
    .toSorted()
    .map((file) => join(ltx, file));
};

it('sends the three pages that differ of 50 MB, and keeps what only the old primary had', async () => {
  const [all, first, second] = await start();
  await first.sql(
    'app.db',
    'PRAGMA journal_mode=WAL',
    'CREATE TABLE t (id INTEGER PRIMARY KEY, body)',
    'CREATE TABLE big (body)',
    "INSERT INTO t VALUES (1, 'both')",
    'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) INSERT INTO big SELECT randomblob(1000000) FROM n',
  );
  await all.caughtUp('app.db');
  await second.stop();
  // A session each: two commits of one may come into one file of the log.
  await first.sql('app.db', "INSERT INTO t VALUES (100, 'lost')");
  await first.sql('app.db', "UPDATE t SET body = 'changed' WHERE id = 1");
  const end = (await first.database('app.db'))?.position;
  await first.kill();
  await takeOver(second);
  await second.sql('app.db', "INSERT INTO t VALUES (2, 'new')");

  const before = await sent(second);
  await first.start();
  // Its position is its checksum too; 50 MB need not be compared once more.
  await all.caughtUp('app.db');
  expect(await first.sql('app.db', 'SELECT group_concat(id || body) FROM t')).toBe('1both,2new');
  expect(await first.sql('app.db', 'PRAGMA integrity_check')).toBe('ok');
  expect((await sent(second)) - before).toBeLessThan(200_000);
  // 8 bytes for each of its 12 000 pages.
  const received = await second.metric('kitefs_stream_bytes{direction="received"}');
  expect(received).toBeGreaterThan(90_000);
  expect(received).toBeLessThan(400_000);
  expect(await differences(second)).toBe(1);
  expect(await snapshots(second)).toBe(0);

  const kept = new LostAndFound(first.dataDir).list();
  expect(kept).toHaveLength(1);
  expect(kept[0]?.manifest.lost).toMatchObject({ transactions: 2, end, certain: true });
  expect(kept[0]?.manifest.files).toHaveLength(2);
  expect(await first.metric('kitefs_lost_transaction_count{db="app.db"}')).toBe(2);
  expect(await events(first, 'lost-transactions')).toHaveLength(1);
  await showsWhatWasLost(first);
  // It can go on from here as any other replica: also as the primary.
  await second.sql('app.db', "INSERT INTO t VALUES (3, 'after')");
  await all.caughtUp('app.db');
  await second.stop();
  await until(first, 'primary');
  expect(await first.sql('app.db', 'SELECT group_concat(id || body) FROM t')).toBe('1both,2new,3after');
});

async function showsWhatWasLost(node: TestNode): Promise<void> {
  const lost = async (...words: string[]): Promise<string> => {
    const [command, ...more] = words as [string, ...string[]];
    const { code, stdout, stderr } = await runCli(['lost', command, '--config', node.configPath, ...more]);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    return stdout;
  };
  expect(await lost('ls')).toMatch(/^app\.db\/\S+ {2}2 transactions after TXID [0-9a-f]{16}, epoch 1\n$/);
  const shown = await lost('show', 'app.db');
  expect(shown).toMatch(/\.ltx {2}1 pages \(\d+\) of/);
  expect(shown).toContain(`
t: 1 rows only here (+), 1 otherwise now (~), 1 only now (-)
  + id=100  id: 100  body: 'lost'
  ~ id=1  body: 'changed', now 'both'
  - id=2
`);
  const [file, ltx] = [join(node.dir, 'lost.db'), join(node.dir, 'lost.ltx')];
  await lost('export', 'app.db', file);
  expect(await sqlite(file, 'PRAGMA integrity_check', 'SELECT group_concat(id || body) FROM t')).toBe(
    'ok\n1changed,100lost',
  );
  await lost('export', '--ltx', 'app.db', ltx);
  expect((await runCli(['ltx', 'verify', ltx])).code).toBe(0);
  expect((await runCli(['lost', 'show', '--config', node.configPath, 'nothing'])).stderr).toContain(
    'ERR_CLI_LOST',
  );
}

it('goes on by a difference when the log no longer reaches back, with nothing set aside', async () => {
  const [all, first, second] = await start({
    data: { retention: '1h', 'max-log-size': '8KB', 'retention-monitor-interval': '100ms' },
  });
  for (const name of ['app.db', 'small-pages.db']) await first.sql(name, ...MADE);
  for (const name of ['app.db', 'small-pages.db']) await all.caughtUp(name);
  await second.stop();
  for (let i = 0; i < 5; i += 1) await first.sql('app.db', 'UPDATE t SET body = body || 1 WHERE id = 7');
  // Another page size is another database: no page of the old one is of use.
  await first.sql('small-pages.db', 'PRAGMA journal_mode=DELETE', 'PRAGMA page_size=1024', 'VACUUM');
  await first.sql('small-pages.db', 'INSERT INTO t (body) VALUES (1)');
  await waitFor('retention', () => logFiles(first, 'app.db').length < 4);
  await waitFor('retention', () => logFiles(first, 'small-pages.db').length < 3);
  await second.start();
  for (const name of ['app.db', 'small-pages.db']) await all.assertSame(name);
  expect(await events(first, 'resync', 'app.db')).toEqual([expect.stringContaining('the pages that differ')]);
  expect(await events(first, 'resync', 'small-pages.db')).toEqual([expect.stringContaining('a snapshot')]);
  expect(new LostAndFound(second.dataDir).list()).toEqual([]);
});

it('goes round a file of the log that is damaged, cut off or gone', async () => {
  const [all, first, second] = await start({ data: { retention: '1h' } });
  const names = ['good.db', 'flipped.db', 'cut.db', 'gone.db', 'header.db', 'large.db'];
  for (const name of names) await first.sql(name, ...MADE);
  for (const name of names) await all.caughtUp(name);
  await second.stop();
  for (const name of names) {
    await first.sql(name, 'UPDATE t SET body = body || 1 WHERE id = 7');
    if (name === 'large.db') await first.sql(name, 'INSERT INTO t (body) VALUES (randomblob(2000000))');
    await first.sql(name, 'UPDATE t SET body = body || 2 WHERE id = 8');
    await first.sql(name, 'UPDATE t SET body = body || 3 WHERE id = 9');
  }
  // What was just made is sent from memory: a start forgets it.
  await first.stop();
  const middle = (name: string): string => logFiles(first, name).at(-2) as string;
  flip(middle('flipped.db'), 300);
  truncateSync(middle('cut.db'), 400);
  flip(middle('header.db'), 2);
  flip(logFiles(first, 'large.db').at(-3) as string, 500_000);
  await first.start();
  await until(first, 'primary');
  // A primary that finds one missing at its start says so and loses no data (damage.test.ts); here it vanishes later.
  renameSync(middle('gone.db'), join(first.dir, 'gone'));
  await second.start();
  for (const name of names) await all.assertSame(name);
  await first.sql('flipped.db', 'INSERT INTO t (body) VALUES (1)');
  await all.assertSame('flipped.db');
  for (const name of ['flipped.db', 'cut.db', 'header.db']) {
    expect(await events(first, 'log-damaged', name), name).toHaveLength(1);
  }
  expect(await differences(first)).toBe(5);
  expect(await snapshots(first)).toBe(0);
  expect(await events(first, 'resync', 'good.db')).toEqual([]);
  expect(await events(second, 'stream-failed')).toEqual([]);
});

it('is as before or as the primary, wherever it is killed', async () => {
  const [all, first, second] = await start();
  await first.sql('app.db', ...MADE);
  await all.caughtUp('app.db');
  await second.stop();
  await first.sql('app.db', 'DELETE FROM t WHERE id > 100');
  await first.kill();
  await takeOver(second);
  await second.sql('app.db', "UPDATE t SET body = 'new' WHERE id > 150");
  for (const said of ['"event":"replica"', '"event":"connected"', '"event":"lost-transactions"']) {
    const from = first.log().length;
    first.spawn();
    await waitFor(`${said} of node1`, () => first.log().slice(from).includes(said) || !first.running);
    await first.kill();
    await first.clear();
  }
  await first.start();
  await all.assertSame('app.db');
  // Whatever was moved when, each lost transaction is there once.
  const kept = new LostAndFound(first.dataDir).list().filter(({ manifest }) => manifest.lost);
  expect(
    kept.flatMap(({ directory }) => readdirSync(directory).filter((file) => /^0.*ltx$/.test(file))),
  ).toHaveLength(1);
});
