import { randomBytes } from 'node:crypto';
import { copyFile, link, mkdir, open, readdir, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { createReadStream } from 'node:fs';
import { dirname, join } from 'node:path';
import { KiteError } from '../errors.js';
import { isErrno } from '../util/files.js';
import {
  missingObject,
  readObject,
  type ByteRange,
  type Destination,
  type ObjectBody,
  type StoredObject,
  type VersionedObject,
} from './destination.js';

/** Begins the names of files that are being written: they are no objects yet. */
const TEMPORARY = '.kitefs-';
/** One that nobody has touched for so long was left by a process that was killed. */
const ABANDONED_MS = 3_600_000;

/** For people. */
export const directoryUrl = (root: string): string => `file://${root}`;

/**
 * A folder as a destination. A file gets its name by link(2), which fails when the name is taken, after its bytes are durable:
 * so an object is there whole or not at all, and only one of two writers makes it, on network file systems too.
 */
export class DirectoryDestination implements Destination {
  readonly type = 'file';
  readonly url: string;
  readonly #root: string;
  /** Folders in which was looked for what killed processes have left. */
  readonly #cleared = new Set<string>();

  constructor(root: string) {
    this.#root = root;
    this.url = directoryUrl(root);
  }

  async *list(prefix: string, options: { readonly after?: string } = {}): AsyncGenerator<StoredObject> {
    const after = options.after ?? '';
    const entries = await this.#entries(prefix);
    // A folder's name counts with its slash, as it does in the keys of what is in it.
    for (const name of entries
      .map(({ name, isFolder }) => (isFolder ? `${name}/` : name))
      .toSorted(byBytes)) {
      const key = prefix + name;
      if (name.endsWith('/')) {
        if (byBytes(key, after) > 0 || after.startsWith(key)) yield* this.list(key, options);
      } else if (byBytes(key, after) > 0) {
        const found = await stat(join(this.#root, key)).catch(absent);
        if (found) yield { key, sizeBytes: found.size, modifiedMs: Math.round(found.mtimeMs) };
      }
    }
  }

  async folders(prefix: string): Promise<string[]> {
    const entries = await this.#entries(prefix);
    return entries
      .filter(({ isFolder }) => isFolder)
      .map(({ name }) => name)
      .toSorted(byBytes);
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

  /** An object under compare-and-set is a folder of numbered files: to make the next number is the exchange. */
  async read(key: string): Promise<VersionedObject> {
    for (;;) {
      const version = await this.#newest(key);
      if (version === undefined) return { bytes: Buffer.alloc(0), version };
      try {
        return { bytes: await readObject(this, `${key}/${version}`), version };
      } catch (error) {
        // Replaced since it was listed: there is a newer one.
        if (!(error instanceof KiteError) || error.code !== 'ERR_BACKUP_MISSING') throw error;
      }
    }
  }

  async compareAndSet(key: string, version: string | undefined, bytes: Uint8Array): Promise<boolean> {
    // A number that was removed because there are newer ones could be made again.
    const newest = await this.#newest(key);
    if (newest !== version) return false;
    const next = (BigInt(version ?? '0') + 1n).toString().padStart(16, '0');
    if ((await this.create(`${key}/${next}`, bytes, Date.now())) === 'exists') return false;
    // The eight before it stay, for whoever is between listing and reading, or between the look above and the making.
    const old = (await this.#versions(key)).filter((name) => BigInt(name) < BigInt(next) - 8n);
    await this.remove(old.map((name) => `${key}/${name}`));
    return true;
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

  async #newest(key: string): Promise<string | undefined> {
    return (await this.#versions(key)).toSorted().at(-1);
  }

  async #versions(key: string): Promise<string[]> {
    const names = (await this.#entries(`${key}/`)).map(({ name }) => name);
    return names.filter((name) => /^\d{16}$/.test(name));
  }

  async #entries(prefix: string): Promise<{ name: string; isFolder: boolean }[]> {
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

  #failed(error: unknown): KiteError {
    if (error instanceof KiteError) return error;
    const message = `${this.url}: ${error instanceof Error ? error.message : String(error)}`;
    if (isErrno(error, 'ENOSPC', 'EDQUOT'))
      return new KiteError('ERR_BACKUP_FULL', message, { cause: error });
    const denied = isErrno(error, 'EACCES', 'EPERM', 'EROFS');
    return new KiteError(denied ? 'ERR_BACKUP_DENIED' : 'ERR_BACKUP_UNREACHABLE', message, { cause: error });
  }
}

/** The order of S3's listings: that of the bytes. Keys here are ASCII, whose UTF-16 order is the same. */
const byBytes = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

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
