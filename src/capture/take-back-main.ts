import Database from 'better-sqlite3';

/** The process of `takeBack` (take-back.ts): `take-back-main.js DATABASE`, a path in the mount. */

/** Writers have the lock for as long as a transaction takes. One that keeps it will write, or die and be seen again. */
const BUSY_MS = 30_000;

const database = new Database(process.argv[2], { fileMustExist: true, timeout: BUSY_MS });
try {
  // A rollback-mode database has no such commits; it may have become one meanwhile.
  if (database.pragma('journal_mode', { simple: true }) === 'wal') {
    database.pragma('wal_autocheckpoint = 0');
    const write = database.transaction(() => {
      // The same value: page 1 is written all the same, with the next change counter.
      const version = database.pragma('user_version', { simple: true }) as number;
      database.pragma(`user_version = ${version}`);
    });
    write.immediate();
  }
} finally {
  database.close();
}
