import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { generator } from '../equivalence/statements.js';

/**
 * kill -9 of the daemon, the applier and the application, again and again under load. Nothing hangs, nothing
 * whose COMMIT returned is lost, and the replica is equal. Only node 1 may be primary, so what it had
 * committed must be there when it is started again. KILLS=100 is the campaign (`npm run chaos`).
 */
const KILLS = Number(process.env['KILLS'] ?? 9);
const SEED = Number(process.env['SEED'] ?? Math.floor(Math.random() * 1_000_000));
const WRITER = fileURLToPath(new URL('writer.mjs', import.meta.url));
const VICTIMS = ['daemon', 'application', 'applier'] as const;

class Writer {
  readonly #child: ChildProcess;
  readonly ended: Promise<unknown>;
  begun = 0;
  done = 0;
  /** What it said before it ended by itself. */
  failure: string | undefined;

  constructor(path: string, from: number, synchronous: string, journalMode: string) {
    this.begun = from - 1;
    this.done = from - 1;
    this.#child = spawn(process.execPath, [WRITER, path, String(from), synchronous, journalMode], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let rest = '';
    this.#child.stdout?.on('data', (text: Buffer) => {
      const lines = (rest + text.toString()).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const [word, n] = line.split(' ');
        if (word === 'begin') this.begun = Number(n);
        if (word === 'done') this.done = Number(n);
      }
    });
    let complaint = '';
    this.#child.stderr?.on('data', (text: Buffer) => (complaint += text.toString()));
    this.#child.once('close', (code) => {
      if (code !== null) this.failure = `the writer ended with ${code}: ${complaint}`;
    });
    // `close`, not `exit`: what it has said is only complete then.
    this.ended = once(this.#child, 'close');
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}

const lastRow = async (node: TestNode): Promise<number> =>
  Number(await node.sql('app.db', 'SELECT max(n) FROM t'));

it(
  `loses nothing in ${KILLS} kills`,
  async () => {
    console.log(`kills: SEED=${SEED} KILLS=${KILLS}`);
    const next = generator(SEED);
    const cluster = await TestCluster.start({ nodes: 1 });
    let inFlight = 0;
    try {
      const primary = cluster.node(1);
      const replica = await cluster.add({ candidate: false });
      await primary.sql(
        'app.db',
        'PRAGMA journal_mode=wal',
        'CREATE TABLE t(n INTEGER PRIMARY KEY, body)',
        'INSERT INTO t VALUES (0, 1)',
      );
      await cluster.caughtUp('app.db');

      let from = 1;
      for (let kill = 0; kill < KILLS; kill += 1) {
        const victim = VICTIMS[kill % VICTIMS.length] ?? 'daemon';
        const synchronous = ['NORMAL', 'FULL', 'OFF'][next(3)] ?? 'NORMAL';
        const journalMode = next(4) === 0 ? 'delete' : 'wal';
        const writer = new Writer(primary.path('app.db'), from, synchronous, journalMode);
        const target = from + 20 + next(400);
        await waitFor(
          () => `row ${target}, now ${writer.done}; ${primary.logTail()}`,
          () => {
            if (writer.failure !== undefined) throw new Error(`${writer.failure}\n${primary.logTail()}`);
            return writer.done >= target;
          },
        );
        await sleep(next(20));

        if (victim === 'daemon') await primary.kill();
        if (victim === 'application') writer.kill();
        if (victim === 'applier') process.kill(await replica.applierPid(), 'SIGKILL');
        const had = await lastRow(replica);
        if (victim === 'applier') writer.kill();
        await writer.ended;
        if (had < writer.begun) inFlight += 1;

        if (victim === 'daemon') await primary.start();
        const rows = await primary.sql('app.db', `SELECT count(*), max(n) FROM t`);
        const [count, max] = rows.split('|').map(Number);
        const what = `kill ${kill} of the ${victim}, ${journalMode}, synchronous=${synchronous}`;
        expect(max, `${what}: the last row whose COMMIT returned`).toBeGreaterThanOrEqual(writer.done);
        expect(count, `${what}: rows without holes`).toBe((max ?? 0) + 1);
        from = (max ?? 0) + 1;
        await cluster.assertSame('app.db');
      }
      console.log(`kills: ${KILLS} done, ${inFlight} with a transaction that the replica did not have yet`);
      expect(inFlight).toBeGreaterThan(0);
    } finally {
      await cluster.stop();
    }
  },
  60_000 + KILLS * 30_000,
);
