import { execFile } from 'node:child_process';
import { closeSync, constants, fsync, fsyncSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { formatTxid } from '../ltx/position.js';
import { isErrno, writeFully } from '../util/files.js';

/**
 * Which files of a log are durable. `<ltx>/synced` holds the last TXID that is, 16 hex digits. It is
 * written after the fsyncs and not fsynced itself: an old value only means that more files are verified at
 * the next start. A value that is too high would let a torn file pass, so it is lowered durably.
 */

/**
 * From so many files on, one syncfs(2) is cheaper than an fsync each: measured for 400 files of 1 200 bytes
 * on ext4, 12 ms against 114 ms (4 at a time) and 537 ms (one by one).
 */
const SYNCFS_FROM_FILES = 24;

const MARKER = 'synced';
const run = promisify(execFile);
const fsyncLater = promisify(fsync);

export function readSyncedTxid(directory: string): bigint {
  try {
    return parseMarker(readFileSync(join(directory, MARKER), 'latin1'));
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return 0n;
    throw error;
  }
}

/** `durable`: when it is lowered. */
export function writeSyncedTxid(directory: string, txid: bigint, durable: boolean): void {
  const marker = openSync(join(directory, MARKER), constants.O_WRONLY | constants.O_CREAT, 0o644);
  try {
    // One write of 16 bytes into one sector: it is there as a whole or not at all.
    writeFully(marker, Buffer.from(formatTxid(txid), 'latin1'), 0);
    if (durable) fsyncSync(marker);
  } finally {
    closeSync(marker);
  }
}

/**
 * Makes files and their names durable. The folder at the same time as the files: the disk then flushes once for both, and
 * a name without content counts no more after a crash than no name.
 */
export async function syncFiles(directory: string, paths: readonly string[]): Promise<void> {
  const all = [directory, ...paths];
  if (paths.length >= SYNCFS_FROM_FILES && (await syncFileSystem(directory))) return syncFile(directory);
  for (let i = 0; i < all.length; i += 4) await Promise.all(all.slice(i, i + 4).map(syncFile));
}

/** Whether it worked: without coreutils' `sync -f`, and after an error, each file is asked for itself. */
async function syncFileSystem(directory: string): Promise<boolean> {
  try {
    await run('sync', ['-f', directory]);
    return true;
  } catch {
    return false;
  }
}

async function syncFile(path: string): Promise<void> {
  let fd: number;
  try {
    // Opened at once, because each step that is left to another thread costs a commit as much as the step itself.
    fd = openSync(path, 'r');
  } catch (error) {
    // Retention, or a drop, has removed it meanwhile: nothing of it needs to last.
    if (isErrno(error, 'ENOENT')) return;
    throw error;
  }
  try {
    await fsyncLater(fd);
  } finally {
    closeSync(fd);
  }
}

const parseMarker = (text: string): bigint => (/^[0-9a-f]{16}$/.test(text) ? BigInt(`0x${text}`) : 0n);
