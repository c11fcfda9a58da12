import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

import { KiteError } from '../errors.js';
import { warningsOfUsers } from './mount-users.js';

const run = promisify(execFile);
/** How long a mount may take to answer before it counts as hung. */
const ALIVE_LIMIT_MS = 5000;

/** What `mount` shows as the source of our mounts. */
export const MOUNT_SOURCE = 'kitefs';

/**
 * Checks that something can be mounted here, and clears what a killed daemon left (DESIGN §1.4). Errors:
 * ERR_MOUNT_DIRECTORY, ERR_MOUNT_BUSY. A path inside a mount is only touched by a child process. `warn` is told of
 * processes that still use the dead mount.
 */
export async function prepareMountPoint(mountDir: string, warn: (message: string) => void): Promise<void> {
  for (let left = mountAt(mountDir); left; left = mountAt(mountDir)) {
    if (left.source !== MOUNT_SOURCE || (await isAlive(mountDir))) {
      // Unless somebody has taken it away meanwhile: then what answered was the folder below it.
      if (mountAt(mountDir)?.minor !== left.minor) continue;
      throw new KiteError('ERR_MOUNT_BUSY', `${mountDir} is a mount already (${left.source})`);
    }
    for (const message of warningsOfUsers(left.id)) warn(message);
    await unmount(mountDir);
  }
  let entries: string[];
  try {
    entries = fs.readdirSync(mountDir);
  } catch (error) {
    throw new KiteError(
      'ERR_MOUNT_DIRECTORY',
      `${mountDir} cannot be mounted on: ${(error as Error).message}`,
      {
        cause: error,
      },
    );
  }
  if (entries.length > 0) {
    throw new KiteError('ERR_MOUNT_DIRECTORY', `${mountDir} is not empty (${entries[0]}…)`);
  }
}

/** Detaches the newest mount at this place, also a busy one. Throws ERR_MOUNT_FAILED. */
export async function unmount(mountDir: string): Promise<void> {
  try {
    await run('umount', ['-l', mountDir]);
  } catch (error) {
    if (!mountAt(mountDir)) return;
    // Not root: the helper that mounted it may take it away.
    await run('fusermount', ['-uz', mountDir]).catch(() => {
      throw new KiteError(
        'ERR_MOUNT_FAILED',
        `${mountDir} could not be unmounted: ${(error as Error).message}`,
        {
          cause: error,
        },
      );
    });
  }
}

/** The last resort in the kernel's own interface: every request of a connection fails from now on. */
export function abortConnection(minor: number | undefined): void {
  if (minor === undefined) return;
  try {
    fs.writeFileSync(`/sys/fs/fuse/connections/${minor}/abort`, '1');
  } catch {
    // Not there: not mounted or not allowed, or the connection has ended by now.
  }
}

/** The newest mount at exactly this place. Reads /proc only, so it never hangs. */
export function mountAt(
  mountDir: string,
): { readonly id: string; readonly source: string; readonly minor: number } | undefined {
  const wanted = realPath(mountDir);
  const lines = fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  for (const line of lines.toReversed()) {
    // 36 35 98:0 /root /mount/point options [tags] - type source superoptions (proc_pid_mountinfo(5))
    const [left, right] = line.split(' - ');
    const fields = left?.split(' ') ?? [];
    if (unescape(fields[4] ?? '') !== wanted) continue;
    const minor = Number(fields[2]?.split(':')[1]);
    return { id: fields[0] ?? '', source: right?.split(' ')[1] ?? '', minor };
  }
  return undefined;
}

/** Resolves the parent only: the last part may be a dead mount. */
function realPath(mountDir: string): string {
  const full = path.resolve(mountDir);
  try {
    return path.join(fs.realpathSync(path.dirname(full)), path.basename(full));
  } catch {
    return full;
  }
}

const unescape = (field: string): string =>
  field.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

async function isAlive(mountDir: string): Promise<boolean> {
  try {
    // Of the file system, not of the folder: that the kernel would answer from its cache.
    await run('stat', ['-f', mountDir], { timeout: ALIVE_LIMIT_MS, killSignal: 'SIGKILL' });
    return true;
  } catch (error) {
    // ENOTCONN, said at once: the daemon is gone. No answer at all: it is gone, but a child of it still
    // holds the connection (fuse-native's descriptor is inherited); that one has to be ended first.
    if ((error as { killed?: boolean }).killed === true) abortConnection(mountAt(mountDir)?.minor);
    return false;
  }
}
