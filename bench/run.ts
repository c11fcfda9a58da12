import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { benchApply } from './apply.js';
import { benchFailover, benchRejoin } from './failover.js';
import { benchHandOff } from './hand-off.js';
import { benchProxy } from './proxy.js';
import { hasLiteFs, LiteFsNodes } from './litefs.js';
import { TestCluster, type TestNode, run, sqlite } from '../test/helpers/cluster.js';

/**
 * `npm run bench [commits|durable|latency|reads|start|memory|apply|handoff|ltx|stream|failover|rejoin|restore|sparse|shipping|proxy]`: each section prints a table, with ratios
 * against plain SQLite measured in the same run where there is one, against LiteFS where `litefs` is on PATH, and with what
 * is aimed at. Rounds are interleaved and the median counts. ROUNDS and SECONDS change the effort.
 */
const ROUNDS = Number(process.env['ROUNDS'] ?? 3);
const SECONDS = Number(process.env['SECONDS'] ?? 4);
const CLIENT = join(process.cwd(), 'bench/client.mjs');

interface Measured {
  readonly perSecond: number;
  readonly p50: number;
  readonly p99: number;
}

async function client(workload: string, path: string, ...args: (string | number)[]): Promise<Measured> {
  const { stdout } = await promisify(execFile)(process.execPath, [
    CLIENT,
    workload,
    path,
    ...args.map(String),
  ]);
  return JSON.parse(stdout) as Measured;
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;

function table(title: string, rows: readonly Record<string, string | number>[]): void {
  console.log(`\n${title}`);
  console.table(rows);
}

const percent = (part: number, whole: number): string => `${((100 * part) / whole).toFixed(1)} %`;

const LITEFS = 'LiteFS, with a replica';
const LITEFS_ROUNDS = hasLiteFs ? ROUNDS : 0;

async function commits(): Promise<void> {
  const kinds = [
    { what: 'one row, WAL', journal: 'wal', rows: 1, alone: '15 %, p50 4 ×', replica: '10 %' },
    { what: '1 000 rows, WAL', journal: 'wal', rows: 1000, alone: '30 %', replica: '30 %' },
    { what: 'one row, DELETE', journal: 'delete', rows: 1, alone: '50 %', replica: '50 %' },
  ];
  const out: Record<string, string | number>[] = [];
  for (const { what, journal, rows, alone, replica } of kinds) {
    const targets = new Map([
      ['alone', alone],
      ['with a replica', replica],
    ]);
    const results = new Map<string, Measured[]>();
    let lag = 0;
    for (let round = 0; round < ROUNDS; round += 1) {
      const dir = mkdtempSync(join(tmpdir(), 'kitefs-bench-'));
      push(results, 'plain', await client('commits', join(dir, 'b.db'), journal, rows, SECONDS));
      rmSync(dir, { recursive: true, force: true });
      for (const [place, nodes] of [
        ['alone', 1],
        ['with a replica', 2],
      ] as const) {
        const cluster = await TestCluster.start({ nodes, config: { log: { level: 'warn' } } });
        const primary = cluster.node(1);
        push(results, place, await client('commits', primary.path('b.db'), journal, rows, SECONDS));
        if (nodes === 2) {
          lag = Math.max(lag, (await cluster.node(2).database('b.db'))?.lagTransactions ?? 0);
          await cluster.assertSame('b.db');
        }
        await cluster.stop();
      }
      if (hasLiteFs) {
        const litefs = await LiteFsNodes.start();
        push(results, LITEFS, await client('commits', litefs.path(1, 'b.db'), journal, rows, SECONDS));
        await litefs.stop();
      }
    }
    const plain = results.get('plain') ?? [];
    const litefs = median((results.get(LITEFS) ?? []).map((m) => m.perSecond));
    for (const [place, measured] of results) {
      out.push({
        what,
        where: place,
        'per second': Math.round(median(measured.map((m) => m.perSecond))),
        'of plain': percent(median(measured.map((m) => m.perSecond)), median(plain.map((m) => m.perSecond))),
        '× LiteFS': litefs ? (median(measured.map((m) => m.perSecond)) / litefs).toFixed(1) : '',
        'p50 µs': Math.round(median(measured.map((m) => m.p50))),
        'p50 × plain': (median(measured.map((m) => m.p50)) / median(plain.map((m) => m.p50))).toFixed(1),
        'p99 µs': Math.round(median(measured.map((m) => m.p99))),
        'lag at the end': place === 'with a replica' ? lag : '',
        target: targets.get(place) ?? '',
      });
    }
  }
  table('Transactions', out);
}

function push(results: Map<string, Measured[]>, key: string, value: Measured): void {
  results.set(key, [...(results.get(key) ?? []), value]);
}

/** One-row commits that return when a replica has them. */
async function durable(): Promise<void> {
  const out: Record<string, string | number>[] = [];
  for (const journal of ['wal', 'delete']) {
    const asynchronous: Measured[] = [];
    for (let round = 0; round < LITEFS_ROUNDS; round += 1) {
      const litefs = await LiteFsNodes.start();
      asynchronous.push(await client('commits', litefs.path(1, 'b.db'), journal, 1, SECONDS));
      await litefs.stop();
    }
    for (const acknowledge of ['memory', 'fsync']) {
      const measured: Measured[] = [];
      for (let round = 0; round < ROUNDS; round += 1) {
        const durability = { commit: 'replicas: 1', acknowledge };
        const cluster = await TestCluster.start({ config: { log: { level: 'warn' }, durability } });
        measured.push(await client('commits', cluster.node(1).path('b.db'), journal, 1, SECONDS));
        await cluster.assertSame('b.db');
        await cluster.stop();
      }
      out.push({
        journal,
        acknowledge,
        'per second': Math.round(median(measured.map((m) => m.perSecond))),
        '× LiteFS asynchronous': hasLiteFs
          ? (median(measured.map((m) => m.perSecond)) / median(asynchronous.map((m) => m.perSecond))).toFixed(
              1,
            )
          : '',
        'p50 ms': (median(measured.map((m) => m.p50)) / 1000).toFixed(2),
        'p99 ms': (median(measured.map((m) => m.p99)) / 1000).toFixed(2),
        target: '3 × LiteFS',
      });
    }
  }
  table('Commits that wait for one replica', out);
}

async function latency(): Promise<void> {
  const cluster = await TestCluster.start({ config: { log: { level: 'warn' } } });
  const [primary, replica] = [cluster.node(1), cluster.node(2)];
  await client('paced', primary.path('b.db'), 500, 1);
  await cluster.caughtUp('b.db');
  const out: Record<string, string | number>[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const watching = client('watch', replica.path('b.db'), SECONDS + 2);
    await client('paced', primary.path('b.db'), 500, SECONDS);
    const seen = await watching;
    out.push({ round, 'p50 ms': seen.p50.toFixed(2), 'p99 ms': seen.p99.toFixed(2), target: '1.5, 8' });
  }
  await cluster.stop();
  for (let round = 0; round < LITEFS_ROUNDS; round += 1) {
    // It does not reach 500 commits/s everywhere; what it reaches counts.
    const litefs = await LiteFsNodes.start();
    await client('paced', litefs.path(1, 'b.db'), 100, 1);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const watching = client('watch', litefs.path(2, 'b.db'), SECONDS + 2);
    await client('paced', litefs.path(1, 'b.db'), 200, SECONDS);
    const seen = await watching;
    out.push({
      round: `${round}, LiteFS, 200/s`,
      'p50 ms': seen.p50.toFixed(2),
      'p99 ms': seen.p99.toFixed(2),
      target: '',
    });
    await litefs.stop();
  }
  table('Commit to visible on the replica, 500 commits/s', out);
}

async function reads(): Promise<void> {
  const cluster = await TestCluster.start({ config: { log: { level: 'warn' } } });
  const [primary, replica] = [cluster.node(1), cluster.node(2)];
  const plainDir = mkdtempSync(join(tmpdir(), 'kitefs-bench-'));
  const plain = join(plainDir, 'b.db');
  for (const path of [plain, primary.path('b.db')]) await client('commits', path, 'wal', 1000, 2);
  await cluster.caughtUp('b.db');
  const results = new Map<string, Measured[]>();
  for (let round = 0; round < ROUNDS; round += 1) {
    push(results, 'plain', await client('reads', plain, SECONDS));
    push(results, 'primary', await client('reads', primary.path('b.db'), SECONDS));
    push(results, 'replica', await client('reads', replica.path('b.db'), SECONDS));
    const writing = client('paced', primary.path('b.db'), 1000, SECONDS + 1);
    push(results, 'replica while it applies 1 000/s', await client('reads', replica.path('b.db'), SECONDS));
    await writing;
  }
  const rateOf = (place: string): number => median((results.get(place) ?? []).map((m) => m.perSecond));
  const out = [...results.keys()].map((place) => ({
    where: place,
    'per second': Math.round(rateOf(place)),
    'of plain': percent(rateOf(place), rateOf('plain')),
    'of the idle replica': place.startsWith('replica ') ? percent(rateOf(place), rateOf('replica')) : '',
    target: place === 'plain' ? '' : place.startsWith('replica ') ? '90 % of idle' : '95 %',
  }));
  await cluster.stop();
  rmSync(plainDir, { recursive: true, force: true });
  table('Point reads', out);
}

/** Makes a database of about a gigabyte. */
async function gigabyte(path: string): Promise<void> {
  await sqlite(
    path,
    'PRAGMA journal_mode=wal',
    'CREATE TABLE big(id INTEGER PRIMARY KEY, body)',
    'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250000) INSERT INTO big SELECT i, randomblob(4000) FROM n',
    'PRAGMA wal_checkpoint(TRUNCATE)',
  );
}

async function start(): Promise<void> {
  const cluster = await TestCluster.start({ nodes: 1, config: { log: { level: 'warn' } } });
  const node = cluster.node(1);
  const seed = join(cluster.dir, 'seed.db');
  await gigabyte(seed);
  await run('cp', [seed, node.path('big.db')], { limitMs: 300_000 });
  const out: Record<string, string | number>[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const how of ['clean stop', 'kill -9'] as const) {
      await node.sql('big.db', `UPDATE big SET body = randomblob(4000) WHERE id = ${round + 1}`);
      await (how === 'clean stop' ? node.stop() : node.kill());
      const began = performance.now();
      await node.start();
      out.push({
        after: how,
        round,
        'ready after ms': Math.round(performance.now() - began),
        target: how === 'kill -9' ? 5000 : 1000,
      });
    }
  }
  await cluster.stop();
  table('Start with a database of 1 GB', out);
}

