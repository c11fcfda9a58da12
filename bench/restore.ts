/**
 * Restoring a database of 1.5 GB from a MinIO on this machine, by `kitefs restore` and by `litestream restore`, from the bucket that Litestream
 * wrote, one after the other in each round: `npm run bench restore`. MEGABYTES changes the size. Prints seconds, MB/s and the largest resident
 * memory of each.
 */
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { litestreamProgram, shipOnce } from '../test/helpers/litestream.js';
import { TestMinio } from '../test/helpers/minio.js';
import { measure, type Measured } from './measure.js';

const ROUNDS = Number(process.env['ROUNDS'] ?? 3);
const MEGABYTES = Number(process.env['MEGABYTES'] ?? 1500);

/** Text such as applications keep: half of it compresses away. */
function makeDatabase(path: string): void {
  const db = new Database(path);
  db.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 4000;
    CREATE TABLE notes (id INTEGER PRIMARY KEY, author TEXT, created TEXT, body TEXT)`);
  const insert = db.prepare('INSERT INTO notes VALUES (?, ?, ?, ?)');
  const words = 'the quick brown fox jumps over a lazy dog and orders twelve boxes of grey paper'.split(' ');
  let seed = 1;
  const random = (below: number): number => (seed = (Math.imul(seed, 48271) >>> 0) % 0x7fffffff) % below;
  const bodies = Array.from({ length: 500 }, () =>
    Array.from({ length: 60 + random(200) }, () => words[random(words.length)] + String(random(1000))).join(
      ' ',
    ),
  );
  for (let id = 1; statSync(path).size < MEGABYTES * 1e6;) {
    db.transaction(() => {
      for (let i = 0; i < 5000; i += 1, id += 1)
        insert.run(
          id,
          `user${random(9e5)}@example.com`,
          new Date(1.6e12 + random(1e9)).toISOString(),
          bodies[random(500)],
        );
    })();
  }
  db.pragma('wal_checkpoint(TRUNCATE)');
  db.close();
}

const dir = mkdtempSync(join(tmpdir(), 'kitefs-bench-restore-'));
const minio = await TestMinio.start(['bench']);
try {
  const source = join(dir, 'source.db');
  makeDatabase(source);
  const sizeMb = statSync(source).size / 1e6;
  const replica = {
    type: 's3',
    bucket: 'bench',
    path: 'db',
    endpoint: minio.endpoint,
    'force-path-style': true,
  };
  await shipOnce(dir, source, replica, minio.env);
  const env: NodeJS.ProcessEnv = { ...process.env, ...minio.env };
  delete env['AWS_CA_BUNDLE'];
  const url = `s3://bench/db?endpoint=${encodeURIComponent(minio.endpoint)}&region=us-east-1`;
  const programs: Record<string, [string, ...string[]]> = {
    kitefs: [process.execPath, join(process.cwd(), 'dist/cli/main.js')],
    litestream: [litestreamProgram()],
  };
  const results = new Map<string, Measured[]>();
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const [name, [command, ...first]] of Object.entries(programs)) {
      const output = join(dir, 'restored.db');
      const measured = await measure(command, [...first, 'restore', '-o', output, url], env);
      results.set(name, [...(results.get(name) ?? []), measured]);
      rmSync(output);
    }
  }
  const median = (values: readonly number[]): number =>
    values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
  const secondsOf = (name: string): number => median((results.get(name) ?? []).map(({ seconds }) => seconds));
  console.log(`\nRestore of ${sizeMb.toFixed(0)} MB from MinIO on this machine`);
  console.table(
    [...results].map(([name, measured]) => ({
      program: name,
      seconds: secondsOf(name).toFixed(1),
      'MB/s': (sizeMb / secondsOf(name)).toFixed(0),
      'of litestream': (secondsOf('litestream') / secondsOf(name)).toFixed(2),
      'peak MB': Math.max(...measured.map(({ peakMb }) => peakMb)).toFixed(0),
      target: name === 'kitefs' ? '2 × litestream, 200 MB' : '',
    })),
  );
} finally {
  await minio.stop();
  rmSync(dir, { recursive: true, force: true });
}
