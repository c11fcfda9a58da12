import { existsSync, mkdirSync, readdirSync, renameSync, rmdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fsyncDirectory } from '../util/files.js';
import { encodeDatabaseName } from './database-name.js';

/**
 * A database of a stopped node gets another content as a whole folder: `<data>/replace/<encoded name>` takes the place of
 * `<data>/dbs/<encoded name>`, which goes to lost+found. What is in `replace` is decided: whoever owns the data directory next
 * finishes it, before anything looks into `dbs`. So a kill leaves the old database or the new one, never none.
 */

const placeOf = (dataDir: string, encodedName: string): string => join(dataDir, 'dbs', encodedName);

/**
 * Decides that `folder` (durable, on the disk of the data directory) is a database from now on, and finishes it. Returns where the old one
 * is, if there was one.
 */
export function replaceDatabase(dataDir: string, name: string, folder: string): string | undefined {
  const encodedName = encodeDatabaseName(name);
  const decided = join(dataDir, 'replace');
  mkdirSync(decided, { recursive: true });
  fsyncDirectory(dataDir);
  renameSync(folder, join(decided, encodedName));
  fsyncDirectory(decided);
  return finishReplacements(dataDir).get(encodedName);
}

/** Finishes what was decided; returns by encoded name where the old databases are. */
export function finishReplacements(dataDir: string): Map<string, string> {
  const decided = join(dataDir, 'replace');
  const kept = new Map<string, string>();
  if (!existsSync(decided)) return kept;
  for (const encodedName of readdirSync(decided)) {
    const place = placeOf(dataDir, encodedName);
    if (existsSync(place)) kept.set(encodedName, setAside(dataDir, encodedName, place));
    renameSync(join(decided, encodedName), place);
    // There before it is gone here: after a power cut at the worst both names are looked at again.
    fsyncDirectory(dirname(place));
    fsyncDirectory(decided);
  }
  rmdirSync(decided);
  return kept;
}

function setAside(dataDir: string, encodedName: string, place: string): string {
  const parent = join(dataDir, 'lost+found', encodedName);
  mkdirSync(parent, { recursive: true });
  fsyncDirectory(dirname(parent));
  const kept = join(parent, `replaced-${new Date().toISOString().replaceAll(':', '')}`);
  renameSync(place, kept);
  fsyncDirectory(parent);
  return kept;
}
