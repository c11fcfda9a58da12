import { KiteError } from '../errors.js';

/** A stored object, as a listing shows it. */
export interface StoredObject {
  /** Relative to the destination's path, with `/` between parts. */
  readonly key: string;
  readonly sizeBytes: number;
  /** The destination's own clock: S3's LastModified; a file's mtime, which for an LTX file is its header's timestamp. */
  readonly modifiedMs: number;
}

/** Bytes from `start` (inclusive) to `end` (exclusive; the end of the object when it is left out). */
export interface ByteRange {
  readonly start: number;
  readonly end?: number;
}

/** What an object is made of: bytes in memory, or a file that stays as it is until `create` has returned. */
export type ObjectBody = Uint8Array | { readonly path: string; readonly sizeBytes: number };

/** An object that is changed under compare-and-set: its bytes and which version they are. */
export interface VersionedObject {
  readonly bytes: Buffer;
  /** Opaque; undefined: there is no such object yet. */
  readonly version: string | undefined;
}

/**
 * Where backups are kept: a bucket or folder with a path in it. Every error is a KiteError ERR_BACKUP_*; with
 * `retry` in its row a later attempt may do. No message has a secret in it.
 */
export interface Destination {
  readonly type: 's3' | 'gs' | 'abs' | 'sftp' | 'file';
  /** For people: `s3://bucket/path`, `file:///path`. Has no secrets. */
  readonly url: string;
  /** All objects whose keys begin with `prefix` (empty, or ends with `/`), in the order of their keys, those up to `after` left out. */
  list(prefix: string, options?: { readonly after?: string }): AsyncIterable<StoredObject>;
  /** Names of the folders directly below `prefix` (empty, or ends with `/`), in order, without slashes. */
  folders(prefix: string): Promise<string[]>;
  /** The bytes of an object. Throws ERR_BACKUP_MISSING when there is none. */
  get(key: string, range?: ByteRange): Promise<AsyncIterable<Uint8Array>>;
  /**
   * Makes an object with this name unless there is one, all at once: nobody sees half of it. `timestampMs` is kept as
   * Litestream keeps it (metadata; of a file its mtime).
   */
  create(key: string, body: ObjectBody, timestampMs: number): Promise<'created' | 'exists'>;
  /** Reads an object that is changed by compareAndSet only. */
  read(key: string): Promise<VersionedObject>;
  /** Replaces the version that was read (undefined: there was none); false when somebody was faster. */
  compareAndSet(key: string, version: string | undefined, bytes: Uint8Array): Promise<boolean>;
  /** Removes objects; those that are gone already count as removed. */
  remove(keys: readonly string[]): Promise<void>;
  close(): void;
}

/** A whole object, or the range of it, in memory: for small ones. Throws as `get`. */
export async function readObject(from: Destination, key: string, range?: ByteRange): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of await from.get(key, range)) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** Nothing is there under this key. */
export const missingObject = (url: string, key: string, cause?: unknown): KiteError =>
  new KiteError('ERR_BACKUP_MISSING', `${url} has no ${key}`, { cause });
