import { ltxFileName, parseLtxFileName, type TxidRange } from '../ltx/position.js';
import { encodeDatabaseName } from '../store/database-name.js';
import type { Destination, StoredObject } from './destination.js';

/**
 * Litestream 0.5's names of objects: `<level folder>/<min16>-<max16>.ltx` below the folder of a database. Kinds of
 * destinations name the level's folder in two ways: `0000/` on S3, `ltx/0/` in folders and elsewhere.
 */

/** Level of snapshots: files that begin at TXID 1. Level 0 is what was shipped, 1 to 8 are compactions. */
export const SNAPSHOT_LEVEL = 9;

/** An LTX file in the bucket. The TXIDs are the bucket's own, not those of the cluster (see stamp.ts). */
export interface BackupFile extends TxidRange {
  readonly level: number;
  readonly key: string;
  readonly sizeBytes: number;
  readonly modifiedMs: number;
}

/** Folder of a database in a destination, with a slash at its end. */
export const databaseFolder = (name: string): string => `${encodeDatabaseName(name)}/`;

/** Folder of a level below that of a database, with a slash at its end. */
export const levelFolder = (type: Destination['type'], level: number): string =>
  type === 's3' ? `${level.toString(16).padStart(4, '0')}/` : `ltx/${level}/`;

/** Key of a file: `folder` is that of the database (empty: the destination's path is the database's). */
export const fileKey = (type: Destination['type'], folder: string, level: number, range: TxidRange): string =>
  folder + levelFolder(type, level) + ltxFileName(range);

/** What a listed object is; undefined for what is no LTX file, or is in a folder below that of the level. */
function backupFile(level: number, prefix: string, object: StoredObject): BackupFile | undefined {
  const range = parseLtxFileName(object.key.slice(prefix.length));
  return range && { ...range, ...object, level };
}

/** The files of a level in the order of their names, from the one after `after` (a TXID: files that begin there or before are left out). */
export async function* listLevel(
  from: Destination,
  folder: string,
  level: number,
  after = 0n,
): AsyncGenerator<BackupFile> {
  const prefix = folder + levelFolder(from.type, level);
  // No name with this min TXID comes after it: `g` is behind every hex digit.
  const options = after > 0n ? { after: `${prefix}${after.toString(16).padStart(16, '0')}-g` } : {};
  for await (const object of from.list(prefix, options)) {
    const file = backupFile(level, prefix, object);
    if (file) yield file;
  }
}
