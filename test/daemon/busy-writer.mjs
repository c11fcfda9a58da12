// busy-writer.mjs PATH: writes in every way that touches many pages, until its standard input ends. A small cache makes
// transactions spill into the database before they commit.
import Database from 'better-sqlite3';

const [, , path] = process.argv;
const database = new Database(path, { timeout: 20_000 });
database.pragma('cache_size = 10');
const rows = (count) =>
  `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count}) INSERT INTO t(x) SELECT hex(randomblob(450)) FROM n`;
const actions = [
  () => database.exec(rows(50)),
  () => database.exec('UPDATE t SET x = hex(randomblob(450)) WHERE id % 7 = abs(random() % 7)'),
  () => database.exec(`BEGIN; ${rows(100)}; UPDATE t SET x = hex(randomblob(300)); ROLLBACK`),
  () => database.exec('DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY random() LIMIT 60)'),
  () => database.pragma('wal_checkpoint(TRUNCATE)'),
  () => database.exec('VACUUM'),
];
const ended = new AbortController();
process.stdin.on('end', () => ended.abort()).resume();
for (let i = 0; !ended.signal.aborted; i += 1) {
  actions[i % actions.length]();
  await new Promise((resolve) => setTimeout(resolve, 5));
}
database.close();
