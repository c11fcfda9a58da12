import { mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fsyncDirectory, isErrno, replaceFile } from '../util/files.js';
import { decodeDatabaseName } from './database-name.js';

const MANIFEST = 'manifest.json';

/** What was set aside, and why: `manifest.json` beside the files. */
export interface LostManifest {
  /** The database's name. */
  readonly name: string;
  readonly reason: string;
  /** File names, oldest first. */
  readonly files: readonly string[];
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
   * The manifest is there before the first file, and the newest file moves first: a crash leaves some files
   * here and the rest as a chain where they were.
   */
  setAside(encodedName: string, files: readonly string[], reason: string): string {
    const time = new Date().toISOString();
    const directory = this.#makeFolder(encodedName, time.replaceAll(':', '-'));
    const name = decodeDatabaseName(encodedName) ?? encodedName;
    const manifest: LostManifest = { name, reason, files: files.map((file) => basename(file)), time };
    replaceFile(join(directory, MANIFEST), Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`));
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
