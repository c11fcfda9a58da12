import type { Destination } from '../backup/destination.js';
import { SNAPSHOT_LEVEL, type BackupFile } from '../backup/layout.js';
import { toKiteError } from '../errors.js';
import type { LtxHeader } from '../ltx/format.js';
import { decodeDatabaseName } from '../store/database-name.js';
import { listFiles, listGenerations } from './bucket.js';
import { fetchHeader } from './fetch.js';
import type { Generations } from './generations.js';
import { type Hole, reachOf } from './plan.js';

/** A state that can be restored. */
export interface RestorePoint {
  /** The bucket's, for -txid. */
  readonly txid: bigint;
  /** The cluster's, for -cluster-txid; undefined when KiteFS did not write the object. */
  readonly clusterTxid: bigint | undefined;
  readonly timestampMs: number;
}

export interface LevelSummary {
  /** 0: every upload; 1 to 8: compactions; 9: snapshots. */
  readonly level: number;
  readonly files: number;
  readonly sizeBytes: number;
  readonly minTxid: bigint;
  readonly maxTxid: bigint;
  /** By the headers of its first and last object. */
  readonly oldestMs: number | undefined;
  readonly newestMs: number | undefined;
}

/** What a destination has of one database. */
export interface Inventory {
  readonly url: string;
  readonly sizeBytes: number;
  readonly levels: readonly LevelSummary[];
  readonly snapshots: readonly (RestorePoint & { readonly sizeBytes: number })[];
  /** How many states can be restored, and the first and last of them. */
  readonly points: number;
  readonly oldest: RestorePoint | undefined;
  readonly newest: RestorePoint | undefined;
  readonly holes: readonly Hole[];
  /** What Litestream 0.3 has left there: copies with the WAL that followed, to be restored by time. */
  readonly litestream03: OldSummary | undefined;
}

export interface OldSummary {
  readonly generations: number;
  readonly snapshots: number;
  readonly sizeBytes: number;
  readonly oldestMs: number;
  readonly newestMs: number;
}

/** Looks through a database's folder: one listing a level and a few headers. Throws ERR_BACKUP_*. */
export async function inventoryOf(from: Destination, folder: string): Promise<Inventory> {
  const files = await listFiles(from, folder);
  const reach = reachOf(files);
  const read = async (file: BackupFile | undefined): Promise<RestorePoint | undefined> => {
    const header = file && (await headerOf(from, file));
    return header && { ...pointOf(header), txid: file.maxTxid };
  };
  const levels = await Promise.all(
    [...new Set(files.map(({ level }) => level))].map(async (level): Promise<LevelSummary> => {
      const own = files.filter((file) => file.level === level);
      const [oldest, newest] = await Promise.all([read(own[0]), read(own.at(-1))]);
      return {
        level,
        files: own.length,
        sizeBytes: sum(own),
        minTxid: own[0]!.minTxid,
        maxTxid: own.at(-1)!.maxTxid,
        oldestMs: oldest?.timestampMs,
        newestMs: newest?.timestampMs,
      };
    }),
  );
  const snapshots = await Promise.all(
    files
      .filter(({ level }) => level === SNAPSHOT_LEVEL)
      .map(async (file) => ({ point: await read(file), sizeBytes: file.sizeBytes })),
  );
  const [oldest, newest] = await Promise.all([read(reach.files[0]), read(reach.files.at(-1))]);
  return {
    url: `${from.url}${folder && `/${folder.slice(0, -1)}`}`,
    sizeBytes: sum(files),
    levels,
    snapshots: snapshots.flatMap(({ point, sizeBytes }) => (point ? [{ ...point, sizeBytes }] : [])),
    points: new Set(reach.files.map(({ maxTxid }) => maxTxid)).size,
    oldest,
    newest,
    holes: reach.holes,
    litestream03: oldSummary(await listGenerations({ from, folder })),
  };
}

function oldSummary({ snapshots, pieces }: Generations): OldSummary | undefined {
  if (snapshots.length === 0) return undefined;
  const objects = [...snapshots, ...pieces];
  return {
    generations: new Set(snapshots.map(({ generation }) => generation)).size,
    snapshots: snapshots.length,
    sizeBytes: sum(objects),
    oldestMs: Math.min(...snapshots.map(({ modifiedMs }) => modifiedMs)),
    newestMs: Math.max(...objects.map(({ modifiedMs }) => modifiedMs)),
  };
}

const sum = (files: readonly { readonly sizeBytes: number }[]): number =>
  files.reduce((bytes, { sizeBytes }) => bytes + sizeBytes, 0);

const pointOf = (header: LtxHeader): RestorePoint => ({
  txid: header.maxTxid,
  clusterTxid: header.clusterChecksum === 0n ? undefined : header.clusterTxid,
  timestampMs: header.timestampMs,
});

/** Undefined for an object that is gone since it was listed, or damaged: restoring says more. */
async function headerOf(from: Destination, file: BackupFile): Promise<LtxHeader | undefined> {
  try {
    return await fetchHeader(from, file);
  } catch (error) {
    if (/^ERR_(BACKUP_MISSING|LTX_)/.test(toKiteError(error).code)) return undefined;
    throw error;
  }
}

/**
 * The folders of databases in a destination, each with a slash at its end: empty for the destination's own path when that is a
 * database's (as in Litestream's URLs).
 */
export async function databaseFolders(from: Destination): Promise<string[]> {
  const names = await from.folders('');
  if (names.some(isLevelFolder)) return [''];
  return names.filter((name) => !name.startsWith('.')).map((name) => `${name}/`);
}

/** Folders of Litestream's layouts within that of a database. */
export const isLevelFolder = (name: string): boolean => /^(000\d|ltx|generations)$/.test(name);

/** What the database of a folder is called; undefined when KiteFS has not made the folder. */
export const databaseOf = (folder: string): string | undefined =>
  folder === '' ? undefined : decodeDatabaseName(folder.slice(0, -1));
