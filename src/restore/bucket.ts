import type { Destination, StoredObject } from '../backup/destination.js';
import { listLevel, SNAPSHOT_LEVEL, type BackupFile } from '../backup/layout.js';
import { GENERATIONS_FOLDER, parseGenerations, type Generations } from './generations.js';

/**
 * All LTX files of a database. Lowest level first: a compaction makes the higher file before it removes the lower ones, so whatever a
 * writer does meanwhile, no TXID falls between two listings. Throws ERR_BACKUP_*.
 */
export async function listFiles(from: Destination, folder: string): Promise<BackupFile[]> {
  const files: BackupFile[] = [];
  for (let level = 0; level <= SNAPSHOT_LEVEL; level += 1) {
    for await (const file of listLevel(from, folder, level)) files.push(file);
  }
  return files;
}

/** What Litestream 0.3 has left in a database's folder. Throws ERR_BACKUP_*. */
export async function listGenerations({
  from,
  folder,
}: {
  readonly from: Destination;
  readonly folder: string;
}): Promise<Generations> {
  const objects: StoredObject[] = [];
  for await (const object of from.list(`${folder}${GENERATIONS_FOLDER}`)) objects.push(object);
  return parseGenerations(objects);
}
