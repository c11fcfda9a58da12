// An application with a connection that stays open: `connection.mjs DATABASE`. It reads one statement per
// line (as JSON) and answers each with its rows, or its error.
import { createInterface } from 'node:readline';
import Database from 'better-sqlite3';

const database = new Database(process.argv[2], { timeout: 20_000 });
database.unsafeMode();
console.log(JSON.stringify({ rows: [] }));
for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const statement = database.prepare(JSON.parse(line));
    answer = { rows: statement.reader ? statement.raw().all() : (statement.run(), []) };
  } catch (error) {
    answer = { error: `${error.code}: ${error.message}` };
  }
  console.log(JSON.stringify(answer));
}
database.close();
