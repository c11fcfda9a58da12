// A guest book, as small as an application can be: `server.mjs` on $PORT, with its database in $DATABASE. It runs on every node, behind
// KiteFS's proxy; it opens its database like any SQLite file, and knows nothing of nodes.
import { createServer } from 'node:http';
import Database from 'better-sqlite3';

const { PORT = '8081', DATABASE = '/litefs/guestbook.db' } = process.env;
/** The table is made by the first write, which is always at the primary. */
const SCHEMA =
  'CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, name TEXT NOT NULL, at TEXT NOT NULL)';

let database;
function withDatabase(work) {
  try {
    // A primary that hands over keeps writers waiting for some hundred ms: SQLite waits with them.
    database ??= new Database(DATABASE, { timeout: 5000 });
    return work(database);
  } catch (error) {
    // After an error of the disk (a change of role, a daemon that was started again) a new connection is right.
    database?.close();
    database = undefined;
    throw error;
  }
}

function sign(name) {
  return withDatabase((open) => {
    open.pragma('journal_mode = WAL');
    open.exec(SCHEMA);
    open.prepare('INSERT INTO entries (name, at) VALUES (?, ?)').run(name, new Date().toISOString());
  });
}

function entries() {
  return withDatabase((open) => {
    const isThere = open.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'entries'").get();
    return isThere ? open.prepare('SELECT name, at FROM entries ORDER BY id DESC LIMIT 50').all() : [];
  });
}

const escape = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.codePointAt(0)};`);

const page = (rows) => `<!doctype html>
<meta charset="utf-8">
<title>Guest book</title>
<h1>Guest book</h1>
<form method="post"><input name="name" maxlength="80" required placeholder="Your name"> <button>Sign</button></form>
<ul>
${rows.map(({ name, at }) => `<li>${escape(name)}, ${at}</li>`).join('\n')}
</ul>
`;

function answer(request, response, body) {
  if (request.method !== 'POST') {
    const headers = { 'content-type': 'text/html; charset=utf-8', 'cache-control': 'private, no-cache' };
    response.writeHead(200, headers).end(page(entries()));
    return;
  }
  const name = new URLSearchParams(body).get('name') ?? '';
  if (name === '' || name.length > 80) {
    response.writeHead(400).end('a name, please\n');
    return;
  }
  sign(name);
  // The browser brings the token along to wherever it is sent: it will see its own entry there.
  response.writeHead(303, { location: request.url }).end();
}

const server = createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    try {
      answer(request, response, Buffer.concat(chunks).toString());
    } catch (error) {
      console.error(error);
      response.writeHead(500).end('something went wrong\n');
    }
  });
});
server.listen(Number(PORT), '127.0.0.1');
process.once('SIGTERM', () => server.close(() => process.exit(0)));
