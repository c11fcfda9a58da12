import { open } from 'node:fs/promises';
import { join } from 'node:path';

import { isErrno } from '../util/files.js';
import type { ApplierContext } from './context.js';

const CHUNK_BYTES = 1 << 20;

/**
 * Reads the beginning of a database's `-wal` through the mount, so that the kernel has all of its pages. It cuts a write in
 * two at the end of a page of which it has only what was written, and the frames of a WAL begin anywhere in a page: with its
 * pages known a commit is a request less (docs/decisions/009). They stay known while the WAL is used again from its start.
 */
export async function readWal({ mountDir }: ApplierContext, name: string, sizeBytes: number): Promise<void> {
  try {
    const file = await open(join(mountDir, `${name}-wal`), 'r');
    try {
      const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
      for (let at = 0; at < sizeBytes; at += CHUNK_BYTES) await file.read(chunk, 0, CHUNK_BYTES, at);
    } finally {
      await file.close();
    }
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error; // its last connection has closed meanwhile
  }
}
