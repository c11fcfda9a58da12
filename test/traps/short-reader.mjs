// A reader of short transactions, one after the other, until it is killed: `short-reader.mjs DATABASE`.
import Database from 'better-sqlite3';

const database = new Database(process.argv[2], { readonly: true, timeout: 20_000 });
const count = database.prepare('SELECT count(*) FROM t');
const pause = new Int32Array(new SharedArrayBuffer(4));
for (let i = 0; ; i += 1) {
  database.exec('BEGIN');
  count.get();
  if (i === 0) console.log('reading');
  Atomics.wait(pause, 0, 0, 6);
  database.exec('COMMIT');
}
