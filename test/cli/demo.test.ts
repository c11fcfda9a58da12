import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { NodeStatus } from '../../src/observability/node-status.js';
import { run, sqlite, waitFor } from '../helpers/cluster.js';
import { CLI } from './run-cli.js';

let dir: string;
let demo: ChildProcess | undefined;
let output = '';

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-app-demo-'));
});
afterEach(async () => {
  if (demo) await stop('SIGTERM');
  // Only for a test that failed half-way.
  for (const mount of mounts()) await run('umount', ['-l', mount]);
  rmSync(dir, { recursive: true, force: true });
});

async function start(): Promise<void> {
  output = '';
  const child = spawn(process.execPath, [CLI, 'demo', '--dir', dir, '--nodes', '2'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  demo = child;
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text: Buffer) => (output += text.toString()));
  await waitFor(
    () => `the demo to be up; it says:\n${output}`,
    () => {
      if (child.exitCode !== null) throw new Error(`the demo ended:\n${output}`);
      return output.includes('Ctrl-C unmounts');
    },
  );
}

async function stop(signal: NodeJS.Signals): Promise<number | null> {
  const child = demo;
  demo = undefined;
  if (!child || child.exitCode !== null) return child?.exitCode ?? null;
  const ended = once(child, 'close');
  child.kill(signal);
  await ended;
  return child.exitCode;
}

const mounts = (): string[] =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((path) => path.startsWith(`${dir}/`));

/** The node that the demo says is primary, and another one. */
function roles(): { primary: string; replica: string } {
  const role = (what: string): string => new RegExp(`^ {2}(node\\d) {2}${what}`, 'm').exec(output)?.[1] ?? '';
  return { primary: role('primary'), replica: role('replica') };
}

async function statusOf(node: string): Promise<NodeStatus | undefined> {
  const url = new RegExp(`${node} .*(http://\\S+)`).exec(output)?.[1];
  const answer = await fetch(url ?? '').catch(() => undefined);
  return answer?.ok ? ((await answer.json()) as NodeStatus) : undefined;
}

const rows = async (node: string): Promise<string> =>
  await sqlite(join(dir, node, 'app.db'), 'SELECT group_concat(x) FROM t').catch(String);

describe('kitefs demo', () => {
  it('mounts a primary and a replica, finds its data again, and leaves only that', async () => {
    await start();
    expect(roles()).toEqual({ primary: 'node1', replica: 'node2' });
    await sqlite(join(dir, 'node1', 'app.db'), 'CREATE TABLE t (x)', 'INSERT INTO t VALUES (1)');
    await waitFor('the row on the replica', async () => (await rows('node2')) === '1');
    expect(await stop('SIGINT')).toBe(0);
    expect(readdirSync(dir).toSorted()).toEqual(['config', 'data', 'logs']);
    expect(mounts()).toEqual([]);

    await start();
    const { primary, replica } = roles();
    await sqlite(join(dir, primary, 'app.db'), 'INSERT INTO t VALUES (2)');
    await waitFor('both rows on the replica', async () => (await rows(replica)) === '1,2');
    expect(await stop('SIGINT')).toBe(0);
  });

  it('starts a killed node again and says who is primary then', async () => {
    await start();
    await sqlite(join(dir, 'node1', 'app.db'), 'CREATE TABLE t (x)', 'INSERT INTO t VALUES (1)');
    await waitFor('the row on the replica', async () => (await rows('node2')) === '1');
    const config = join(dir, 'config', 'node1', 'kitefs.yml');
    process.kill(pidOf(config), 'SIGKILL');
    await waitFor('the demo to notice', () => output.includes('node1 ended (SIGKILL); starting it again'));
    await waitFor('a primary that both follow', async () => {
      const both = await Promise.all([statusOf('node1'), statusOf('node2')]);
      return both.every((status) => status?.ready) && both.some((status) => status?.role === 'primary');
    });
    await waitFor('the row on the node that was killed', async () => (await rows('node1')) === '1');
    expect(await stop('SIGTERM')).toBe(0);
    expect(existsSync(join(dir, 'node1'))).toBe(false);
  });
});

/** The `kitefs mount` process with that configuration file. */
function pidOf(configFile: string): number {
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const words = readFileSync(`/proc/${entry}/cmdline`, 'utf8').split('\0');
      if (words.includes('mount') && words.includes(configFile)) return Number(entry);
    } catch {
      // A process that ended meanwhile.
    }
  }
  throw new Error(`nobody runs ${configFile}`);
}
