// An application that commits one row after the other and says so: `begin N` before each transaction,
// `done N` once its COMMIT has returned. Ends with 3 at the first error, as a process whose disk fails does.
import { writeSync } from 'node:fs';
import Database from 'better-sqlite3';

const [path, from, synchronous, journalMode] = process.argv.slice(2);
try {
  const database = new Database(path, { timeout: 20_000 });
  database.pragma(`journal_mode=${journalMode}`);
  database.pragma(`synchronous=${synchronous}`);
  const insert = database.prepare('INSERT INTO t(n, body) VALUES (?, ?)');
  const body = 'x'.repeat(300);
  for (let n = Number(from); ; n += 1) {
    writeSync(1, `begin ${n}\n`);
    insert.run(n, body);
    writeSync(1, `done ${n}\n`);
  }
} catch (error) {
  writeSync(2, `${error.message}\n`);
  process.exit(3);
}
