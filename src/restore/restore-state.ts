import Database from 'better-sqlite3';
import { rmSync } from 'node:fs';
import { KiteError } from '../errors.js';

/** What an interrupted restore had done: the next one goes on from there. */
export interface Progress {
  /** Where from: the destination and the database's folder. */
  readonly source: string;
  /** TXID at the end of the path, in hex. */
  readonly target: string;
  /** Keys of all files of the path, oldest first. */
  readonly path: readonly string[];
  /** How many of them are applied. Of those after them some pages may be there. */
  readonly done: number;
  readonly pageSize: number;
  readonly pages: number;
}

/**
 * The note beside a file that is being restored. It is a SQLite database, so that it changes as a whole, survives a power cut, and
 * its lock, which dies with the process, keeps a second restore away.
 */
export class RestoreState {
  readonly #path: string;
  readonly #db: Database.Database;

  private constructor(path: string, db: Database.Database) {
    this.#path = path;
    this.#db = db;
  }

  /** Throws ERR_RESTORE_BUSY when another process restores to the same file, ERR_RESTORE_FILE when it cannot be made. */
  static open(path: string): RestoreState {
    let db: Database.Database | undefined;
    try {
      db = new Database(path, { timeout: 0 });
      db.pragma('locking_mode = EXCLUSIVE');
      db.exec('BEGIN EXCLUSIVE; CREATE TABLE IF NOT EXISTS progress (json TEXT); COMMIT');
      return new RestoreState(path, db);
    } catch (error) {
      db?.close();
      if ((error as { code?: unknown }).code === 'SQLITE_BUSY')
        throw new KiteError('ERR_RESTORE_BUSY', `another process is restoring: it has ${path}`);
      throw new KiteError('ERR_RESTORE_FILE', `cannot write ${path} (${(error as Error).message})`, {
        cause: error,
      });
    }
  }

  load(): Progress | undefined {
    const row = this.#db.prepare('SELECT json FROM progress').get() as { json: string } | undefined;
    return row && (JSON.parse(row.json) as Progress);
  }

  /** What it says must be durable in the file already. */
  save(progress: Progress | undefined): void {
    this.#db.transaction(() => {
      this.#db.exec('DELETE FROM progress');
      if (progress) this.#db.prepare('INSERT INTO progress VALUES (?)').run(JSON.stringify(progress));
    })();
  }

  /** Lets go of the lock and leaves the note. */
  close(): void {
    this.#db.close();
  }

  /** Nothing is left to go on from. */
  remove(): void {
    rmSync(this.#path, { force: true });
    this.#db.close();
    rmSync(`${this.#path}-journal`, { force: true });
  }
}
