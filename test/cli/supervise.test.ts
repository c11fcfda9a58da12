import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { waitFor } from '../helpers/cluster.js';

const FIXTURE = fileURLToPath(new URL('supervise.fixture.mjs', import.meta.url));

interface Options {
  commands: readonly ({ cmd: string; ifCandidate?: boolean } | { argv: string[] })[];
  candidate?: boolean;
  graceMs?: number;
}

type Report = { guard?: number; group?: number | null; code?: number | null };

let dir: string;
let running: ChildProcess[] = [];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-app-supervise-'));
});
afterEach(() => {
  for (const child of running) child.kill('SIGKILL');
  running = [];
  rmSync(dir, { recursive: true, force: true });
});

/** A process that supervises `commands`, and what it reports. */
function supervise(options: Options): { child: ChildProcess; reports: Report[]; ended: Promise<unknown> } {
  const child = spawn(process.execPath, [FIXTURE, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  running.push(child);
  const reports: Report[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => {
    if (line.startsWith('{')) reports.push(JSON.parse(line) as Report);
  });
  return { child, reports, ended: once(child, 'close') };
}

async function codeOf(options: Options): Promise<number | null | undefined> {
  const { reports, ended } = supervise(options);
  await ended;
  return reports.at(-1)?.code;
}

const alive = (pid: number): boolean => {
  try {
    // A zombie nobody has reaped yet (state Z) is dead for our purpose.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

const file = (name: string): string => join(dir, name);
const text = (name: string): string =>
  existsSync(file(name)) ? readFileSync(file(name), 'utf8').trim() : '';
describe('the supervised application', () => {
  it('gives its exit code, also when a signal ended it or it cannot be run', async () => {
    expect(await codeOf({ commands: [{ cmd: 'exit 7' }] })).toBe(7);
    expect(await codeOf({ commands: [{ argv: ['sh', '-c', 'kill -TERM $$'] }] })).toBe(143);
    expect(await codeOf({ commands: [{ argv: [file('nothing')] }] })).toBe(127);
  });

  it('runs after those before it, which must succeed', async () => {
    const commands = [{ cmd: `echo one >> ${file('log')}` }, { cmd: `echo two >> ${file('log')}` }];
    expect(await codeOf({ commands })).toBe(0);
    expect(text('log')).toBe('one\ntwo');
    expect(await codeOf({ commands: [{ cmd: 'exit 3' }, { cmd: `touch ${file('never')}` }] })).toBe(3);
    expect(existsSync(file('never'))).toBe(false);
  });

  it('is left out on a node that is no candidate when it says so', async () => {
    const commands = [{ cmd: `touch ${file('never')}`, ifCandidate: true }];
    expect(await codeOf({ commands, candidate: false })).toBeNull();
    expect(existsSync(file('never'))).toBe(false);
  });

  it('keeps its words as they are', async () => {
    await codeOf({
      commands: [{ argv: ['sh', '-c', `printf '%s' "$1" > ${file('word')}`, 'sh', "it's  $HOME"] }],
    });
    expect(text('word')).toBe("it's  $HOME");
  });

  it('gets signals, with all that it started', async () => {
    const script = `trap 'echo got > ${file('got')}' USR2; trap 'exit 5' TERM; touch ${file('up')}; while :; do sleep 0.05; done`;
    const { child, reports, ended } = supervise({ commands: [{ argv: ['sh', '-c', script] }] });
    await waitFor('the application to be up', () => existsSync(file('up')));
    child.kill('SIGUSR2');
    await waitFor('the signal to arrive', () => text('got') === 'got');
    child.kill('SIGTERM');
    await ended;
    expect(reports.at(-1)?.code).toBe(5);
  });

  it('is killed with its children when it does not end in time', async () => {
    const script = `trap '' TERM; sh -c 'trap "" TERM; echo $$ > ${file('child')}; while :; do sleep 0.05; done' & while :; do sleep 0.05; done`;
    const { child, reports, ended } = supervise({ commands: [{ argv: ['sh', '-c', script] }], graceMs: 200 });
    await waitFor('the child to be up', () => text('child') !== '');
    child.kill('SIGTERM');
    await ended;
    expect(reports.at(-1)?.code).toBe(137);
    await waitFor('the child to be gone', () => !alive(Number(text('child'))));
  });
});

describe('the guard', () => {
  it('ends the application, and what it has started, when the daemon is killed', async () => {
    const script = `sh -c 'trap "" TERM; echo $$ > ${file('child')}; while :; do sleep 0.05; done' & echo $$ > ${file('parent')}; wait`;
    const { child, reports, ended } = supervise({ commands: [{ argv: ['sh', '-c', script] }] });
    await waitFor('the application to be up', () => text('child') !== '' && text('parent') !== '');
    // It may be up a moment before the guard is told of it.
    await waitFor('the guard to know it', () => reports.some(({ group }) => group !== undefined));
    const guardPid = reports[0]?.guard ?? 0;
    expect(alive(guardPid)).toBe(true);
    child.kill('SIGKILL');
    await ended;
    await waitFor('the guard to end', () => !alive(guardPid));
    await waitFor(
      'the application to be gone',
      () => ![text('parent'), text('child')].map(Number).some(alive),
    );
  });

  it('ends with the daemon after a goodbye', async () => {
    const { reports, ended } = supervise({ commands: [{ cmd: 'exit 0' }] });
    await ended;
    expect(alive(reports[0]?.guard ?? 0)).toBe(false);
  });
});