async function memory(): Promise<void> {
  const cluster = await TestCluster.start({ config: { log: { level: 'warn' } } });
  const [primary, replica] = [cluster.node(1), cluster.node(2)];
  const seed = join(cluster.dir, 'seed.db');
  await gigabyte(seed);
  await run('cp', [seed, primary.path('big.db')], { limitMs: 300_000 });
  await cluster.caughtUp('big.db', 300_000);
  const out: Record<string, string | number>[] = [];
  const writing = client('paced', primary.path('b.db'), 500, SECONDS * 3);
  for (let sample = 0; sample < 3; sample += 1) {
    await new Promise((resolve) => setTimeout(resolve, SECONDS * 900));
    for (const node of [primary, replica]) {
      const { daemon, applier } = await residentMb(node);
      out.push({ sample, node: node.id, daemon, applier, 'together MB': daemon + applier, target: 200 });
    }
  }
  await writing;
  await cluster.stop();
  table('Resident memory at 500 commits/s with a database of 1 GB', out);
}

/** Resident memory of a daemon and of its applier; the guard and short-lived children do not count. */
async function residentMb(node: TestNode): Promise<{ daemon: number; applier: number }> {
  const megabytes = (pid: number): number =>
    Math.round(Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024);
  const applier = await run('pgrep', ['-P', String(node.pid), '-f', 'applier/main']);
  return { daemon: megabytes(node.pid), applier: megabytes(Number(applier)) };
}

