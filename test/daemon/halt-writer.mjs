// A migration: commits rows through the mount that it is given, one transaction each, and prints the number of each that was
// acknowledged. Ends with 3 at the first error, which it prints, and with 0 when its input ends.
import { setImmediate } from 'node:timers/promises';
import Database from 'better-sqlite3';

const [writer, path] = process.argv.slice(2);
const ending = new AbortController();
process.stdin.on('end', () => ending.abort()).resume();
process.stdout.write(`pid ${process.pid}\n`);
const database = new Database(path, { timeout: 5000, fileMustExist: true });
try {
  const insert = database.prepare('INSERT INTO t(writer, n, body) VALUES (?, ?, ?)');
  for (let n = 1; !ending.signal.aborted; n += 1) {
    insert.run(writer, n, 'x'.repeat(200));
    process.stdout.write(`${n}\n`);
    await setImmediate();
  }
} catch (error) {
  process.stdout.write(`error ${error.message}\n`);
  process.exitCode = 3;
}
database.close();
process.stdin.destroy();
