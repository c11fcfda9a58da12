import { KiteError } from '../errors.js';

/**
 * Names of databases and of the files beside them. A database's name is its path in the mount, without
 * a leading slash (`tenants/42.db`). In the data directory, in the bucket and in URLs it is one path
 * component, percent-encoded, so that `a` and `a/b` do not clash.
 */

/** A component of a path may have 255 bytes; what is left over is for suffixes (`.tmp`, `-wal`). */
const MAX_ENCODED_BYTES = 240;

/** What SQLite or KiteFS keeps beside a database, by the end of its name. */
const SUFFIXES = { '-wal': 'wal', '-shm': 'shm', '-journal': 'journal', '-pos': 'position' } as const;

/** SQLite's `%s-mj%06X9%02X` (vdbeCommit): the journal of a commit over several databases. */
const SUPER_JOURNAL = /^(.+)-mj[0-9A-F]{6}9[0-9A-F]{2}$/s;

/** Files that KiteFS itself shows at the top of the mount. */
const CONTROL_NAMES = new Set(['.primary', '.lag', '.kitefs']);

export type FileKind =
  | 'database'
  | 'wal'
  | 'shm'
  | 'journal'
  | 'position'
  | 'super-journal'
  /** `.primary`, `.lag`, `.kitefs` and what is under it. */
  | 'control'
  /** Nothing that can be stored: `..`, NUL, too long, or a suffix of something that is no database. */
  | 'invalid';

export interface ClassifiedPath {
  readonly kind: FileKind;
  /** The database that the file belongs to; the path itself for `control` and `invalid`. */
  readonly name: string;
}

/** What a path in the mount (no leading slash) is by its name. Pure: whether it exists is not asked. */
export function classifyPath(path: string): ClassifiedPath {
  const first = path.split('/', 1)[0] ?? '';
  if (CONTROL_NAMES.has(first)) return { kind: 'control', name: path };
  for (const [suffix, kind] of Object.entries(SUFFIXES)) {
    if (path.endsWith(suffix)) return belongingTo(path.slice(0, -suffix.length), kind, path);
  }
  const superJournal = SUPER_JOURNAL.exec(path);
  if (superJournal) return belongingTo(superJournal[1] ?? '', 'super-journal', path);
  return isStorablePath(path) ? { kind: 'database', name: path } : { kind: 'invalid', name: path };
}

/** Whether a database may have this name. */
export const isDatabaseName = (name: string): boolean => classifyPath(name).kind === 'database';

/** Throws ERR_STORE_NAME for what no database can be called; `..` would lead out of the mount. */
export function checkDatabaseName(name: string): void {
  if (isDatabaseName(name)) return;
  throw new KiteError('ERR_STORE_NAME', `${JSON.stringify(name)} cannot be the name of a database`);
}

/** One path component for a database's name; throws ERR_STORE_NAME. */
export function encodeDatabaseName(name: string): string {
  checkDatabaseName(name);
  return encodeURIComponent(name);
}

/** The name that a component was made from, or undefined when it was not made by encodeDatabaseName. */
export function decodeDatabaseName(encoded: string): string | undefined {
  let name: string;
  try {
    name = decodeURIComponent(encoded);
  } catch {
    return undefined;
  }
  // Only the one spelling that encode writes: otherwise two folders could hold one database.
  return isDatabaseName(name) && encodeURIComponent(name) === encoded ? name : undefined;
}

function belongingTo(name: string, kind: FileKind, path: string): ClassifiedPath {
  return isDatabaseName(name) ? { kind, name } : { kind: 'invalid', name: path };
}

function isStorablePath(path: string): boolean {
  // A lone surrogate has no UTF-8 form: encodeURIComponent throws, and the kernel would never send it.
  if (/\p{Surrogate}/u.test(path) || path.includes('\0')) return false;
  if (path.split('/').some((part) => part === '' || part === '.' || part === '..')) return false;
  return encodeURIComponent(path).length <= MAX_ENCODED_BYTES;
}
