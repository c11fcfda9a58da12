import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { TestCluster, type TestNode, waitFor } from '../test/helpers/cluster.js';
import { TestConsul } from '../test/helpers/consul.js';

/** `npm run bench failover rejoin`: what the death of a primary costs, and what its return. FAILOVERS rounds; REJOIN_MB of data. */
const FAILOVERS = Number(process.env['FAILOVERS'] ?? 5);
const REJOIN_MB = Number(process.env['REJOIN_MB'] ?? 1024);
const REJOIN_PAGES = 100;
/** The two limits are the promise of docs/failover.md beside `ttl`. */
const [MEDIAN_OVER_MS, WORST_OVER_MS] = [1000, 2000];
const IDLE_MS = 20_000;
const PAGE_BYTES = 4096;

type Row = Record<string, string | number>;

/** kill -9 of the primary to the first write that another node accepts; three nodes, Consul. */
export async function benchFailover(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const ttlMs of [5000, 2000]) {
    const consul = await TestConsul.start();
    const ownPerSecond = await consulWrites(consul);
    const lease = { type: 'consul', consul: { url: consul.url, key: 'bench/primary' } };
    const config = { lease, log: { level: 'warn' } };
    const cluster = await TestCluster.start({ nodes: 3, ttl: `${ttlMs}ms`, config });
    await cluster.node(1).sql('b.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)');
    await cluster.caughtUp('b.db');
    const perSecond = (await consulWrites(consul)) - ownPerSecond;
    const tookMs: number[] = [];
    for (let round = 0; round < FAILOVERS; round += 1) {
      const primary = await cluster.primary();
      await primary.sql('b.db', `INSERT INTO t VALUES (${round})`);
      await cluster.caughtUp('b.db');
      // Members hear of each other in turns: in steady state, and not while one has just come back.
      await sleep(2 * ttlMs);
      const others = cluster.nodes.filter((node) => node !== primary);
      const killedMs = performance.now();
      await primary.kill();
      const won = { found: false };
      await Promise.any(others.map((node) => firstWrite(node, won)));
      won.found = true;
      tookMs.push(performance.now() - killedMs);
      await primary.clear();
      await primary.start();
    }
    await cluster.assertSame('b.db');
    await cluster.stop();
    await consul.stop();
    const sorted = tookMs.toSorted((a, b) => a - b);
    rows.push({
      'ttl ms': ttlMs,
      rounds: FAILOVERS,
      'median ms': Math.round(sorted[sorted.length >> 1] ?? 0),
      'worst ms': Math.round(sorted.at(-1) ?? 0),
      target: `${ttlMs + MEDIAN_OVER_MS}, worst ${ttlMs + WORST_OVER_MS}`,
      'writes/s to Consul, idle': perSecond.toFixed(2),
    });
  }
  return rows;
}

async function firstWrite(node: TestNode, won: { found: boolean }): Promise<void> {
  const attempt = (): Promise<boolean> =>
    node.sql('b.db', 'INSERT INTO t VALUES (-1)').then(
      () => true,
      () => false,
    );
  while (!won.found) {
    if (await attempt()) return;
    await sleep(10);
  }
}

/** Writes per second of everybody, by Consul's index: each write raises it by one, and those that Consul makes by itself do too. */
async function consulWrites(consul: TestConsul): Promise<number> {
  const index = async (): Promise<number> => {
    await consul.put('probe', randomUUID()); // the same value again would be no write
    const [entry] = JSON.parse(await consul.request('GET', '/v1/kv/probe')) as [{ ModifyIndex: number }];
    return entry.ModifyIndex;
  };
  const [before, sinceMs] = [await index(), performance.now()];
  await sleep(IDLE_MS);
  return ((await index()) - before - 1) / ((performance.now() - sinceMs) / 1000);
}

/** A former primary comes back with pages that nobody else has, to a primary that has changed as many. */
export async function benchRejoin(): Promise<Row[]> {
  const cluster = await TestCluster.start({ ttl: '2s', config: { log: { level: 'warn' } } });
  try {
    const [first, second] = [cluster.node(1), cluster.node(2)];
    const count = Math.ceil((REJOIN_MB << 20) / PAGE_BYTES);
    // One row fills a page.
    const fill = (from: number, to: number): string =>
      `WITH RECURSIVE n(i) AS (SELECT ${from} UNION ALL SELECT i + 1 FROM n WHERE i < ${to - 1}) INSERT INTO t SELECT i, randomblob(3900) FROM n`;
    await first.sql('b.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(id INTEGER PRIMARY KEY, body)');
    for (let from = 0; from < count; from += 16_384) {
      await first.sql('b.db', fill(from, Math.min(count, from + 16_384)));
    }
    await cluster.caughtUp('b.db', 300_000);
    const change = (node: TestNode, at: number): Promise<string> => {
      const step = Math.floor(count / REJOIN_PAGES);
      return node.sql(
        'b.db',
        `UPDATE t SET body = randomblob(3900) WHERE id % ${step} = ${at} AND id < ${step * REJOIN_PAGES}`,
      );
    };
    await second.stop();
    await change(first, 1);
    await first.kill();
    await first.clear();
    second.spawn();
    await waitFor('the second to be primary', async () => {
      const promote = `http://127.0.0.1:${second.httpPort}/promote?accept-loss=true`;
      await fetch(promote, { method: 'POST' }).catch(() => undefined);
      return (await second.status().catch(() => undefined))?.role === 'primary';
    });
    await change(second, 2);
    const beganMs = performance.now();
    await first.start();
    await cluster.caughtUp('b.db', 300_000);
    const tookMs = performance.now() - beganMs;
    const [{ sizeBytes = 0 } = {}, sentBytes] = [
      await second.database('b.db'),
      await second.metric('kitefs_stream_bytes{direction="sent"}'),
    ];
    await cluster.assertSame('b.db');
    return [
      {
        'database MB': Math.round(sizeBytes / 1e6),
        'changed pages': 2 * REJOIN_PAGES,
        's from its start': (tookMs / 1000).toFixed(1),
        'MB sent': (sentBytes / 1e6).toFixed(1),
        target: '5 s, 30 MB',
      },
    ];
  } finally {
    await cluster.stop();
  }
}
