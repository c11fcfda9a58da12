import { KiteError } from '../errors.js';
import {
  readObject,
  type ByteRange,
  type Destination,
  type ObjectBody,
  type StoredObject,
  type VersionedObject,
} from './destination.js';

/** Begins the names of files that are being written: they are no objects yet. */
export const TEMPORARY = '.kitefs-';

/** A name in a folder, and of a file what a listing shows of it, where it is known already. */
export interface TreeEntry {
  readonly name: string;
  readonly isFolder: boolean;
  readonly object?: Omit<StoredObject, 'key'>;
}

/** What a folder of this machine and one behind SFTP have in common: files as objects. */
export abstract class FileTree implements Destination {
  abstract readonly type: 'file' | 'sftp';
  abstract readonly url: string;

  /** What is in a folder (empty, or ends with `/`), in any order, without files that are being written; nothing when it is not there. */
  protected abstract entries(folder: string): Promise<TreeEntry[]>;
  /** What a listing shows of a file; undefined when it is gone. */
  protected abstract describe(key: string, entry: TreeEntry): Promise<Omit<StoredObject, 'key'> | undefined>;
  abstract get(key: string, range?: ByteRange): Promise<AsyncIterable<Uint8Array>>;
  abstract create(key: string, body: ObjectBody, timestampMs: number): Promise<'created' | 'exists'>;
  abstract remove(keys: readonly string[]): Promise<void>;
  abstract close(): void;

  async *list(prefix: string, options: { readonly after?: string } = {}): AsyncGenerator<StoredObject> {
    const after = options.after ?? '';
    // A folder's name counts with its slash, as it does in the keys of what is in it.
    const entries = (await this.entries(prefix))
      .map((entry) => ({ entry, key: prefix + entry.name + (entry.isFolder ? '/' : '') }))
      .toSorted((a, b) => byBytes(a.key, b.key));
    for (const { entry, key } of entries) {
      if (entry.isFolder) {
        if (byBytes(key, after) > 0 || after.startsWith(key)) yield* this.list(key, options);
      } else if (byBytes(key, after) > 0) {
        const found = await this.describe(key, entry);
        if (found) yield { key, ...found };
      }
    }
  }

  async folders(prefix: string): Promise<string[]> {
    const entries = await this.entries(prefix);
    return entries
      .filter(({ isFolder }) => isFolder)
      .map(({ name }) => name)
      .toSorted(byBytes);
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

  async #newest(key: string): Promise<string | undefined> {
    return (await this.#versions(key)).toSorted().at(-1);
  }

  async #versions(key: string): Promise<string[]> {
    const names = (await this.entries(`${key}/`)).map(({ name }) => name);
    return names.filter((name) => /^\d{16}$/.test(name));
  }
}

/** The order of S3's listings: that of the bytes. Keys here are ASCII, whose UTF-16 order is the same. */
const byBytes = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
