// Writes a database as SQLite reads it in one snapshot to a file, after quick_check: `read-bytes.mjs DATABASE FILE`.
import { writeFileSync } from 'node:fs';
import Database from 'better-sqlite3';

const database = new Database(process.argv[2], { readonly: true, timeout: 20_000 });
database.exec('BEGIN');
const check = database.pragma('quick_check', { simple: true });
if (check !== 'ok') throw new Error(`quick_check: ${String(check)}`);
writeFileSync(process.argv[3], database.serialize());
database.exec('COMMIT');
database.close();
