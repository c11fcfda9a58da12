import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { TestCluster, sqlite, waitFor } from '../helpers/cluster.js';
import { BALANCE, SETUP, type Step, steps } from './statements.js';

/**
 * The same stream of statements on plain SQLite and on a mount: the same rows in both, the same bytes on
 * each replica, and no snapshot of the replica that breaks the invariant. SEED=n repeats a stream, STEPS=n
 * makes it longer (`npm run equivalence`).
 */
const STEPS = Number(process.env['STEPS'] ?? 60);
const READER = fileURLToPath(new URL('snapshot-reader.mjs', import.meta.url));

async function runStep(dir: string, step: Step): Promise<string> {
  const child = spawn('sqlite3', ['-cmd', '.timeout 30000', 'main.db'], {
    cwd: dir,
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  let output = '';
  child.stdout.on('data', (text: Buffer) => (output += text.toString()));
  child.stderr.on('data', (text: Buffer) => (output += text.toString()));
  const ended = once(child, 'exit');
  child.stdin.on('error', () => undefined);
  if (step.killed) {
    child.stdin.write(`${step.sql}\n.print READY\n`);
    await waitFor(
      () => `the shell to have run:\n${step.sql}\n${output}`,
      () => output.includes('READY') || child.exitCode !== null,
    );
    child.kill('SIGKILL');
  } else {
    child.stdin.end(`${step.sql}\n`);
  }
  await ended;
  return output;
}

function startReader(path: string): { child: ChildProcess; result: Promise<string> } {
  const child = spawn(process.execPath, [READER, path, String(BALANCE)], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  child.stdout.on('data', (text: Buffer) => (output += text.toString()));
  child.stderr.on('data', (text: Buffer) => (output += text.toString()));
  return { child, result: once(child, 'exit').then(() => output) };
}

it.each(['kernel', 'fuse-native'] as const)(
  'gives the rows of plain SQLite and equal replicas with the %s driver',
  async (driver) => {
    const seed = Number(process.env['SEED'] ?? Math.floor(Math.random() * 1_000_000));
    console.log(`equivalence: ${driver}, SEED=${seed} STEPS=${STEPS}`);
    const cluster = await TestCluster.start({ driver });
    try {
      const plain = join(cluster.dir, 'plain');
      mkdirSync(plain);
      const [primary, replica] = [cluster.node(1), cluster.node(2)];
      for (const dir of [plain, primary.mountDir]) {
        await sqlite(join(dir, 'main.db'), 'PRAGMA journal_mode=wal', SETUP);
        await sqlite(join(dir, 'other.db'), SETUP);
      }
      await cluster.caughtUp('main.db');
      const reader = startReader(replica.path('main.db'));

      for (const step of steps(seed, STEPS)) {
        const expected = await runStep(plain, step);
        const got = await runStep(primary.mountDir, step);
        expect({ what: step.what, sql: step.sql, output: got }).toEqual({
          what: step.what,
          sql: step.sql,
          output: expected,
        });
      }

      for (const name of readdirSync(plain).filter((file) => file.endsWith('.db'))) {
        expect(await primary.sql(name, '.dump'), name).toBe(await sqlite(join(plain, name), '.dump'));
        await cluster.assertSame(name);
      }
      reader.child.kill('SIGTERM');
      const seen = JSON.parse(await reader.result) as { reads: number; wrong: unknown[] };
      expect(seen.wrong).toEqual([]);
      expect(seen.reads).toBeGreaterThan(10);
    } finally {
      await cluster.stop();
    }
  },
  60_000 + STEPS * 4000,
);
