import { mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fsyncDirectory, isErrno, replaceFile } from '../util/files.js';
import { decodeDatabaseName } from './database-name.js';

const MANIFEST = 'manifest.json';
const DATABASE = 'database.ltx';

/** What is known of transactions that were set aside because the cluster has others. */
export interface LostTransactions {
  readonly transactions: number;
  /** The last TXID that the cluster has too; the files may begin a little before. */
  readonly after: string;
  /** `<txid>/<checksum>` of the last of them. */
  readonly end: string;
  /** Of the last of them, decimal. */
  readonly epoch: string;
  /** False: the primary's log did not reach back far enough to tell; it may have them. */
  readonly certain: boolean;
  /** A snapshot LTX of the database as it was with them. */
  readonly database?: string;
}

/** What was set aside, and why: `manifest.json` beside the files. */
export interface LostManifest {
  /** The database's name. */
  readonly name: string;
  readonly reason: string;
  /** File names, oldest first. */
  readonly files: readonly string[];
  /** Absent when the files are of no use rather than lost. */
  readonly lost?: LostTransactions;
  /** ISO time of this node's clock, for people only. */
  readonly time: string;
}

/** `<data>/lost+found/<encoded name>/<time>/`: LTX files of transactions this node had to give up. Never deletes. */
export class LostAndFound {
  readonly path: string;

  constructor(dataDir: string) {
    this.path = join(dataDir, 'lost+found');
  }

  /**
   * Moves files (oldest first) of a database here; returns the folder they are in. Durable when it returns.
   * `lost.database` is the path of a file that moves with them. The manifest is there before the first file, and the newest file moves first: a crash leaves some files
   * here and the rest as a chain where they were.
   */
  setAside(encodedName: string, files: readonly string[], reason: string, lost?: LostTransactions): string {
    const time = new Date().toISOString();
    const directory = this.#makeFolder(encodedName, time.replaceAll(':', '-'));
    const name = decodeDatabaseName(encodedName) ?? encodedName;
    const manifest: LostManifest = {
      name,
      reason,
      files: files.map((file) => basename(file)),
      ...(lost && { lost: { ...lost, ...(lost.database && { database: DATABASE }) } }),
      time,
    };
    replaceFile(join(directory, MANIFEST), Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`));
    if (lost?.database) renameSync(lost.database, join(directory, DATABASE));
    for (const file of files.toReversed()) {
      try {
        renameSync(file, join(directory, basename(file)));
      } catch (error) {
        // An attempt that failed half-way has moved it to another folder here: go on with the rest.
        if (!isErrno(error, 'ENOENT')) throw error;
      }
    }
    // New folder first: the names must be durable here before they may be gone there.
    fsyncDirectory(directory);
    for (const source of new Set(files.map((file) => dirname(file)))) fsyncDirectory(source);
    return directory;
  }

  /** Everything that was ever set aside, oldest first per database. */
  list(): { directory: string; manifest: LostManifest }[] {
    return foldersIn(this.path)
      .flatMap((database) => foldersIn(database))
      .flatMap((directory) => {
        try {
          const text = readFileSync(join(directory, MANIFEST), 'utf8');
          return [{ directory, manifest: JSON.parse(text) as LostManifest }];
        } catch (error) {
          // Made and then crashed before the manifest: nothing is in it.
          if (isErrno(error, 'ENOENT')) return [];
          throw error;
        }
      });
  }

  #makeFolder(encodedName: string, time: string): string {
    const parent = join(this.path, encodedName);
    mkdirSync(parent, { recursive: true });
    for (let attempt = 0; ; attempt += 1) {
      const directory = join(parent, attempt === 0 ? time : `${time}-${attempt}`);
      try {
        mkdirSync(directory);
      } catch (error) {
        if (isErrno(error, 'EEXIST')) continue;
        throw error;
      }
      for (const path of [parent, this.path, dirname(this.path)]) fsyncDirectory(path);
      return directory;
    }
  }
}

function foldersIn(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(path, entry.name))
      .toSorted();
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}
