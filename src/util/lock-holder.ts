import fs from 'node:fs';

/** A process that holds a lock. */
export interface LockHolder {
  readonly pid: number;
  /** Its command line, shortened. */
  readonly command: string;
}

/** A range of bytes that SQLite locks in a file. */
export interface LockRange {
  readonly path: string;
  readonly first: number;
  readonly last: number;
}

/** The WAL write lock (wal.c). */
export const walWriteLock = (path: string): LockRange => ({ path: `${path}-shm`, first: 120, last: 120 });

/** PENDING, RESERVED and SHARED of the rollback journal (os.h): whatever keeps an exclusive lock from being had. */
export const databaseLocks = (path: string): LockRange => ({
  path,
  first: 0x40000000,
  last: 0x40000000 + 511,
});

/**
 * Another process that holds one of these locks, from /proc/locks; undefined when there is none to be seen. The files are not
 * opened: closing them would give up this process's own locks on them.
 */
export function findLockHolder(ranges: readonly LockRange[]): LockHolder | undefined {
  for (const range of ranges) {
    const pid = holderOf(range);
    if (pid !== undefined) return { pid, command: commandOf(pid) };
  }
  return undefined;
}

function holderOf(range: LockRange): number | undefined {
  const file = fs.statSync(range.path, { throwIfNoEntry: false });
  if (!file) return undefined;
  const id = `${deviceOf(file.dev)}:${file.ino}`;
  for (const line of readLocks().split('\n')) {
    // `1: POSIX  ADVISORY  WRITE 1234 00:2f:5 120 120`; a line with `->` waits for the lock and has none.
    const match = /^\d+: POSIX +\S+ +\S+ +(\d+) +(\S+) (\d+) (\d+|EOF)$/.exec(line.trim());
    // With the device: two mounts of one machine have files with the same inode numbers.
    if (!match || match[2] !== id) continue;
    const pid = Number(match[1]);
    const last = match[4] === 'EOF' ? Infinity : Number(match[4]);
    if (pid !== process.pid && Number(match[3]) <= range.last && last >= range.first) return pid;
  }
  return undefined;
}

/** `major:minor` of a device number (gnu_dev_makedev), in hex of two digits or more. */
function deviceOf(dev: number): string {
  const major = (dev >>> 8) & 0xfff;
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xfff00);
  return [major, minor].map((part) => part.toString(16).padStart(2, '0')).join(':');
}

function readLocks(): string {
  try {
    return fs.readFileSync('/proc/locks', 'utf8');
  } catch {
    return ''; // no /proc in this container: nobody can be named
  }
}

function commandOf(pid: number): string {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').join(' ').trim().slice(0, 120);
  } catch {
    return '(ended)';
  }
}
