import fs from 'node:fs';

/**
 * What to tell a person of each process that has files of a mount open which is about to go: its WAL connections go on
 * reading what they know, for ever and without any error (trap 5). This process and its children are left
 * out, and processes of which this user may not know. Asks /proc only, so it never hangs.
 */
export function warningsOfUsers(mountId: string): string[] {
  return fs
    .readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => uses(pid, mountId) && !isOurChild(pid))
    .map(
      (pid) =>
        `process ${pid} (${commandOf(pid)}) has files of a mount open that is gone: SQLite connections in it go on ` +
        'reading old data, without an error, until it is started again',
    );
}

function uses(pid: string, mountId: string): boolean {
  const line = new RegExp(`^mnt_id:\\s+${mountId}$`, 'm');
  return attempt([], () => fs.readdirSync(`/proc/${pid}/fdinfo`)).some((fd) =>
    line.test(attempt('', () => fs.readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8'))),
  );
}

function isOurChild(pid: string): boolean {
  const stat = attempt('', () => fs.readFileSync(`/proc/${pid}/stat`, 'utf8'));
  // `pid (name) state ppid …`; the name may hold anything.
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]) === process.pid;
}

const commandOf = (pid: string): string =>
  attempt('', () => fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8'))
    .replaceAll('\0', ' ')
    .trim()
    .slice(0, 120);

/** Processes end, and may be somebody else's, while they are looked at. */
function attempt<T>(otherwise: T, read: () => T): T {
  try {
    return read();
  } catch {
    return otherwise;
  }
}
