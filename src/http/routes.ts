import { createWriteStream } from 'node:fs';
import { mkdir, rm, statfs } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { join } from 'node:path';
import { randomUUID } from 'node:crypto';
import { Readable, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { isLoopback } from '../config/values.js';
import { KiteError, toKiteError } from '../errors.js';
import type { AdminServerOptions } from './server.js';

type Handler = (exchange: Exchange) => Promise<void> | void;

interface Exchange extends AdminServerOptions {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly url: URL;
}

const ROUTES: Readonly<Record<string, Handler>> = {
  'GET /metrics': async ({ metrics, response }) => {
    const body = await metrics.registry.metrics();
    response.writeHead(200, { 'content-type': metrics.registry.contentType }).end(body);
  },
  'GET /status': ({ node, response }) => sendJson(response, 200, node.status()),
  'GET /health': ({ node, response }) => {
    const { role } = node.status();
    sendJson(response, 200, { role });
  },
  'GET /ready': ({ node, response }) => {
    const { ready, role } = node.status();
    sendJson(response, ready ? 200 : 503, { ready, role });
  },
  'GET /export': exportDatabase,
  'POST /import': importDatabase,
};

/** Answers one request; never throws. */
export async function handleRequest(
  request: IncomingMessage,
  response: ServerResponse,
  options: AdminServerOptions,
): Promise<void> {
  try {
    const url = new URL(request.url ?? '/', 'http://node');
    const exchange = { ...options, request, response, url };
    const handler = ROUTES[`${request.method} ${url.pathname}`];
    if (handler) await handler(exchange);
    else if (request.method === 'GET' && url.pathname.startsWith('/db/')) showDatabase(exchange);
    else throw new KiteError('ERR_HTTP_NOT_FOUND', `nothing at ${request.method} ${url.pathname}`);
  } catch (thrown) {
    sendError(request, response, toKiteError(thrown), options);
  }
}

function showDatabase({ node, response, url }: Exchange): void {
  const name = decodeURIComponent(url.pathname.slice('/db/'.length));
  const database = node.status().databases.find((candidate) => candidate.name === name);
  if (!database) throw new KiteError('ERR_HTTP_NOT_FOUND', `there is no database ${name} on this node`);
  sendJson(response, 200, database);
}

async function exportDatabase(exchange: Exchange): Promise<void> {
  requireLoopback(exchange);
  const { node, response } = exchange;
  const database = await node.exportDatabase(nameOf(exchange));
  response.writeHead(200, {
    'content-type': 'application/vnd.sqlite3',
    'content-length': database.sizeBytes,
  });
  await pipeline(Readable.from(database.chunks(), { objectMode: false }), response);
}

/** The body goes to a file first, so that a broken upload never reaches a database. */
async function importDatabase(exchange: Exchange): Promise<void> {
  requireLoopback(exchange);
  const { request, response, node, importDir, maxImportBytes } = exchange;
  // A page in a browser on this machine could post here as well; browsers say where a page comes from.
  if (request.headers.origin !== undefined)
    throw new KiteError('ERR_HTTP_REQUEST', 'an import is not taken from a web page');
  const name = nameOf(exchange);
  await mkdir(importDir, { recursive: true });
  const path = join(importDir, randomUUID());
  try {
    const { bavail, bsize } = await statfs(importDir);
    const limitBytes = Math.min(maxImportBytes, bavail * bsize);
    await pipeline(
      request,
      limit(limitBytes, Number(request.headers['content-length'] ?? 0)),
      createWriteStream(path),
    );
    sendJson(response, 200, { name, position: await node.importDatabase(name, path) });
  } finally {
    await rm(path, { force: true });
  }
}

/** Passes bytes on until there are more than `limitBytes`; a body that announces more is refused at once. */
function limit(limitBytes: number, announcedBytes: number): Transform {
  const tooLarge = () =>
    new KiteError(
      'ERR_HTTP_TOO_LARGE',
      `the file is larger than ${limitBytes} bytes, which is all that fits`,
    );
  let seenBytes = 0;
  if (announcedBytes > limitBytes) throw tooLarge();
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      seenBytes += chunk.length;
      done(seenBytes > limitBytes ? tooLarge() : null, chunk);
    },
  });
}

function nameOf({ url }: Exchange): string {
  const name = url.searchParams.get('name');
  if (!name) throw new KiteError('ERR_HTTP_REQUEST', 'the name of the database is missing (?name=app.db)');
  return name;
}

/** Whole databases pass here and there is no authentication yet: only programs on the node itself are served. */
function requireLoopback({ request }: Exchange): void {
  if (!isLoopback(request.socket.remoteAddress ?? ''))
    throw new KiteError('ERR_HTTP_LOOPBACK', 'import and export are served to this machine only');
}

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(`${JSON.stringify(body)}\n`);
}

function sendError(
  request: IncomingMessage,
  response: ServerResponse,
  error: KiteError,
  { logger }: AdminServerOptions,
): void {
  if (error.row.http >= 500)
    logger.warn({ err: error, code: error.code }, `${request.method} ${request.url} failed`);
  // Half an answer cannot become an error any more: cutting it shows the caller that it is not whole.
  if (response.headersSent) {
    response.destroy();
    return;
  }
  // Closing spares reading the rest of a body that is not wanted.
  response.setHeader('connection', 'close');
  const { code, message, row } = error;
  sendJson(response, row.http, { error: { code, message, action: row.action } });
}
