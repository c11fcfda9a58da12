import Database from 'better-sqlite3';
import { randomUUID } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { KiteError } from '../errors.js';
import { fsyncDirectory, isErrno, replaceFile } from '../util/files.js';
import { databaseLocks, findLockHolder } from '../util/lock-holder.js';
import { decodeDatabaseName, encodeDatabaseName } from './database-name.js';
import { migrateLiteFsLayout } from './litefs-layout.js';
import { finishReplacements } from './replacements.js';

/** What a node remembers about itself: `<data>/node.json`. */
export interface NodeState {
  readonly nodeId: string;
  /** Highest epoch this node has seen anywhere. */
  readonly epoch: bigint;
  /** Whether it was primary when it last wrote this. */
  readonly wasPrimary: boolean;
}

/** The id of a node that has none yet: what is configured, or one of its own. */
export const newNodeId = (configured: string | undefined): string =>
  configured ?? `${hostname()}-${randomUUID().slice(0, 8)}`;

/** Where the files of one database are. Pure: any thread may compute it. */
export interface DatabasePaths {
  readonly directory: string;
  readonly database: string;
  readonly wal: string;
  readonly journal: string;
  readonly checksums: string;
  readonly ltx: string;
}

/** Paths of a database in a data directory; throws ERR_STORE_NAME. */
export function databasePaths(dataDir: string, name: string): DatabasePaths {
  const directory = join(dataDir, 'dbs', encodeDatabaseName(name));
  return {
    directory,
    database: join(directory, 'database'),
    wal: join(directory, 'database-wal'),
    journal: join(directory, 'database-journal'),
    checksums: join(directory, 'checksums'),
    ltx: join(directory, 'ltx'),
  };
}

/** Names of all databases with a folder in a data directory, sorted. What else somebody put there is not looked at. */
export function storedDatabaseNames(dataDir: string): string[] {
  return readdirSync(join(dataDir, 'dbs'), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => decodeDatabaseName(entry.name))
    .filter((name) => name !== undefined)
    .toSorted();
}

/** `<data>`: made or opened, and owned (an OS lock that dies with the process) until `close`. */
export class DataDirectory {
  readonly path: string;
  readonly #lock: Database.Database;
  #node: NodeState;
  #clusterId: string | undefined;

  private constructor(path: string, lock: Database.Database, newNodeId: string) {
    this.path = path;
    this.#lock = lock;
    for (const folder of ['dbs', 'lost+found', 'tree']) mkdirSync(join(path, folder), { recursive: true });
    finishReplacements(path);
    this.#clusterId = readText(join(path, 'clusterid'))?.trim() || undefined;
    const known = readText(join(path, 'node.json'));
    this.#node =
      known === undefined
        ? { nodeId: newNodeId, epoch: 0n, wasPrimary: false }
        : parseNode(known, join(path, 'node.json'));
    if (known === undefined) {
      migrateLiteFsLayout(path);
      // Last: while there is no node.json, the layout of the databases may still be LiteFS's.
      this.#writeNode();
    }
  }

  /**
   * Opens or makes a data directory. `nodeId` names a new directory; an existing one keeps its own.
   * A directory in LiteFS's layout is migrated. Throws ERR_STORE_LOCKED, ERR_STORE_DAMAGED,
   * ERR_STORE_DIRECTORY, ERR_STORE_FULL.
   */
  static open(path: string, options: { nodeId: string }): DataDirectory {
    let lock: Database.Database | undefined;
    try {
      makeDurableFolder(path);
      lock = takeLock(join(path, 'lock'));
      return new DataDirectory(path, lock, options.nodeId);
    } catch (error) {
      lock?.close();
      throw asDirectoryError(path, error);
    }
  }

  get node(): NodeState {
    return this.#node;
  }

  /** Changes node.json durably: when it returns, a power cut does not undo it. Never lowers the epoch. */
  updateNode(change: Partial<NodeState>): void {
    const before = this.#node;
    const epoch = change.epoch !== undefined && change.epoch > before.epoch ? change.epoch : before.epoch;
    const next = { ...before, ...change, epoch };
    if (next.epoch === before.epoch && next.nodeId === before.nodeId && next.wasPrimary === before.wasPrimary)
      return;
    this.#node = next;
    try {
      this.#writeNode();
    } catch (error) {
      this.#node = before;
      throw error;
    }
  }

  /**
   * Notes this process as the one that has the directory. Returns the one noted before it when that has surely ended: it had the very
   * lock that is this one's now. A copied directory has a lock file of its own, a copied disk is found under another boot: of
   * whoever was noted there nothing is known.
   */
  replaceProcess(incarnation: string): string | undefined {
    const path = join(this.path, 'process');
    const { dev, ino } = statSync(join(this.path, 'lock'), { bigint: true });
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    const lock = `${boot} ${dev}:${ino}`;
    const [before, former] = readText(path)?.split('\n') ?? [];
    try {
      // Torn or not written (a full disk): the next start waits for the silence of this process instead. After a power cut the boot is another.
      writeFileSync(path, `${lock}\n${incarnation}\n`);
    } catch {
      rmSync(path, { force: true });
    }
    return before === lock ? former || undefined : undefined;
  }

