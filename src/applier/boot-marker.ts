import fs from 'node:fs';
import { join } from 'node:path';

import { fsyncDirectory } from '../util/files.js';

/**
 * A file that stands beside a database while it is served, with the boot it is served under. When it is found from another boot,
 * the power may have been cut: then neither the log nor the WAL need hold what the database holds, and
 * the saved checksums say nothing. A mere kill loses no byte that was written.
 */
const FILE_NAME = 'applier-boot';

const currentBoot = (): string => fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();

/** Whether what was saved may be relied on; from now on it may not be after a power cut. */
export function markServed(directory: string): boolean {
  const path = join(directory, FILE_NAME);
  const boot = currentBoot();
  const before = fs.existsSync(path) ? fs.readFileSync(path, 'utf8') : boot;
  const fd = fs.openSync(path, 'w');
  try {
    fs.writeSync(fd, boot);
    // Must be there before the first page that is applied can be.
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
  fsyncDirectory(directory);
  return before === boot;
}

/** Whether it was served under another boot, and not let go of since. */
export function powerWasCut(directory: string): boolean {
  const path = join(directory, FILE_NAME);
  return fs.existsSync(path) && fs.readFileSync(path, 'utf8') !== currentBoot();
}

/** After the checksums were saved at the position where the database stands. */
export function markClosed(directory: string): void {
  fs.rmSync(join(directory, FILE_NAME), { force: true });
}
