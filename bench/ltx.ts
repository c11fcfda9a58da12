/**
 * How fast LTX files are written and read, on one core, with the pages of a real SQLite database: `npm run bench ltx`. Prints a table; compare
 * with Go's ltx on the same machine by `ltx encode-db` and `ltx verify`, one core (GOMAXPROCS=1).
 */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { DatabaseChecksum } from '../src/ltx/checksum.js';
import { LtxDecoder } from '../src/ltx/decoder.js';
import { LtxEncoder } from '../src/ltx/encoder.js';

const ROWS = 600_000;
const ROUNDS = 5;

/** A database such as applications have: ids, names, times, some free text, two indexes. */
function makeDatabase(path: string): void {
  const db = new Database(path);
  db.exec(`PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
    CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, email TEXT, total REAL, state TEXT, created TEXT, note TEXT);
    CREATE INDEX orders_customer ON orders (customer); CREATE INDEX orders_created ON orders (created);`);
  const insert = db.prepare('INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)');
  const words = 'the quick brown fox jumps over a lazy dog and orders twelve boxes of grey paper'.split(' ');
  let seed = 1;
  const random = (below: number): number => (seed = (Math.imul(seed, 48271) >>> 0) % 0x7fffffff) % below;
  db.transaction(() => {
    for (let id = 1; id <= ROWS; id++) {
      const customer = `customer ${random(50_000)}`;
      const note = Array.from({ length: random(12) }, () => words[random(words.length)]).join(' ');
      const created = new Date(1.6e12 + random(1e9) * 100).toISOString();
      const state = ['new', 'paid', 'sent', 'returned'][random(4)];
      insert.run(id, customer, `user${random(90_000)}@example.com`, random(1e6) / 100, state, created, note);
    }
  })();
  db.close();
}

/** Best of a few rounds, in seconds: the machine has other things to do. */
function best(work: () => void): number {
  let seconds = Infinity;
  for (let round = 0; round < ROUNDS; round++) {
    const start = process.hrtime.bigint();
    work();
    seconds = Math.min(seconds, Number(process.hrtime.bigint() - start) / 1e9);
  }
  return seconds;
}

const directory = mkdtempSync(join(tmpdir(), 'kitefs-bench-ltx-'));
try {
  const databasePath = join(directory, 'database');
  const ltxPath = join(directory, 'snapshot.ltx');
  makeDatabase(databasePath);
  const database = readFileSync(databasePath);
  const commitPages = database.length / 4096;
  const page = (pgno: number): Buffer => database.subarray((pgno - 1) * 4096, pgno * 4096);
  const encoder = new LtxEncoder();
  const halves = new Uint32Array(2);

  let sizeBytes = 0;
  const encode = (sink: (chunk: Buffer) => void): void => {
    const checksum = new DatabaseChecksum();
    const header = { pageSize: 4096, commitPages, timestampMs: 0, preApplyChecksum: 0n };
    encoder.begin({ ...header, minTxid: 1n, maxTxid: 1n }, sink);
    for (let pgno = 1; pgno <= commitPages; pgno++) {
      encoder.addPage(pgno, page(pgno), halves, 0);
      checksum.toggle(halves[0]!, halves[1]!);
    }
    ({ sizeBytes } = encoder.end(checksum.value));
  };
  const encodeSeconds = best(() => encode(() => undefined));
  const output = openSync(ltxPath, 'w');
  encode((chunk) => writeSync(output, chunk));
  closeSync(output);

  const decode = (exact: boolean) => (): void => {
    const input = openSync(ltxPath, 'r');
    const ltx = LtxDecoder.fromFile(input, { exact });
    while (ltx.next());
    closeSync(input);
  };
  const decodeSeconds = best(decode(false));
  const exactSeconds = best(decode(true));

  const small = 20_000;
  const smallSeconds = best(() => {
    for (let i = 0; i < small; i++) {
      const header = { pageSize: 4096, commitPages, timestampMs: 0, preApplyChecksum: 1n << 63n };
      encoder.begin({ ...header, minTxid: 7n, maxTxid: 7n }, () => undefined);
      encoder.addPage(1, page(1), halves, 0);
      encoder.addPage(2 + (i % (commitPages - 2)), page(2 + (i % (commitPages - 2))), halves, 0);
      encoder.end(1n << 63n);
    }
  });

  const megabytes = database.length / 1e6;
  const rate = (seconds: number): string => `${(megabytes / seconds).toFixed(0)} MB/s`;
  console.log(`| ${megabytes.toFixed(0)} MB of 4096-byte pages, best of ${ROUNDS} | |\n|---|---|`);
  console.log(`| encode, page checksums included | ${rate(encodeSeconds)} |`);
  console.log(`| decode and verify, page checksums included | ${rate(decodeSeconds)} |`);
  console.log(`| verify, exact | ${rate(exactSeconds)} |`);
  console.log(`| encode a transaction of 2 pages | ${((smallSeconds / small) * 1e6).toFixed(1)} us |`);
  console.log(`| compressed to | ${((sizeBytes / database.length) * 100).toFixed(1)} % |`);
} finally {
  rmSync(directory, { recursive: true });
}
