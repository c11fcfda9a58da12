// A web application as any other: `application.mjs PORT DATABASE`. It knows nothing of nodes, except that it sends a write which
// meets a read-only database to the primary.
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import Database from 'better-sqlite3';

const [, , port, path] = process.argv;
let db;
const open = () => {
  if (db) return db;
  const opened = new Database(path, { timeout: 5000 });
  opened.pragma('busy_timeout = 5000');
  db = opened;
  return db;
};

const server = createServer((request, response) => {
  const url = new URL(request.url, 'http://app');
  const answer = (status, body, headers = {}) => {
    const text = JSON.stringify(body);
    response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(text);
  };
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    try {
      if (url.pathname === '/who')
        return answer(200, { port, forwarded: request.headers['x-forwarded-for'] });
      if (url.pathname === '/ask') {
        if (request.headers['x-at'] === 'primary') return answer(200, { port });
        return answer(409, {}, { 'kitefs-forward': 'primary' });
      }
      if (request.method === 'GET' && url.pathname === '/notes') {
        return answer(200, { port, ids: open().prepare('SELECT id FROM notes ORDER BY id').pluck().all() });
      }
      if (request.method === 'POST') {
        const body = Buffer.concat(chunks);
        const id = url.searchParams.get('id') ?? createHash('sha256').update(body).digest('hex').slice(0, 8);
        open().prepare('INSERT INTO notes (id, size) VALUES (?, ?)').run(id, body.length);
        return answer(200, { port, id, size: body.length });
      }
      return answer(404, {});
    } catch (error) {
      // A pool that was opened on a replica, or across a change of role, is made anew.
      db?.close();
      db = undefined;
      const readOnly = /readonly|READONLY|IOERR/.test(`${error.code} ${error.message}`);
      return answer(500, { error: error.message }, readOnly ? { 'kitefs-forward': 'primary' } : {});
    }
  });
});
server.on('upgrade', (request, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
  socket.write(`${port}\n`);
  socket.on('error', () => {});
  socket.pipe(socket);
});
server.listen(Number(port), '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
