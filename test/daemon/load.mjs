// An application that commits rows wherever the primary is: it writes through the mounts of all nodes in turn, goes to the
// next one after an error, and never writes where `.primary` says that the node is a replica. When its input ends it
// prints what was acknowledged: `{ acked: [n…], at: [ms…], errors: {message: count} }`.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setImmediate, setTimeout } from 'node:timers/promises';
import Database from 'better-sqlite3';

const [writer, ...paths] = process.argv.slice(2);
const acked = [];
const at = [];
const errors = {};
const ending = new AbortController();
process.stdin.on('end', () => ending.abort()).resume();

let n = 0;
for (let turn = 0; !ending.signal.aborted; turn += 1) {
  const path = paths[turn % paths.length];
  if (existsSync(join(dirname(path), '.primary'))) {
    await setTimeout(2);
    continue;
  }
  let database;
  try {
    database = new Database(path, { timeout: 5000, fileMustExist: true });
    const insert = database.prepare('INSERT INTO t(writer, n, body) VALUES (?, ?, ?)');
    while (!ending.signal.aborted) {
      // A new number for each attempt: one that failed may or may not be there.
      n += 1;
      insert.run(writer, n, 'x'.repeat(200));
      acked.push(n);
      at.push(performance.timeOrigin + performance.now());
      if (n % 20 === 0) await setImmediate();
    }
  } catch (error) {
    errors[error.message] = (errors[error.message] ?? 0) + 1;
    await setTimeout(1);
  } finally {
    database?.close();
  }
}
process.stdout.write(JSON.stringify({ acked, at, errors }));
