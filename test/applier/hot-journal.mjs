// Leaves a hot journal behind: `hot-journal.mjs DATABASE` spills half a transaction into the file and dies.
import Database from 'better-sqlite3';

const database = new Database(process.argv[2]);
database.pragma('cache_size = 5');
database.exec('BEGIN; UPDATE t SET x = randomblob(length(x))');
console.log('spilled');
process.stdin.on('data', () => process.kill(process.pid, 'SIGKILL'));
