// Idles in BEGIN IMMEDIATE until told to stop: `write-locker.mjs DATABASE`.
import Database from 'better-sqlite3';

const database = new Database(process.argv[2], { timeout: 20_000 });
database.exec('BEGIN IMMEDIATE');
console.log('locked');
process.stdin.on('end', () => {
  database.exec('ROLLBACK');
  console.log('released');
  process.exit(0);
});
process.stdin.resume();
