// Reads snapshots until told to stop by a line on stdin, and fails when one is wrong: `reader.mjs DATABASE`. In each
// snapshot the sums of `a` and `b` are equal (every transaction changes both), and quick_check finds nothing.
// Every other snapshot is read by a connection of its own. Prints how many were read.
import Database from 'better-sqlite3';

const open = () => new Database(process.argv[2], { readonly: true, timeout: 20_000 });
const lasting = open();
const stop = new AbortController();
process.stdin.on('data', () => stop.abort());
process.stdin.on('end', () => stop.abort());

let snapshots = 0;
let highest = 0;
function look(database, thorough) {
  database.exec('BEGIN');
  const a = database.prepare('SELECT count(*) n, coalesce(sum(v), 0) s, max(version) m FROM a').get();
  const b = database.prepare('SELECT count(*) n, coalesce(sum(v), 0) s FROM b').get();
  if (a.n !== b.n || a.s !== b.s) throw new Error(`half a transaction: ${JSON.stringify([a, b])}`);
  if (a.m < highest) throw new Error(`back from ${highest} to ${a.m}`);
  highest = a.m ?? 0;
  if (thorough) {
    const check = database.pragma('quick_check', { simple: true });
    if (check !== 'ok') throw new Error(check);
  }
  database.exec('COMMIT');
  snapshots += 1;
}

console.log('started');
while (!stop.signal.aborted) {
  look(lasting, snapshots % 20 === 0);
  const fresh = open();
  look(fresh, snapshots % 20 === 1);
  fresh.close();
  await new Promise(setImmediate);
}
lasting.close();
console.log(snapshots);
process.exit(0);
