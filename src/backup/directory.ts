import { randomBytes } from 'node:crypto';
import { copyFile, link, mkdir, open, readdir, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { createReadStream } from 'node:fs';
import { dirname, join } from 'node:path';
import { KiteError } from '../errors.js';
import { isErrno } from '../util/files.js';
import { missingObject, type ByteRange, type ObjectBody, type StoredObject } from './destination.js';
import { FileTree, TEMPORARY, type TreeEntry } from './file-tree.js';

/** One that nobody has touched for so long was left by a process that was killed. */
const ABANDONED_MS = 3_600_000;

/** For people. */
export const directoryUrl = (root: string): string => `file://${root}`;

/**
 * A folder as a destination. A file gets its name by link(2), which fails when the name is taken, after its bytes are durable:
 * so an object is there whole or not at all, and only one of two writers makes it, on network file systems too.
 */
export class DirectoryDestination extends FileTree {
  readonly type = 'file';
  readonly url: string;
  readonly #root: string;
  /** Folders in which was looked for what killed processes have left. */
  readonly #cleared = new Set<string>();

  constructor(root: string) {
    super();
    this.#root = root;
    this.url = directoryUrl(root);
  }

  async get(key: string, range?: ByteRange): Promise<AsyncIterable<Uint8Array>> {
    const path = join(this.#root, key);
    // Opened here, so that a missing object is an error of this call.
    const file = await open(path, 'r').catch((error: unknown) => {
      throw isErrno(error, 'ENOENT') ? missingObject(this.url, key, error) : this.#failed(error);
    });
    if (range?.end !== undefined && range.end <= range.start) {
      await file.close();
      return createReadStream('/dev/null');
    }
    return file.createReadStream({
      highWaterMark: 256 * 1024,
      ...(range && { start: range.start }),
      ...(range?.end !== undefined && { end: range.end - 1 }),
    });
  }

  async create(key: string, body: ObjectBody, timestampMs: number): Promise<'created' | 'exists'> {
    const path = join(this.#root, key);
    const temporary = join(dirname(path), `${TEMPORARY}${process.pid}-${randomBytes(6).toString('hex')}`);
    try {
      await makeFolders(dirname(path));
      await this.#clear(dirname(path));
      if (body instanceof Uint8Array) await writeFile(temporary, body, { flag: 'wx' });
      else await copyFile(body.path, temporary);
      await utimes(temporary, timestampMs / 1000, timestampMs / 1000);
      // The bytes before the name: else a power cut may keep an object with nothing in it.
      await fsyncPath(temporary);
      try {
        await link(temporary, path);
      } catch (error) {
        if (isErrno(error, 'EEXIST')) return 'exists';
        throw error;
      }
      await fsyncPath(dirname(path));
      return 'created';
    } catch (error) {
      throw this.#failed(error);
    } finally {
      await rm(temporary, { force: true }).catch(() => undefined);
    }
  }

  async remove(keys: readonly string[]): Promise<void> {
    for (const key of keys) {
      await rm(join(this.#root, key), { force: true }).catch((error: unknown) => {
        throw this.#failed(error);
      });
    }
  }

  close(): void {}

  /** Removes, once, what killed processes have left in a folder: as large as objects, and no object. */
  async #clear(folder: string): Promise<void> {
    if (this.#cleared.has(folder)) return;
    this.#cleared.add(folder);
    for (const name of await readdir(folder)) {
      if (!name.startsWith(TEMPORARY)) continue;
      const path = join(folder, name);
      // By ctime, which each write moves: mtime is set to the transaction's time.
      const found = await stat(path).catch(absent);
      if (found && found.ctimeMs < Date.now() - ABANDONED_MS) await rm(path, { force: true });
    }
  }

  protected async entries(prefix: string): Promise<TreeEntry[]> {
    try {
      const found = await readdir(join(this.#root, prefix), { withFileTypes: true });
      return found
        .filter((entry) => !entry.name.startsWith(TEMPORARY))
        .map((entry) => ({ name: entry.name, isFolder: entry.isDirectory() }));
    } catch (error) {
      if (!isErrno(error, 'ENOENT', 'ENOTDIR')) throw this.#failed(error);
      return [];
    }
  }

  protected async describe(key: string): Promise<Omit<StoredObject, 'key'> | undefined> {
    const found = await stat(join(this.#root, key)).catch(absent);
    return found && { sizeBytes: found.size, modifiedMs: Math.round(found.mtimeMs) };
  }

  #failed(error: unknown): KiteError {
    if (error instanceof KiteError) return error;
    const message = `${this.url}: ${error instanceof Error ? error.message : String(error)}`;
    if (isErrno(error, 'ENOSPC', 'EDQUOT'))
      return new KiteError('ERR_BACKUP_FULL', message, { cause: error });
    const denied = isErrno(error, 'EACCES', 'EPERM', 'EROFS');
    return new KiteError(denied ? 'ERR_BACKUP_DENIED' : 'ERR_BACKUP_UNREACHABLE', message, { cause: error });
  }
}

function absent(error: unknown): undefined {
  if (!isErrno(error, 'ENOENT')) throw error;
}

/** Makes a folder and those above it; each new name is made durable, or a power cut could take a whole level away. */
async function makeFolders(path: string): Promise<void> {
  const first = await mkdir(path, { recursive: true });
  if (first === undefined) return;
  for (let made = path; made.length >= first.length; made = dirname(made)) await fsyncPath(dirname(made));
}

async function fsyncPath(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
