// One application process of a benchmark. Prints one JSON object. Workloads:
//   commits PATH JOURNAL ROWS SECONDS   transactions of ROWS rows, as fast as they go
//   paced   PATH RATE SECONDS           one-row transactions at a rate, each with the time it began
//   reads   PATH SECONDS                point reads by primary key
//   watch   PATH SECONDS                how long after its COMMIT began each `paced` row can be read here
//   steady  PATH RATE SECONDS PATH2     one-row transactions at a rate in the mount of whoever is primary; when each was acknowledged
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import Database from 'better-sqlite3';

const [workload, path, ...args] = process.argv.slice(2);
const database = workload === 'steady' ? undefined : new Database(path, { timeout: 20_000 });
const nowNs = () => process.hrtime.bigint();
const pause = new Int32Array(new SharedArrayBuffer(4));
const sleepMs = (ms) => Atomics.wait(pause, 0, 0, ms);

function percentiles(values) {
  values.sort((a, b) => a - b);
  const at = (share) => values[Math.min(values.length - 1, Math.floor(values.length * share))] ?? 0;
  return { p50: at(0.5), p99: at(0.99), max: values.at(-1) ?? 0 };
}

function commits(journal, rows, seconds) {
  database.pragma(`journal_mode=${journal}`);
  database.pragma('synchronous=NORMAL');
  database.exec('CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body)');
  const insert = database.prepare('INSERT INTO t(body) VALUES (?)');
  const body = 'x'.repeat(100);
  const run = database.transaction(() => {
    for (let i = 0; i < rows; i += 1) insert.run(body);
  });
  const took = [];
  const end = nowNs() + BigInt(Math.round(seconds * 1e9));
  const began = nowNs();
  for (let now = began; now < end;) {
    run.immediate();
    const after = nowNs();
    took.push(Number(after - now) / 1000);
    now = after;
  }
  const elapsed = Number(nowNs() - began) / 1e9;
  return { perSecond: took.length / elapsed, ...percentiles(took) };
}

function paced(rate, seconds) {
  database.pragma('journal_mode=wal');
  database.pragma('synchronous=NORMAL');
  database.exec('CREATE TABLE IF NOT EXISTS paced(id INTEGER PRIMARY KEY, at TEXT)');
  const insert = database.prepare('INSERT INTO paced(at) VALUES (?)');
  const began = nowNs();
  let count = 0;
  for (; count < rate * seconds; count += 1) {
    const due = began + BigInt(Math.round((count * 1e9) / rate));
    const waitMs = Number(due - nowNs()) / 1e6;
    if (waitMs > 0) sleepMs(waitMs);
    insert.run(String(nowNs()));
  }
  return { perSecond: count / (Number(nowNs() - began) / 1e9) };
}

function watch(seconds) {
  const later = database.prepare('SELECT id, at FROM paced WHERE id > ? ORDER BY id');
  let last = database.prepare('SELECT coalesce(max(id), 0) AS id FROM paced').get().id;
  const took = [];
  const end = nowNs() + BigInt(Math.round(seconds * 1e9));
  while (nowNs() < end) {
    const rows = later.all(last);
    const seen = nowNs();
    for (const { id, at } of rows) {
      took.push(Number(seen - BigInt(at)) / 1e6);
      last = id;
    }
    sleepMs(0.1);
  }
  return { rows: took.length, ...percentiles(took) };
}

function reads(seconds) {
  const { top } = database.prepare('SELECT max(id) AS top FROM t').get();
  const read = database.prepare('SELECT body FROM t WHERE id = ?');
  let count = 0;
  let id = 1;
  const began = nowNs();
  const end = began + BigInt(Math.round(seconds * 1e9));
  while (nowNs() < end) {
    for (let i = 0; i < 100; i += 1) {
      id = (id * 16_807) % 2_147_483_647;
      read.get(1 + (id % top));
    }
    count += 100;
  }
  return { perSecond: count / (Number(nowNs() - began) / 1e9) };
}

function steady(rate, seconds, other) {
  const paths = [path, other];
  const at = [];
  const end = nowNs() + BigInt(Math.round(seconds * 1e9));
  for (let turn = 0; nowNs() < end; turn += 1) {
    const here = paths[turn % 2];
    if (existsSync(join(dirname(here), '.primary'))) {
      sleepMs(1);
      continue;
    }
    let connection;
    try {
      connection = new Database(here, { timeout: 5000, fileMustExist: true });
      const insert = connection.prepare('INSERT INTO t(body) VALUES (?)');
      while (nowNs() < end) {
        insert.run('x'.repeat(200));
        at.push(performance.timeOrigin + performance.now());
        sleepMs(1000 / rate);
      }
    } catch {
      // A replica now: the other one takes writes, or will in a moment.
    } finally {
      connection?.close();
    }
  }
  return { at };
}

const results = {
  commits: () => commits(args[0], Number(args[1]), Number(args[2])),
  paced: () => paced(Number(args[0]), Number(args[1])),
  reads: () => reads(Number(args[0])),
  steady: () => steady(Number(args[0]), Number(args[1]), args[2]),
  watch: () => watch(Number(args[0])),
};
const result = results[workload]();
database?.close();
console.log(JSON.stringify(result));
