import { readFileSync, statSync } from 'node:fs';

/**
 * The process that holds a POSIX lock on a file, by /proc/locks; undefined when that cannot be told. For
 * messages only. The file is not opened: closing it would drop this process's own locks on it.
 */
export function lockHolder(path: string): number | undefined {
  try {
    const { ino } = statSync(path);
    for (const line of readFileSync('/proc/locks', 'utf8').split('\n')) {
      // 1: POSIX  ADVISORY  WRITE 1234 08:01:5678 1073741824 1073742335
      const match = /POSIX +\S+ +WRITE (\d+) [0-9a-f]+:[0-9a-f]+:(\d+) /.exec(line);
      if (match && Number(match[2]) === ino) return Number(match[1]);
    }
  } catch {
    // No /proc, or the file is gone.
  }
  return undefined;
}
