import { isAbsolute, relative } from 'node:path';
import type { Destination } from '../backup/destination.js';
import { databaseFolder } from '../backup/layout.js';
import { openDestination, parseDestinationUrl } from '../backup/open.js';
import type { LoadedConfig } from '../config/load.js';
import { KiteError } from '../errors.js';
import { databaseFolders } from '../restore/inventory.js';

/** Where the backup of a database is. */
export interface BackupSource {
  readonly from: Destination;
  /** Empty: the destination's path is the database's. */
  readonly folder: string;
}

/** Whether a word of the command line is a URL, not a database. */
export const isUrl = (word: string): boolean => /^[a-z][a-z0-9+.-]*:\/\//i.test(word);

/**
 * The places of a database's backup, in the order of the configuration: that of a URL, or one for each entry of `backups`. A database is
 * named as its path in the mount, with or without `fuse.dir`. Throws ERR_BACKUP_URL, ERR_CONFIG_*, ERR_STORE_NAME.
 */
export async function sourcesOf(word: string, config: () => LoadedConfig): Promise<BackupSource[]> {
  if (isUrl(word)) return [{ from: await openDestination(parseDestinationUrl(word)), folder: '' }];
  const { backups } = config().config;
  const folder = databaseFolder(databaseNamed(word, config()));
  return await Promise.all(
    configured(backups).map(async ({ destination }) => ({
      from: await openDestination(destination),
      folder,
    })),
  );
}

/** The database that a word names: its path in the mount, with or without `fuse.dir`. */
export const databaseNamed = (word: string, { config: { fuse } }: LoadedConfig): string =>
  isAbsolute(word) ? relative(fuse.dir, word) : word;

/** All destinations of the configuration. Throws ERR_CONFIG_INVALID when it has none. */
function configured<T>(backups: readonly T[]): readonly T[] {
  if (backups.length === 0)
    throw new KiteError('ERR_CONFIG_INVALID', 'the configuration has no backups: name one, or give a URL');
  return backups;
}

/** The databases of a place: a URL or a whole destination may hold one or many. */
export const foldersOf = async ({ from, folder }: BackupSource): Promise<readonly string[]> =>
  folder === '' ? await databaseFolders(from) : [folder];

/** As sourcesOf; without a word, all of every destination of the configuration. */
export async function placesOf(
  word: string | undefined,
  config: () => LoadedConfig,
): Promise<BackupSource[]> {
  if (word !== undefined) return await sourcesOf(word, config);
  return await Promise.all(
    configured(config().config.backups).map(async ({ destination }) => ({
      from: await openDestination(destination),
      folder: '',
    })),
  );
}
