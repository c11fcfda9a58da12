import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';

/** Makes the names in a folder durable: a created, renamed or removed name is in the folder, not in the file. */
export function fsyncDirectory(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Writes all of `bytes` (write(2) may take less than it was given). */
export function writeFully(fd: number, bytes: Uint8Array, position: number | null = null): void {
  let done = 0;
  while (done < bytes.length) {
    done += writeSync(fd, bytes, done, bytes.length - done, position === null ? null : position + done);
  }
}

/**
 * Replaces a file so that a reader, and a start after a crash at any point, sees the old bytes or the
 * new ones. The file is fsynced before the rename (else a power cut may keep the new name with no
 * bytes behind it), the folder after it (else the old file may come back). When the disk is full the
 * old file stays and nothing of the new one is left.
 */
export function replaceFile(path: string, ...parts: readonly Uint8Array[]): void {
  const temporary = `${path}.tmp`;
  try {
    const fd = openSync(temporary, 'w', 0o644);
    try {
      for (const part of parts) writeFully(fd, part);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
  fsyncDirectory(dirname(path));
}

/** Whether an error of node:fs has one of these codes. */
export const isErrno = (error: unknown, ...codes: readonly string[]): boolean =>
  error instanceof Error && codes.includes((error as NodeJS.ErrnoException).code ?? '');