async function apply(): Promise<void> {
  const { smallPerSecond, largeBytesPerSecond } = await benchApply();
  table('Apply on a plain folder', [
    { what: 'one-row transactions/s', rate: Math.round(smallPerSecond), target: 3000 },
    { what: 'large transactions, MB/s', rate: Math.round(largeBytesPerSecond / 1e6), target: 100 },
  ]);
}

async function handoff(): Promise<void> {
  const gapsMs = await benchHandOff();
  const row = { 'hand-offs': gapsMs.length, 'median ms': median(gapsMs).toFixed(0) };
  table('Longest gap without a commit in a hand-off, 200 commits/s', [
    { ...row, 'worst ms': gapsMs.at(-1)?.toFixed(0) ?? '', target: 50 },
  ]);
}

/** A benchmark that wants a process to itself, and prints its own table. */
const alone = (script: string) => async (): Promise<void> => {
  const file = fileURLToPath(new URL(script, import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, [file]);
  console.log(stdout);
};

const SECTIONS: Record<string, () => Promise<void>> = {
  commits,
  durable,
  latency,
  reads,
  start,
  memory,
  apply,
  handoff,
  ltx: alone('./ltx.js'),
  stream: alone('./stream.js'),
  failover: async () => table('kill -9 of the primary to the first write elsewhere', await benchFailover()),
  rejoin: async () => table('Return of a former primary', await benchRejoin()),
  restore: alone('./restore.js'),
  sparse: alone('./sparse.js'),
  proxy: () => benchProxy(ROUNDS, SECONDS),
  shipping: alone('./shipping.js'),
};
const asked = process.argv.slice(2);
mkdirSync(tmpdir(), { recursive: true });
for (const name of asked.length > 0 ? asked : Object.keys(SECTIONS)) {
  const section = SECTIONS[name];
  if (!section) throw new Error(`no section ${name}: ${Object.keys(SECTIONS).join(', ')}`);
  console.log(`${name}: ${ROUNDS} rounds of ${SECONDS} s`);
  await section();
}