  /** The cluster that this directory belongs to, or undefined when it never joined one. */
  get clusterId(): string | undefined {
    return this.#clusterId;
  }

  /** Joins a cluster for good; throws ERR_STORE_OTHER_CLUSTER when it belongs to another one. */
  joinCluster(clusterId: string): void {
    if (this.#clusterId === clusterId) return;
    if (this.#clusterId !== undefined) {
      throw new KiteError(
        'ERR_STORE_OTHER_CLUSTER',
        `${this.path} belongs to cluster ${this.#clusterId}, not ${clusterId}`,
      );
    }
    replaceFile(join(this.path, 'clusterid'), Buffer.from(`${clusterId}\n`));
    this.#clusterId = clusterId;
  }

  /** Names of all databases with a folder here, sorted; also those whose `database` was dropped and whose log is kept. */
  names(): string[] {
    return storedDatabaseNames(this.path);
  }

  /** Makes the folders of a database durable; harmless when they exist. */
  createDatabase(name: string): DatabasePaths {
    const paths = databasePaths(this.path, name);
    makeDurableFolder(paths.ltx);
    return paths;
  }

  /** Files in the mount that are no database, sorted: they stay on this node. */
  otherFiles(): string[] {
    const tree = join(this.path, 'tree');
    return readdirSync(tree, { withFileTypes: true, recursive: true })
      .filter((entry) => entry.isFile())
      .map((entry) => relative(tree, join(entry.parentPath, entry.name)))
      .toSorted();
  }

  /** Gives the directory up. */
  close(): void {
    this.#lock.close();
  }

  #writeNode(): void {
    const { nodeId, epoch, wasPrimary } = this.#node;
    const text = JSON.stringify({ nodeId, epoch: epoch.toString(), wasPrimary }, null, 2);
    replaceFile(join(this.path, 'node.json'), Buffer.from(`${text}\n`));
  }
}

/** Makes a folder and those above it; the new names are durable when it returns. */
function makeDurableFolder(path: string): void {
  const first = mkdirSync(path, { recursive: true });
  if (first === undefined) return;
  for (let folder = path; ; folder = dirname(folder)) {
    fsyncDirectory(dirname(folder));
    if (folder.length <= first.length) return;
  }
}

/**
 * An exclusive lock of an empty SQLite file: a POSIX lock of this process on it, which the kernel drops when
 * the process ends in whatever way, and which is refused to a second owner in the same process too. Nobody else
 * may open that file here: closing any descriptor of it would drop the lock.
 */
function takeLock(path: string): Database.Database {
  let lock: Database.Database | undefined;
  try {
    lock = new Database(path, { timeout: 0 });
    // SQLite would keep a journal for the page that it gives an empty database.
    lock.pragma('journal_mode = MEMORY');
    lock.exec('BEGIN EXCLUSIVE');
    return lock;
  } catch (error) {
    lock?.close();
    const { code } = error as { code?: unknown };
    if (/^SQLITE_(CANTOPEN|READONLY|PERM|FULL|IOERR)/.test(String(code))) throw error;
    if (code !== 'SQLITE_BUSY') {
      throw new KiteError('ERR_STORE_DAMAGED', `${path} cannot be locked: ${String(error)}`, {
        cause: error,
      });
    }
    const holder = findLockHolder([databaseLocks(path)]);
    throw new KiteError(
      'ERR_STORE_LOCKED',
      `${dirname(path)} is in use by ${holder === undefined ? 'another process' : `process ${holder.pid}`}`,
    );
  }
}

/** What the system says of a folder that cannot be used; errors of the table are left as they are. */
function asDirectoryError(path: string, error: unknown): unknown {
  if (error instanceof KiteError || !(error instanceof Error) || !('code' in error)) return error;
  if (isErrno(error, 'ENOSPC', 'EDQUOT') || /^SQLITE_(FULL|IOERR)/.test(String(error.code))) {
    return new KiteError('ERR_STORE_FULL', `no space in ${path}`, { cause: error });
  }
  return new KiteError('ERR_STORE_DIRECTORY', `data.dir ${path} cannot be used: ${error.message}`, {
    cause: error,
  });
}

function parseNode(text: string, path: string): NodeState {
  try {
    const { nodeId, epoch, wasPrimary } = JSON.parse(text) as Record<string, unknown>;
    if (typeof nodeId === 'string' && typeof epoch === 'string' && typeof wasPrimary === 'boolean') {
      return { nodeId, epoch: BigInt(epoch), wasPrimary };
    }
  } catch {
    // Neither JSON nor a number: said below.
  }
  throw new KiteError('ERR_STORE_DAMAGED', `${path} does not hold nodeId, epoch and wasPrimary`);
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return undefined;
    throw error;
  }
}
