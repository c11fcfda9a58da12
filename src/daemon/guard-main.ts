/**
 * The guard process (see guard.ts). It imports next to nothing, so that it starts fast, stays small and
 * is no candidate of the OOM killer; it learns that the daemon is gone by the end of its stdin, which
 * the kernel closes however the daemon died. It never touches a path inside the mount.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import type { GuardMessage } from './guard.js';

/** Time for the application to end by itself; afterwards it is killed. */
const GRACE_MS = 2000;

let mountDir: string | undefined;
let mountIdentity: string | undefined;
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
  if ('mount' in message) {
    mountDir = message.mount;
    mountIdentity = identityOf(message.mount);
  } else if ('group' in message) {
    groupId = message.group;
  } else {
    saidGoodbye = true;
  }
}

async function end(): Promise<void> {
  if (saidGoodbye) return;
  if (groupId !== null) await endGroup(groupId);
  // The application first: on a detached mount point it would find an empty folder and start anew there.
  if (mountDir !== undefined) detach(mountDir);
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

/** Detaches the mount, unless another one is there by now (a restarted daemon cleared ours and mounted anew). */
function detach(dir: string): void {
  if (mountIdentity === undefined || identityOf(dir) !== mountIdentity) return;
  const ways = [
    ['umount', '-l', dir],
    ['fusermount3', '-uz', dir],
    ['fusermount', '-uz', dir],
  ];
  for (const [program = '', ...words] of ways) {
    try {
      execFileSync(program, words, { stdio: 'ignore' });
      return;
    } catch {
      // The next way may be allowed where this one is not; the next start of the node clears what is left.
    }
  }
}

/** Mount id and device of the topmost mount at `dir`, from mountinfo: asking the mount itself could hang. */
function identityOf(dir: string): string | undefined {
  let identity: string | undefined;
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const [id, , device, , point = ''] = line.split(' ');
    const path = point.replaceAll(/\\(\d{3})/g, (_, octal: string) =>
      String.fromCharCode(Number.parseInt(octal, 8)),
    );
    if (path === dir) identity = `${id} ${device}`;
  }
  return identity;
}
