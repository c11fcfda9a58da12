import { existsSync, mkdirSync, readdirSync, renameSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fsyncDirectory } from '../util/files.js';
import { encodeDatabaseName } from './database-name.js';

/**
 * LiteFS keeps a database as `<data>/dbs/NAME/{database,wal,journal,shm,ltx/}`. KiteFS names these files as
 * SQLite does beside `database`, and encodes NAME.
 */

const RENAMED = { wal: 'database-wal', journal: 'database-journal' } as const;

/** What only KiteFS writes into a database's folder. */
const OURS = ['database-wal', 'database-journal', 'checksums', 'ltx/synced'];

/**
 * Moves the databases of a LiteFS data directory to KiteFS's layout; does nothing in any other. It is called
 * while there is no node.json. `dbs` is first set aside as a whole as `dbs.litefs`: a folder in there is not
 * done, one in `dbs` is, so a migration that was cut off at any point goes on at the next start.
 */
export function migrateLiteFsLayout(dataDir: string): void {
  const dbs = join(dataDir, 'dbs');
  const old = join(dataDir, 'dbs.litefs');
  if (!existsSync(old)) {
    const folders = readdirSync(dbs);
    // Folders of KiteFS whose node.json was deleted by hand are as they should be.
    if (folders.some((folder) => OURS.some((file) => existsSync(join(dbs, folder, file))))) return;
    if (folders.length === 0) return;
    renameSync(dbs, old);
    mkdirSync(dbs);
    fsyncDirectory(dataDir);
  }
  for (const name of readdirSync(old)) {
    const folder = join(old, name);
    for (const [theirs, ours] of Object.entries(RENAMED)) {
      if (existsSync(join(folder, theirs))) renameSync(join(folder, theirs), join(folder, ours));
    }
    // The wal-index is made again by SQLite's recovery.
    rmSync(join(folder, 'shm'), { force: true });
    // The files' new names before the folder's: once it is in `dbs` nobody looks for the old ones.
    fsyncDirectory(folder);
    renameSync(folder, join(dbs, encodeDatabaseName(name)));
  }
  fsyncDirectory(dbs);
  rmdirSync(old);
  fsyncDirectory(dataDir);
}
