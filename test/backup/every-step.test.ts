import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, expect, it } from 'vitest';
import type { BackupStatus } from '../../src/observability/node-status.js';
import { sqlite, TestCluster, type TestNode } from '../helpers/cluster.js';
import { litestreamRestore } from '../helpers/litestream.js';
import { TestMinio } from '../helpers/minio.js';
import { Random } from '../simulation/random.js';

/**
 * kill -9 at every step of upload, compaction, snapshot, retention and restore, and moments out of a recorded history. By default some of the
 * steps (SEED repeats them); `npm run backup-steps` takes all of them, and PIECE=2/5 the second fifth.
 */

const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000);
const KILLS = Number(process.env['STEPS'] ?? 4);
const MOMENTS = Number(process.env['MOMENTS'] ?? 10);
const isLong = KILLS > 20;
const [PIECE = 1, PIECES = 1] = (process.env['PIECE'] ?? '1/1').split('/').map(Number);
const PRELOAD = fileURLToPath(new URL('kill-at-step.mjs', import.meta.url));
const RESTORE = fileURLToPath(new URL('restore-noting.mjs', import.meta.url));
const MOMENTS_PROGRAM = fileURLToPath(new URL('restore-moments.mjs', import.meta.url));
const SUM = 'SELECT count(*), sum(id), total(length(b)) FROM t';

const dir = mkdtempSync(join(tmpdir(), 'kitefs-steps-'));
const random = new Random(SEED);
const below = (limit: number): number => Math.floor(random.next() * limit);
const cleanups: (() => Promise<unknown> | void)[] = [() => rmSync(dir, { recursive: true, force: true })];
afterAll(async () => {
  for (const cleanup of cleanups.toReversed()) await cleanup();
});

/** Steps are shared out by their names: some are met only later. */
const pieceOf = (name: string): number =>
  1 + (createHash('sha1').update(name).digest().readUInt32BE(0) % PIECES);

/** The steps that a program makes, and at which of them it is killed next. */
class Steps {
  readonly dir: string;
  readonly done = new Set<string>();

  constructor(name: string) {
    this.dir = join(dir, name);
    mkdirSync(this.dir);
    writeFileSync(join(this.dir, 'steps'), '');
  }

  env(program: string): NodeJS.ProcessEnv {
    return { NODE_OPTIONS: `--import=${PRELOAD}`, KILL_DIR: this.dir, KILL_IN: program };
  }

  get all(): { name: string; object: string }[] {
    const lines = readFileSync(join(this.dir, 'steps'), 'utf8').trim().split('\n');
    return lines.map((line) => {
      const [name = '', object = ''] = line.split('\t');
      return { name, object };
    });
  }

  /** One of this piece at which nobody was killed yet; undefined when there is none. */
  next(): string | undefined {
    const left = [...new Set(this.all.map(({ name }) => name))].filter(
      (name) => name && !this.done.has(name) && pieceOf(name) === PIECE,
    );
    const name = left.toSorted()[below(Math.max(1, left.length))];
    if (isLong)
      process.stderr.write(
        `${Math.round(performance.now() / 1000)} s, ${basename(this.dir)}: ${this.done.size} steps done, ${left.length} left; next: ${name ?? 'none'}\n`,
      );
    if (name === undefined) return undefined;
    this.done.add(name);
    writeFileSync(join(this.dir, 'target'), name);
    return name;
  }

  /** Nobody has come by the step yet. */
  get waits(): boolean {
    return existsSync(join(this.dir, 'target'));
  }

  /** Gives the step up; false when it has killed. */
  forget(): boolean {
    const { waits } = this;
    rmSync(join(this.dir, 'target'), { force: true });
    return waits;
  }
}

/** A state that the node has said to be in every bucket. */
interface State {
  readonly beforeMs: number;
  readonly afterMs: number;
  readonly txid: string;
  readonly sum: string;
}

const history: State[] = [];

