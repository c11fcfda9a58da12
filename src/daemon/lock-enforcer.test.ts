import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { afterEach, expect, it } from 'vitest';
import { LockEnforcer } from './lock-enforcer.js';

const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
});

async function start(script: string): Promise<{ pid: number; command: string; ended: Promise<unknown[]> }> {
  const child = spawn('sh', ['-c', `${script}; echo ready; read never`], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  children.push(child);
  const ended = once(child, 'exit');
  await once(child.stdout, 'data');
  return { pid: child.pid ?? 0, command: 'sh', ended };
}

it('asks a process that keeps a lock for too long to end', async () => {
  const holder = await start('true');
  const enforcer = new LockEnforcer(10_000);
  expect(enforcer.blocked('app.db', 5000, holder)).toBeUndefined();
  expect(enforcer.blocked('app.db', 10_000, holder)).toBe('asked');
  expect(await holder.ended).toEqual([null, 'SIGTERM']);
});

it('kills one that was asked and keeps the lock', async () => {
  const holder = await start("trap '' TERM");
  const enforcer = new LockEnforcer(1);
  expect(enforcer.blocked('app.db', 5000, holder)).toBe('asked');
  expect(enforcer.blocked('other.db', 5000, holder)).toBe('asked');
  expect(enforcer.blocked('app.db', 10_000, holder)).toBe('killed');
  expect(await holder.ended).toEqual([null, 'SIGKILL']);
});

it('ends nobody when that is not configured, and nobody whom it does not know', () => {
  const self = { pid: process.pid, command: 'node' };
  expect(new LockEnforcer(0).blocked('app.db', 1e9, self)).toBeUndefined();
  expect(new LockEnforcer(1).blocked('app.db', 1e9, undefined)).toBeUndefined();
  // What /proc/locks shows of a process in another container.
  expect(new LockEnforcer(1).blocked('app.db', 1e9, { pid: 0, command: '(ended)' })).toBeUndefined();
});
