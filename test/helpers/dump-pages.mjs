// Prints a line per page of a database, `pgno hash`, as SQLite itself reads it in one snapshot. The two
// journal-mode bytes of page 1 are masked: a replica keeps its copies in WAL mode (DESIGN §6).
// A child process runs it, because a test never touches a mount itself.
import { createHash } from 'node:crypto';
import Database from 'better-sqlite3';

const database = new Database(process.argv[2], { readonly: true, timeout: 20_000 });
// serialize() takes the page size before it reads anything: in a WAL it may be another than the file's.
database.pragma('schema_version');
const bytes = database.serialize();
database.close();
const lines = [];
if (bytes.length > 0) {
  const size = bytes.readUInt16BE(16);
  const pageSize = size === 1 ? 65_536 : size;
  bytes.fill(0, 18, 20);
  for (let at = 0, pgno = 1; at < bytes.length; at += pageSize, pgno += 1) {
    lines.push(
      `${pgno} ${createHash('sha1')
        .update(bytes.subarray(at, at + pageSize))
        .digest('hex')}`,
    );
  }
}
console.log(lines.join('\n'));