async function step(node: TestNode): Promise<void> {
  const beforeMs = Date.now();
  const bytes = 100 + below(isLong ? 300_000 : 9000);
  const sum = await node.sql('app.db', `INSERT INTO t(b) VALUES (randomblob(${bytes}))`, SUM);
  const afterMs = Date.now();
  const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=30000`, { method: 'POST' });
  if (!answer.ok) throw new Error(await answer.text());
  const { backups } = (await answer.json()) as { backups: readonly BackupStatus[] };
  const txid = backups[0]!.databases[0]!.txid;
  history.push({ beforeMs, afterMs, txid, sum });
}

it(`ships everything once, whatever kills the process at whichever step (seed ${SEED})`, async () => {
  const minio = await TestMinio.start(['backups']);
  cleanups.push(() => minio.stop());
  const steps = new Steps('ship');
  const quick = {
    'sync-interval': '10ms',
    levels: [{ interval: '300ms' }, { interval: '900ms' }],
    'l0-retention': '300ms',
    snapshot: { interval: '700ms', retention: '1200ms' },
  };
  const kept = join(dir, 'kept');
  const pruned = join(dir, 'pruned');
  const s3 = {
    type: 's3',
    bucket: 'backups',
    path: 'app',
    endpoint: minio.endpoint,
    'access-key-id': minio.env.AWS_ACCESS_KEY_ID,
    'secret-access-key': minio.env.AWS_SECRET_ACCESS_KEY,
  };
  const cluster = await TestCluster.start({
    nodes: 1,
    env: steps.env('backup/main\\.js$'),
    config: {
      backups: [
        { type: 'file', path: kept, ...quick, retention: { enabled: false } },
        { type: 'file', path: pruned, ...quick },
        { ...s3, ...quick },
      ],
    },
  });
  cleanups.push(() => cluster.stop());
  const node = cluster.node(1);
  await node.sql('app.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(id INTEGER PRIMARY KEY, b)');
  const known = (name: string): boolean => steps.all.some((one) => one.name === name);
  while (!known('rm level 0.') || !known('DeleteObjects level 0.') || !known('PutObject level 9.'))
    await step(node);
  for (let kills = 0; kills < KILLS && steps.next() !== undefined; kills += 1) {
    // A rare one (a name of the head that goes) may not come again: the next one then.
    for (const limitMs = Date.now() + 3000; steps.waits && Date.now() < limitMs;) await step(node);
    if (steps.forget()) kills -= 1;
  }
  await step(node);
  await step(node);
  expect(node.log(), 'no set of all pages was needed').not.toContain('backup-resync');
  await node.stop();

  // Nothing twice but what was in flight when it was killed, nothing skipped.
  const sent = new Map<string, number>();
  for (const { name, object } of steps.all)
    if (/^(link|PutObject) level \d:$/.test(name)) sent.set(object, (sent.get(object) ?? 0) + 1);
  const again = [...sent.values()].reduce((sum, count) => sum + count - 1, 0);
  expect(again, 'objects that were made more than once').toBeLessThanOrEqual(3 * steps.done.size);
  const names = readdirSync(join(kept, 'app.db/ltx/0'))
    .filter((name) => !name.startsWith('.'))
    .toSorted();
  expect(names).toEqual(
    names.map(
      (_, i) => `${(i + 1).toString(16).padStart(16, '0')}-${(i + 1).toString(16).padStart(16, '0')}.ltx`,
    ),
  );

  // The newest state from everywhere, by both programs; every state that was said to be there from where nothing is removed.
  const last = history.at(-1)!;
  const url = `s3://backups/app/app.db?endpoint=${encodeURIComponent(minio.endpoint)}&region=us-east-1`;
  for (const [i, place] of [`file://${kept}/app.db`, `file://${pruned}/app.db`, url].entries()) {
    const path = join(dir, `theirs-${i}.db`);
    await litestreamRestore(place, path, [], minio.env);
    expect(await sqlite(path, SUM), place).toBe(last.sum);
  }
  const some = history.filter(() => below(history.length) < MOMENTS);
  await restoreAll(
    `file://${kept}/app.db`,
    'txids',
    some.map(({ txid }) => `x${txid}`),
  );
  for (const { txid, sum } of some)
    expect(await sqlite(join(dir, 'txids', `x${txid}.db`), SUM), txid).toBe(sum);

  // Moments between the commits, and in the middle of one: it may be there or not.
  const first = history[0]!;
  const moments = Array.from({ length: MOMENTS }, () => first.afterMs + below(last.afterMs - first.afterMs));
  await restoreAll(`file://${kept}/app.db`, 'moments', moments.map(String));
  for (const moment of moments) {
    const at = history.findLastIndex(({ afterMs }) => afterMs <= moment);
    const right = [history[at]!.sum];
    const next = history[at + 1];
    if (next && next.beforeMs <= moment) right.push(next.sum);
    expect(right, String(moment)).toContain(await sqlite(join(dir, 'moments', `${moment}.db`), SUM));
  }
  // What retention has left must lead to the states as they were, too.
  const { stdout } = await promisify(execFile)(process.execPath, [
    join(process.cwd(), 'dist/cli/main.js'),
    'drill',
    `file://${pruned}/app.db`,
  ]);
  expect(JSON.parse(stdout)).toMatchObject({ ok: true });
  if (isLong) console.log(`killed at ${steps.done.size} steps:\n${[...steps.done].toSorted().join('\n')}`);
});

async function restoreAll(url: string, folder: string, moments: readonly string[]): Promise<void> {
  mkdirSync(join(dir, folder));
  await promisify(execFile)(process.execPath, [MOMENTS_PROGRAM, url, join(dir, folder), ...moments]);
}

it(`restores after a kill at whichever step of a restore (seed ${SEED})`, async () => {
  const url = `file://${join(dir, 'pruned')}/app.db`;
  const output = join(dir, 'out/app.db');
  mkdirSync(join(dir, 'out'));
  const steps = new Steps('restore');
  const restore = async (): Promise<string | null> => {
    const env = { ...process.env, ...steps.env('restore-noting') };
    const child = spawn(process.execPath, [RESTORE, url, output], {
      env,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
    if (signal !== 'SIGKILL') expect(code).toBe(0);
    return signal;
  };
  const expected = history.at(-1)!.sum;
  for (let kills = -1; kills < KILLS && (kills < 0 || steps.next() !== undefined); kills += 1) {
    const signal = await restore();
    if (kills >= 0) expect(signal).toBe('SIGKILL');
    // Killed at its last step it is done, and the file is there: nothing is written over it.
    if (signal && !existsSync(output)) expect(await restore()).toBeNull();
    expect(await sqlite(output, 'PRAGMA integrity_check', SUM)).toBe(`ok\n${expected}`);
    rmSync(join(dir, 'out'), { recursive: true });
    mkdirSync(join(dir, 'out'));
  }
});
