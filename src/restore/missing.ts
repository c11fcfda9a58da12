import { closeSync, existsSync, mkdirSync, openSync, readSync, fstatSync, fsyncSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { KiteError } from '../errors.js';
import type { Destination } from '../backup/destination.js';
import { readHead } from '../backup/head.js';
import { databaseFolder } from '../backup/layout.js';
import type { BackupSettings } from '../backup/messages.js';
import { openDestination } from '../backup/open.js';
import { stampOf, type Stamp } from '../backup/stamp.js';
import type { LeasePositions } from '../lease/types.js';
import { DatabaseChecksum } from '../ltx/checksum.js';
import { LtxEncoder } from '../ltx/encoder.js';
import { lockPgno } from '../ltx/format.js';
import { parseDatabaseHeader } from '../sqlite/database-header.js';
import type { LogFileMeta } from '../store/log.js';
import { encodeDatabaseName } from '../store/database-name.js';
import { fsyncDirectory, writeFully } from '../util/files.js';
import { listFiles, listGenerations } from './bucket.js';
import { fetchHeader } from './fetch.js';
import { databaseFolders, databaseOf } from './inventory.js';
import { reachOf } from './plan.js';
import { restore, type Restored } from './restore.js';

/**
 * `restore-if-missing`: a node that has nothing starts from its backups. What is here does the work; when it may be done, the
 * daemon decides (decision 025).
 */

/** A database in a destination, at its newest state. */
export interface FoundDatabase {
  readonly name: string;
  readonly settings: BackupSettings;
  /** Undefined: written by Litestream, the cluster knows of no position in it. */
  readonly stamp: Stamp | undefined;
}

/** What the destinations of a configuration have. */
export interface FoundBackups {
  /** Whose they are; undefined: no cluster of KiteFS has written there. */
  readonly clusterId: string | undefined;
  /** The highest that was written there. */
  readonly epoch: bigint;
  /** Of each database the furthest. */
  readonly databases: readonly FoundDatabase[];
}

/**
 * Looks into every destination: all of them have to answer, because one that does not may be the one that is furthest. With `only`: for
 * this database, also when it was dropped. Throws ERR_BACKUP_*; ERR_BACKUP_OTHER_CLUSTER when they are not of one cluster.
 */
export async function findBackups(backups: readonly BackupSettings[], only?: string): Promise<FoundBackups> {
  let clusterId: string | undefined;
  let epoch = 0n;
  const furthest = new Map<string, FoundDatabase>();
  for (const settings of backups) {
    const from = await openDestination(settings.destination);
    try {
      const head = await readHead(from);
      if (head && clusterId !== undefined && head.clusterId !== clusterId) {
        throw new KiteError(
          'ERR_BACKUP_OTHER_CLUSTER',
          `${from.url} has the backups of cluster ${head.clusterId}, another destination those of ${clusterId}`,
        );
      }
      clusterId ??= head?.clusterId;
      if (head && head.epoch > epoch) epoch = head.epoch;
      for (const folder of only === undefined ? await databaseFolders(from) : [databaseFolder(only)]) {
        const name = databaseOf(folder);
        if (name === undefined) {
          throw new KiteError(
            'ERR_BACKUP_OTHER_WRITER',
            `${from.url} is the folder of one database, or of another program: a path in \`backups\` has a folder for each database`,
          );
        }
        const isDropped = head?.databases[folder.slice(0, -1)]?.droppedMs !== undefined;
        if (isDropped && only === undefined) continue;
        const newest = await newestOf(from, folder);
        if (!newest) continue;
        if (newest.stamp && newest.stamp.epoch > epoch) epoch = newest.stamp.epoch;
        const other = furthest.get(name);
        if (!other || isAfter(newest.stamp, other.stamp)) {
          furthest.set(name, { name, settings, stamp: newest.stamp });
        }
      }
    } finally {
      from.close();
    }
  }
  return { clusterId, epoch, databases: [...furthest.values()] };
}

/** Undefined when the folder has nothing that could be restored. */
async function newestOf(
  from: Destination,
  folder: string,
): Promise<{ readonly stamp: Stamp | undefined } | undefined> {
  const files = await listFiles(from, folder);
  const newest = reachOf(files).files.at(-1);
  if (newest) return { stamp: stampOf(await fetchHeader(from, newest)) };
  // Something is there, and nothing leads to it: restoring says what is missing.
  if (files.length > 0) return { stamp: undefined };
  const { snapshots } = await listGenerations({ from, folder });
  return snapshots.length > 0 ? { stamp: undefined } : undefined;
}

const isAfter = (a: Stamp | undefined, b: Stamp | undefined): boolean =>
  a !== undefined && (b === undefined || (a.epoch !== b.epoch ? a.epoch > b.epoch : a.txid > b.txid));

/** As the lease compares them. */
export const positionsOf = ({ databases }: FoundBackups): LeasePositions =>
  Object.fromEntries(
    databases.map(({ name, stamp }) => [name, stamp ? `${stamp.epoch}:${stamp.txid}` : '0:1']),
  );

/**
 * The folder in which an empty node restores: while it is there, the restore of all databases has begun and not ended, so that no
 * start takes some of them for all. What is in it is gone on from.
 */
export class RestoringFolder {
  readonly path: string;

  constructor(dataDir: string) {
    this.path = join(dataDir, 'restoring');
  }

  get exists(): boolean {
    return existsSync(this.path);
  }

  /** Durable before the first database is there: a power cut must not leave one without it. */
  begin(): void {
    mkdirSync(this.path, { recursive: true });
    fsyncDirectory(join(this.path, '..'));
  }

  /** Every database is in its log, durably; or somebody else has them. */
  end(): void {
    if (!this.exists) return;
    rmSync(this.path, { recursive: true, force: true });
    fsyncDirectory(join(this.path, '..'));
  }
}

/** A restored database as the one file of a log. */
export interface SeedFile {
  readonly path: string;
  readonly meta: LogFileMeta;
  readonly restored: Restored;
}

/**
 * Restores the newest state of a database into `folder` and makes one LTX file of it, which begins the log: from TXID 1 to the
 * cluster's TXID of that state, with its checksum. So the cluster's numbering goes on, and so does the bucket. Durable
 * when it resolves. Interrupted, the next call goes on. Throws ERR_RESTORE_*, ERR_BACKUP_*.
 */
export async function restoreSeed(
  { name, settings }: FoundDatabase,
  folder: string,
  { say, onProgress }: { say: (line: string) => void; onProgress: (done: number, total: number) => void },
): Promise<SeedFile> {
  const output = join(folder, encodeDatabaseName(name));
  const from = await openDestination(settings.destination);
  try {
    // Whole, and before it was in the log somebody ended this node: the bucket may have more by now.
    rmSync(output, { force: true });
    const restored = await restore({
      from,
      folder: databaseFolder(name),
      output,
      wanted: { kind: 'latest' },
      parallelism: 8,
      integrityCheck: 'none',
      say,
      onProgress,
    });
    const path = `${output}.ltx`;
    const meta = await encodeWhole(output, path, {
      txid: restored.clusterTxid ?? 1n,
      epoch: restored.epoch ?? 0n,
      timestampMs: restored.timestampMs,
    });
    rmSync(output);
    return { path, meta, restored };
  } finally {
    from.close();
  }
}

/** Pages between two looks at the event loop, on which the lease is renewed. */
const STEP_PAGES = 64;

/** Writes a SQLite file as a snapshot, which is durable then. Throws ERR_RESTORE_DAMAGED for what is no database. */
export async function encodeWhole(
  source: string,
  path: string,
  at: { readonly txid: bigint; readonly epoch: bigint; readonly timestampMs: number },
): Promise<LogFileMeta> {
  const input = openSync(source, 'r');
  const output = openSync(path, 'w');
  try {
    const start = Buffer.alloc(100);
    const header = readSync(input, start, 0, 100, 0) === 100 ? parseDatabaseHeader(start) : undefined;
    if (!header) throw new KiteError('ERR_RESTORE_DAMAGED', `${source} is no SQLite database`);
    const { pageSize } = header;
    const commitPages = Math.floor(fstatSync(input).size / pageSize);
    const encoder = new LtxEncoder();
    const { txid: maxTxid, epoch, timestampMs } = at;
    encoder.begin(
      { pageSize, commitPages, minTxid: 1n, maxTxid, timestampMs, preApplyChecksum: 0n, epoch },
      (chunk) => writeFully(output, chunk),
    );
    const page = Buffer.alloc(pageSize);
    const lock = lockPgno(pageSize);
    const sum = new Uint32Array(2);
    const total = new DatabaseChecksum();
    for (let pgno = 1; pgno <= commitPages; pgno += 1) {
      if (pgno % STEP_PAGES === 0) await new Promise((resolve) => setImmediate(resolve));
      if (pgno === lock) continue;
      readSync(input, page, 0, pageSize, (pgno - 1) * pageSize);
      encoder.addPage(pgno, page, sum);
      total.toggle(sum[0]!, sum[1]!);
    }
    const { sizeBytes, postApplyChecksum } = encoder.end(total.value);
    fsyncSync(output);
    return {
      minTxid: 1n,
      maxTxid,
      sizeBytes,
      epoch,
      pageSize,
      commitPages,
      preApplyChecksum: 0n,
      postApplyChecksum,
    };
  } finally {
    closeSync(input);
    closeSync(output);
  }
}
