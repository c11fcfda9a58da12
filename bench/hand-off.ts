import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { run, TestCluster } from '../test/helpers/cluster.js';

const HAND_OFFS = 12;
const RATE = 200;
const PAUSE_MS = 1000;

/** The longest time without an acknowledged commit in each of some hand-offs, ms, ascending, under a steady writer. */
export async function benchHandOff(): Promise<number[]> {
  const cluster = await TestCluster.start({ config: { log: { level: 'warn' } } });
  const nodes = [cluster.node(1), cluster.node(2)] as const;
  await nodes[0].sql('b.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(id INTEGER PRIMARY KEY, body)');
  await cluster.caughtUp('b.db');
  const seconds = (HAND_OFFS + 4) * 2;
  const args = ['steady', nodes[0].path('b.db'), RATE, seconds, nodes[1].path('b.db')].map(String);
  const writing = promisify(execFile)(process.execPath, [join(process.cwd(), 'bench/client.mjs'), ...args], {
    maxBuffer: 1 << 26,
  });
  await sleep(2 * PAUSE_MS);
  const spans: [number, number][] = [];
  for (let round = 0; round < HAND_OFFS; round += 1) {
    const from = Date.now();
    const url = `http://127.0.0.1:${nodes[(round + 1) % 2]!.httpPort}`;
    await run(process.execPath, [join(process.cwd(), 'dist/cli/main.js'), 'promote', '--url', url]);
    await sleep(PAUSE_MS / 2);
    spans.push([from, Date.now()]);
  }
  const { at } = JSON.parse((await writing).stdout) as { at: number[] };
  await cluster.assertSame('b.db');
  await cluster.stop();
  return spans
    .map(([from, to]) => {
      const within = at.filter((ms) => ms >= from && ms <= to);
      return Math.max(...within.map((ms, i) => ms - (within[i - 1] ?? ms)));
    })
    .toSorted((a, b) => a - b);
}
