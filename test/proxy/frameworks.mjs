// One application three times, `frameworks.mjs PORT DATABASE API`: written for Express, for Fastify, for Hono, and for Node alone, each under
// its own path. A write on a replica is left to the middleware.
import { createServer } from 'node:http';
import { getRequestListener } from '@hono/node-server';
import Database from 'better-sqlite3';
import express from 'express';
import Fastify from 'fastify';
import { Hono } from 'hono';
import { KiteClient, express as forExpress, fastify as forFastify, hono as forHono } from 'kitefs/client';

const [, , port, path, api] = process.argv;
const client = new KiteClient({ url: api });

let db;
/** Runs `work` with a connection; after an error there will be a new one. */
function withDatabase(work) {
  try {
    db ??= new Database(path, { timeout: 5000 });
    return { status: 200, body: work(db) };
  } catch (error) {
    db?.close();
    db = undefined;
    return { status: 500, body: { error: `${error.code} ${error.message}` } };
  }
}
const last = () =>
  withDatabase((open) => ({ port, ...open.prepare('SELECT max(id) AS last FROM entries').get() }));
const add = (value) =>
  withDatabase((open) => ({
    port,
    id: open.prepare('INSERT INTO entries (value) VALUES (?)').run(value).lastInsertRowid,
  }));

const onExpress = express();
onExpress.use(forExpress(client));
onExpress.get('/express/entries', (request, response) => {
  const { status, body } = last();
  response.status(status).json(body);
});
onExpress.post('/express/entries', (request, response) => {
  const { status, body } = add(request.query.value);
  response.status(status).json(body);
});

const onFastify = Fastify();
onFastify.addHook('onRequest', forFastify(client));
onFastify.get('/fastify/entries', (request, reply) => {
  const { status, body } = last();
  reply.code(status).send(body);
});
onFastify.post('/fastify/entries', (request, reply) => {
  const { status, body } = add(request.query.value);
  reply.code(status).send(body);
});
await onFastify.ready();

const onHono = new Hono();
onHono.use(forHono(client));
onHono.get('/hono/entries', (context) => {
  const { status, body } = last();
  return context.json(body, status);
});
onHono.post('/hono/entries', (context) => {
  const { status, body } = add(context.req.query('value'));
  return context.json(body, status);
});
const honoListener = getRequestListener(onHono.fetch);

function onNode(request, response) {
  const value = new URL(request.url, 'http://app').searchParams.get('value');
  const { status, body } = request.method === 'GET' ? last() : add(value);
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

const apps = {
  express: onExpress,
  fastify: (request, response) => onFastify.routing(request, response),
  hono: honoListener,
};
const server = createServer((request, response) => {
  void (apps[request.url.split('/')[1]] ?? onNode)(request, response);
});
server.listen(Number(port), '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
