/**
 * The guard process (see guard.ts). It imports next to nothing, so that it starts fast, stays small and
 * is no candidate of the OOM killer; it learns that the daemon is gone by the end of its stdin, which
 * the kernel closes however the daemon died. It never touches a path inside the mount.
 */
import type { GuardMessage } from './guard.js';

/** Time for the application to end by itself; afterwards it is killed. */
const GRACE_MS = 2000;

let groupId: number | null = null;
let saidGoodbye = false;
let pending = '';

// Signals meant for the daemon's terminal or service must not take the guard away before its work.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
process.chdir('/');
process.stdin.setEncoding('utf8');
process.stdin.on('data', (chunk: string) => {
  const lines = (pending + chunk).split('\n');
  pending = lines.pop() ?? '';
  for (const line of lines) receive(JSON.parse(line) as GuardMessage);
});
process.stdin.on('close', () => void end());

function receive(message: GuardMessage): void {
  if ('group' in message) groupId = message.group;
  else saidGoodbye = true;
}

async function end(): Promise<void> {
  if (!saidGoodbye && groupId !== null) await endGroup(groupId);
}

async function endGroup(id: number): Promise<void> {
  if (!kill(id, 'SIGTERM')) return;
  const killAt = performance.now() + GRACE_MS;
  while (kill(id, 0)) {
    if (performance.now() > killAt) {
      kill(id, 'SIGKILL');
      return;
    }
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
  }
}

/** Returns whether there was anyone to send the signal to. */
function kill(id: number, signal: NodeJS.Signals | 0): boolean {
  try {
    process.kill(-id, signal);
    return true;
  } catch {
    return false;
  }
}
