/**
 * Shipping to a MinIO on this machine: `npm run bench shipping`. How long a commit takes to the bucket, what shipping costs the primary's full
 * rate of one-row transactions (rounds with and without it, one after the other), the memory of the backup process meanwhile
 * (shipping, compactions and snapshots together), and the requests of an idle and of a busy database.
 */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { run, TestCluster, type TestNode, waitFor } from '../test/helpers/cluster.js';
import { TestMinio } from '../test/helpers/minio.js';

const ROUNDS = Number(process.env['ROUNDS'] ?? 3);
const SECONDS = Number(process.env['SECONDS'] ?? 4);
const CLIENT = join(process.cwd(), 'bench/client.mjs');
const SAMPLES = 30;
/** What S3 asks in us-east-1, dollars per 1 000. */
const PUT_PRICE = 0.005;
const GET_PRICE = 0.0004;

const minio = await TestMinio.start(['bench']);
const backup = (path: string, endpoint = minio.endpoint, more: object = {}): Record<string, unknown> => ({
  type: 's3',
  bucket: 'bench',
  path,
  endpoint,
  'access-key-id': minio.env.AWS_ACCESS_KEY_ID,
  'secret-access-key': minio.env.AWS_SECRET_ACCESS_KEY,
  ...more,
});

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
const at = (values: readonly number[], share: number): string =>
  (
    values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * share))] ?? 0
  ).toFixed(0);

async function start(backups: readonly object[]): Promise<{ cluster: TestCluster; node: TestNode }> {
  const cluster = await TestCluster.start({
    nodes: 1,
    config: { log: { level: 'warn' }, backups: [...backups] },
  });
  return { cluster, node: cluster.node(1) };
}

const sync = async (node: TestNode): Promise<void> => {
  const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=60000`, { method: 'POST' });
  if (!answer.ok) throw new Error(await answer.text());
};

/** The largest resident memory that the backup process has had. */
async function backupPeakMb(node: TestNode): Promise<number> {
  const pid = await run('pgrep', ['-P', String(node.pid), '-f', 'backup/main']);
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024;
}

async function slowdown(): Promise<void> {
  const rates = { without: [] as number[], with: [] as number[] };
  let peakMb = 0;
  let behindMs = 0;
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const how of ['without', 'with'] as const) {
      // Everything that is made falls into these seconds.
      const quick = {
        levels: [{ interval: '1s' }, { interval: '3s' }],
        snapshot: { interval: '3s', retention: '1h' },
      };
      const { cluster, node } = await start(
        how === 'with' ? [backup(`rate-${round}`, minio.endpoint, quick)] : [],
      );
      const arguments_ = [CLIENT, 'commits', node.path('b.db'), 'wal', '1', String(SECONDS)];
      const { stdout } = await promisify(execFile)(process.execPath, arguments_);
      rates[how].push((JSON.parse(stdout) as { perSecond: number }).perSecond);
      if (how === 'with') {
        const began = performance.now();
        await sync(node);
        behindMs = Math.max(behindMs, performance.now() - began);
        peakMb = Math.max(peakMb, await backupPeakMb(node));
      }
      await cluster.stop();
    }
  }
  console.log('\nOne-row transactions per second, WAL, with shipping to MinIO on this machine');
  console.table([
    {
      without: median(rates.without).toFixed(0),
      with: median(rates.with).toFixed(0),
      'slower by': `${(100 * (1 - median(rates.with) / median(rates.without))).toFixed(1)} %`,
      'in the bucket after ms': behindMs.toFixed(0),
      'peak MB of the backup process': peakMb.toFixed(0),
      target: '10 %, 200 MB',
    },
  ]);
}

async function latency(): Promise<void> {
  const { cluster, node } = await start([backup('latency')]);
  await node.sql('b.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(id INTEGER PRIMARY KEY, b)');
  await sync(node);
  const arrives = async (wait: () => Promise<void>): Promise<number[]> => {
    const took: number[] = [];
    for (let i = 0; i < SAMPLES; i += 1) {
      await sleep(100 * Math.random());
      await node.sql('b.db', 'INSERT INTO t(b) VALUES (randomblob(100))');
      const began = performance.now();
      await wait();
      took.push(performance.now() - began);
    }
    return took;
  };
  const rows = [];
  for (const [what, wait] of [
    ['sync-interval 1 s', async () => await waitFor('it', async () => (await lag(node)) === 0)],
    ['kitefs sync', async () => await sync(node)],
  ] as const) {
    const took = await arrives(wait);
    rows.push({ what, 'p50 ms': at(took, 0.5), 'p99 ms': at(took, 0.99) });
  }
  await cluster.stop();
  console.log('\nFrom the end of a COMMIT to the bucket');
  console.table(rows);
}

async function lag(node: TestNode): Promise<number> {
  const { backups, databases } = await node.status();
  const position = databases[0]?.position.slice(0, 16);
  return backups[0]?.databases[0]?.txid === position ? 0 : 1;
}

/** Counts requests on their way to MinIO. */
async function counting(): Promise<{ endpoint: string; counts: Map<string, number>; stop: () => void }> {
  const counts = new Map<string, number>();
  const server = createServer((incoming, answer) => {
    const { method = '', url = '', headers } = incoming;
    const kind =
      method === 'GET' && url.includes('list-type') ? 'LIST' : method === 'POST' ? 'DELETE' : method;
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
    // The signature covers the headers, Host too: they go on as they came.
    const out = request({ port: minio.port, method, path: url, headers }, (response) => {
      answer.writeHead(response.statusCode ?? 500, response.headers);
      response.pipe(answer);
    });
    out.on('error', () => answer.destroy());
    incoming.pipe(out);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return { endpoint: `http://127.0.0.1:${port}`, counts, stop: () => server.close() };
}

async function requests(): Promise<void> {
  const proxy = await counting();
  const { cluster, node } = await start([backup('requests', proxy.endpoint)]);
  await node.sql('b.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(id INTEGER PRIMARY KEY, b)');
  await sync(node);
  const rows = [];
  for (const what of ['idle', 'busy'] as const) {
    // Compactions of what was written at the start come first: level 3 is made in the hour.
    if (what === 'idle') await sleep(35_000);
    proxy.counts.clear();
    const began = performance.now();
    const limitMs = 15_000 * (what === 'busy' ? 2 : 1);
    while (performance.now() - began < limitMs) {
      if (what === 'busy') await node.sql('b.db', 'INSERT INTO t(b) VALUES (randomblob(100))');
      await sleep(100);
    }
    const perDay = (kind: string): number =>
      Math.round(((proxy.counts.get(kind) ?? 0) * 86_400_000) / (performance.now() - began));
    const price = ((perDay('PUT') + perDay('LIST')) * PUT_PRICE + perDay('GET') * GET_PRICE) / 1000;
    rows.push({
      what,
      ...Object.fromEntries(['PUT', 'GET', 'LIST', 'DELETE'].map((kind) => [`${kind} a day`, perDay(kind)])),
      '$ a month': (30 * price).toFixed(2),
      target: what === 'idle' ? 'none' : '',
    });
  }
  await cluster.stop();
  proxy.stop();
  console.log(
    '\nRequests of one database at sync-interval 1 s (busy: a commit every 100 ms), and their price at S3',
  );
  console.table(rows);
}

try {
  await slowdown();
  await latency();
  await requests();
} finally {
  await minio.stop();
}
