import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';

const TTL_MS = 5000;
const NODES = ['a', 'b', 'c'];

interface Write {
  readonly node: string;
  readonly epoch: bigint;
  readonly from: bigint;
  readonly to: bigint;
}

let dir: string;
const running = new Map<string, ChildProcess>();

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-lease-'));
});

afterEach(async () => {
  await Promise.all([...running.keys()].map((node) => end(node, 'SIGKILL')));
  rmSync(dir, { recursive: true, force: true });
});

function start(node: string): void {
  const args = [join(import.meta.dirname, 'node.mjs'), resolve('dist'), dir, node, String(TTL_MS)];
  running.set(node, spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit'] }));
}

async function end(node: string, signal: NodeJS.Signals): Promise<void> {
  const child = running.get(node)!;
  running.delete(node);
  const exited = once(child, 'exit');
  child.kill(signal);
  await exited;
}

const lines = (node: string, kind: string): string[] => {
  const path = join(dir, `${node}.${kind}`);
  // The last piece is empty, or a line that is being written.
  return existsSync(path) ? readFileSync(path, 'utf8').split('\n').slice(0, -1) : [];
};

const writes = (): Write[] =>
  NODES.flatMap((node) =>
    lines(node, 'writes').map((line) => {
      const [epoch, from, to] = line.split(' ').map(BigInt) as [bigint, bigint, bigint];
      return { node, epoch, from, to };
    }),
  ).toSorted((one, other) => (one.from < other.from ? -1 : 1));

async function until<T>(what: string, find: () => T | undefined, limitMs = 60_000): Promise<T> {
  const endMs = performance.now() + limitMs;
  while (performance.now() < endMs) {
    const found = find();
    if (found !== undefined) return found;
    await sleep(50);
  }
  const story = NODES.map((node) => `${node}:\n${lines(node, 'events').join('\n')}`).join('\n');
  throw new Error(`${what} did not happen in ${limitMs} ms\n${story}`);
}

/** The first write under a later epoch than the given one. */
const successor = (after: Write, limitMs?: number): Promise<Write> =>
  until(
    `a write after epoch ${after.epoch}`,
    () => writes().find((write) => write.epoch > after.epoch),
    limitMs,
  );

test('of three processes one writes at any time, through kill -9, SIGSTOP and a clean stop of the writer', async () => {
  for (const node of NODES) start(node);
  const first = await until('a first write', () => writes()[0]);

  // Its lock is free as soon as it is dead: nobody waits for the ttl.
  const killedNs = process.hrtime.bigint();
  await end(first.node, 'SIGKILL');
  const second = await successor(writes().findLast((write) => write.node === first.node)!);
  expect(Number(second.from - killedNs) / 1e6).toBeLessThan(TTL_MS);
  start(first.node);
  await until('the killed node follows', () =>
    lines(first.node, 'events').findLast((line) => line.startsWith(`replica ${second.epoch} `)),
  );

  // A stopped process keeps its lock and may wake at any time: its deadline must pass. Stopped by chance
  // within its transaction on the lease file it holds everybody up (decision 003): then once more.
  const stoppedNs = process.hrtime.bigint();
  let third: Write | undefined;
  for (let tries = 0; !third && tries < 4; tries += 1) {
    running.get(second.node)!.kill('SIGSTOP');
    third = await successor(second, 12_000).catch(() => undefined);
    if (!third) running.get(second.node)!.kill('SIGCONT');
  }
  if (!third) throw new Error('nobody took over from the stopped process');
  expect(third.from).toBeGreaterThan(stoppedNs);
  const { epoch } = third;
  running.get(second.node)!.kill('SIGCONT');
  await until('the stopped node follows', () =>
    lines(second.node, 'events').findLast((line) => line.startsWith(`replica ${epoch} `)),
  );

  await end(third.node, 'SIGTERM');
  const fourth = await successor(third);
  await until('a second write of the fourth epoch', () =>
    writes().findLast((write) => write.epoch === fourth.epoch && write.from > fourth.to),
  );

  const all = writes();
  for (const [index, write] of all.entries()) {
    const before = all[index - 1];
    if (!before || before.node === write.node) continue;
    expect(write.from).toBeGreaterThan(before.to);
    expect(write.epoch).toBeGreaterThan(before.epoch);
  }
});
