import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';

import { KiteError } from '../errors.js';
import { isErrno } from '../util/files.js';
import { MOUNT_SOURCE } from './mount-point.js';

/**
 * Opens /dev/fuse. Node opens everything close-on-exec, so no child ever holds the connection open.
 * Errors: ERR_MOUNT_DEVICE, ERR_MOUNT_PERMISSION.
 */
export function openFuseDevice(): number {
  try {
    return fs.openSync('/dev/fuse', fs.constants.O_RDWR);
  } catch (error) {
    if (isErrno(error, 'EACCES', 'EPERM')) {
      throw new KiteError('ERR_MOUNT_PERMISSION', 'this process may not open /dev/fuse', { cause: error });
    }
    throw new KiteError('ERR_MOUNT_DEVICE', `/dev/fuse cannot be opened: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/**
 * Mounts the connection of `fd`: mount(8) gets the descriptor as its number 3. `-i` keeps it from looking
 * for a helper program. Errors: ERR_MOUNT_PERMISSION, ERR_MOUNT_FAILED.
 */
export async function mountKernel(fd: number, mountDir: string, allowOther: boolean): Promise<void> {
  const options = [
    'fd=3',
    'rootmode=40000',
    `user_id=${process.getuid?.() ?? 0}`,
    `group_id=${process.getgid?.() ?? 0}`,
    'default_permissions',
    ...(allowOther ? ['allow_other'] : []),
  ];
  const child = spawn('mount', ['-i', '-t', 'fuse', '-o', options.join(','), MOUNT_SOURCE, mountDir], {
    stdio: ['ignore', 'ignore', 'pipe', fd],
    env: { ...process.env, LC_ALL: 'C' },
  });
  let said = '';
  child.stderr!.on('data', (bytes: Buffer) => (said += bytes.toString()));
  let code: number | null;
  try {
    [code] = (await once(child, 'close')) as [number | null];
  } catch (error) {
    throw new KiteError('ERR_MOUNT_FAILED', `mount(8) could not be started: ${(error as Error).message}`, {
      cause: error,
    });
  }
  if (code === 0) return;
  const message = `mounting ${mountDir} failed: ${said.trim() || `mount(8) ended with ${code}`}`;
  const denied = /permission denied|superuser|not permitted/i.test(said);
  throw new KiteError(denied ? 'ERR_MOUNT_PERMISSION' : 'ERR_MOUNT_FAILED', message);
}
