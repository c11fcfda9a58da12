import { mkdir, open, rm, statfs } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { join } from 'node:path';
import { createHash, randomUUID, timingSafeEqual } from 'node:crypto';
import { Readable } from 'node:stream';
import { finished, pipeline } from 'node:stream/promises';
import type { Progress } from '../daemon/rewind.js';
import { isLoopback } from '../config/values.js';
import { KiteError, toKiteError } from '../errors.js';
import { formatPosition, formatTxid } from '../ltx/position.js';
import type { Wanted } from '../restore/restore.js';
import { isPrimary } from '../observability/node-status.js';
import { formatToken, parseToken, type TokenEntry } from '../proxy/token.js';
import { checkDatabaseName } from '../store/database-name.js';
import { EventStream } from './events.js';
import type { AdminServerOptions } from './server.js';

/** How long the rest of a refused body is read and thrown away. */
const DISCARD_MS = 10_000;

/** Every event is written for each of them, by the thread that also renews the lease. */
const EVENT_STREAMS_MAX = 256;

/** How often it is said how far something is. */
const PROGRESS_MS = 1000;

type Handler = (exchange: Exchange) => Promise<void> | void;

interface ServerState extends AdminServerOptions {
  /** Aborted when the server closes: nothing goes on that has no end of its own. */
  readonly closing: AbortSignal;
  /** The answers of /events that are open. */
  readonly eventStreams: Set<ServerResponse>;
}

interface Exchange extends ServerState {
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
  'GET /info': showInfo,
  'GET /litefs/health': showHealth,
  'GET /events': streamEvents,
  'GET /export': exportDatabase,
  'POST /import': importDatabase,
  'POST /promote': promote,
  'POST /handoff': handOff,
  'POST /sync': syncBackups,
  'POST /rewind': rewind,
  'DELETE /rewind': cancelRewind,
  'POST /repair': repair,
  'POST /halt': halt,
  'DELETE /halt': unhalt,
};

/** Answers one request; never throws. */
export async function handleRequest(
  request: IncomingMessage,
  response: ServerResponse,
  options: ServerState,
): Promise<void> {
  try {
    const url = new URL(request.url ?? '/', 'http://node');
    const exchange = { ...options, request, response, url };
    const handler = ROUTES[`${request.method} ${url.pathname}`];
    if (handler) await handler(exchange);
    else if (request.method === 'GET' && url.pathname.startsWith('/db/')) await showDatabase(exchange);
    else throw new KiteError('ERR_HTTP_NOT_FOUND', `nothing at ${request.method} ${url.pathname}`);
  } catch (thrown) {
    // A sender that is cut off in the middle sees a broken connection instead of the answer.
    request.resume();
    await finished(request, { signal: AbortSignal.timeout(DISCARD_MS) }).catch(() => {});
    sendError(request, response, errorOf(thrown), options);
  }
}

function errorOf(thrown: unknown): KiteError {
  const isMalformed =
    thrown instanceof URIError || (thrown as NodeJS.ErrnoException).code === 'ERR_INVALID_URL';
  return isMalformed ? new KiteError('ERR_HTTP_REQUEST', 'the address is malformed') : toKiteError(thrown);
}

/**
 * One database, and how this node stands to it. With `token` it waits until readers here see what the token says, `wait` milliseconds at most.
 */
async function showDatabase(exchange: Exchange): Promise<void> {
  const { node, response, url } = exchange;
  const name = decodeURIComponent(url.pathname.slice('/db/'.length));
  const wanted = tokenEntryOf(exchange, name);
  if (wanted) {
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    if (!(await node.databases.waitFor(name, wanted, waitOf(exchange), gone.signal)))
      throw new KiteError(
        'ERR_HTTP_NOT_REACHED',
        `${name} has not come to ${url.searchParams.get('token')} here`,
      );
  }
  const { databases, nodeId, role, epoch, primary } = node.status();
  const database = databases.find((candidate) => candidate.name === name);
  if (!database) throw new KiteError('ERR_HTTP_NOT_FOUND', `there is no database ${name} on this node`);
  const seen = await node.databases.seen(name);
  sendJson(response, 200, {
    ...database,
    nodeId,
    role,
    isPrimary: isPrimary(role),
    epoch,
    primary: { ...primary, hostname: node.primary().hostname },
    token: seen && formatToken(new Map([[name, seen]])),
  });
}

/** What `?token=` says of a database; undefined: nothing. It is the node itself that is asked, so nothing need be signed. */
function tokenEntryOf({ url }: Exchange, name: string): TokenEntry | undefined {
  const text = url.searchParams.get('token');
  if (text === null) return undefined;
  const token = parseToken(text);
  if (!token) throw new KiteError('ERR_HTTP_REQUEST', 'token: expected a token such as app.db=7:1a');
  return token.get(name);
}

/** LiteFS's answer. */
function showInfo({ node, response }: Exchange): void {
  const { clusterId, role, candidate, dataDir } = node.status();
  sendJson(response, 200, {
    clusterID: clusterId,
    isPrimary: isPrimary(role),
    candidate,
    path: dataDir,
    primary: { hostname: node.primary().hostname ?? '' },
  });
}

/** LiteFS's answer of its proxy: whether what readers here see is young enough. */
function showHealth({ node, response, maxLagMs }: Exchange): void {
  const { databases, ready } = node.status();
  const isWell = ready && databases.every(({ maxAgeMs }) => maxAgeMs !== undefined && maxAgeMs <= maxLagMs);
  response
    .writeHead(isWell ? 200 : 503, { 'content-type': 'text/plain' })
    .end(isWell ? 'OK\n' : 'the data of this node is older than proxy.max-lag\n');
}

function streamEvents({ node, request, response, url, closing, eventStreams }: Exchange): void {
  if (eventStreams.size >= EVENT_STREAMS_MAX)
    throw new KiteError('ERR_HTTP_EVENT_STREAMS', `${eventStreams.size} clients listen to /events already`);
  eventStreams.add(response);
  const stream = new EventStream(response, {
    sse: (request.headers.accept ?? '').includes('text/event-stream'),
    database: url.searchParams.get('db') ?? undefined,
  });
  stream.init(node.primary());
  const unwatch = node.watch((change) => stream.take(change));
  const end = (): void => void response.end();
  closing.addEventListener('abort', end);
  response.once('close', () => {
    eventStreams.delete(response);
    unwatch();
    closing.removeEventListener('abort', end);
  });
}

async function promote(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  const { node, response, url } = exchange;
  await node.promote({
    waitMs: waitOf(exchange),
    acceptLoss: url.searchParams.get('accept-loss') === 'true',
  });
  const { nodeId, epoch } = node.status();
  sendJson(response, 200, { nodeId, epoch });
}

async function handOff(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  const { node, response, url } = exchange;
  const primary = await node.handOff(url.searchParams.get('nodeID') ?? undefined, waitOf(exchange));
  sendJson(response, 200, { primary });
}

async function syncBackups(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  const { node, response, url } = exchange;
  await node.databases.sync(waitOf(exchange), url.searchParams.get('name') ?? undefined);
  sendJson(response, 200, { backups: node.status().backups });
}

/**
 * `?name=` and a moment: what a rewind would change, and its `plan`; `?plan=`: makes it. Both may take minutes, so the answer is lines of
 * JSON: `progress` now and then, at last `plan` or `position`, or an `error`.
 */
async function rewind(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  const { node, url } = exchange;
  const plan = url.searchParams.get('plan');
  if (plan !== null) {
    await streamLines(exchange, async () => ({ position: await node.databases.commitRewind(plan) }));
    return;
  }
  const name = nameOf(exchange);
  const wanted = wantedOf(exchange);
  await streamLines(exchange, async (progress) => {
    const { id, position, txid, clusterTxid, ...more } = await node.databases.prepareRewind(
      name,
      wanted,
      progress,
    );
    const text = (value: bigint | undefined): string | undefined =>
      value === undefined ? undefined : formatTxid(value);
    return {
      plan: {
        ...more,
        id,
        position: formatPosition(position),
        txid: text(txid),
        clusterTxid: text(clusterTxid),
      },
    };
  });
}

function cancelRewind(exchange: Exchange): void {
  requireAdmin(exchange);
  exchange.node.databases.cancelRewind(exchange.url.searchParams.get('plan') ?? '');
  sendJson(exchange.response, 200, {});
}

async function repair(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  const name = nameOf(exchange);
  await streamLines(exchange, async (progress) => {
    const repaired = await exchange.node.databases.repair(name, progress);
    const { url, primary, timestampMs, clusterTxid, position } = repaired;
    const txid = clusterTxid === undefined ? undefined : formatTxid(clusterTxid);
    return { url, primary, timestampMs, clusterTxid: txid, position: formatPosition(position) };
  });
}

/** `?timestamp=` (milliseconds since 1970), `?txid=` or `?cluster-txid=` (hex). */
function wantedOf({ url }: Exchange): Wanted {
  const timestamp = url.searchParams.get('timestamp');
  if (timestamp !== null && /^\d{1,15}$/.test(timestamp))
    return { kind: 'time', timestampMs: Number(timestamp) };
  for (const kind of ['txid', 'cluster-txid'] as const) {
    const text = url.searchParams.get(kind);
    if (text !== null && /^[0-9a-f]{1,16}$/i.test(text)) return { kind, txid: BigInt(`0x${text}`) };
  }
  throw new KiteError(
    'ERR_HTTP_REQUEST',
    'expected timestamp (milliseconds), txid or cluster-txid (hexadecimal)',
  );
}

/** Runs what may take long; the answer begins when it has for a second, or ended. */
async function streamLines(
  { response }: Exchange,
  work: (progress: Progress) => Promise<object>,
): Promise<void> {
  let state = { done: 0, total: 0 };
  const line = (value: object): void => {
    if (!response.headersSent) response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    response.write(`${JSON.stringify(value)}\n`);
  };
  const timer = setInterval(() => line({ progress: state }), PROGRESS_MS);
  try {
    line(await work((done, total) => (state = { done, total })));
    response.end();
  } catch (thrown) {
    // Before anything was said it is an answer like any other.
    if (!response.headersSent) throw thrown;
    const { code, message, row } = toKiteError(thrown);
    line({ error: { code, message, action: row.action } });
    response.end();
  } finally {
    clearInterval(timer);
  }
}

/** LiteFS's answer, with `id` as a number. */
async function halt(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  const { node, response, url } = exchange;
  const id = idOf(exchange);
  const { position, remainingMs } = await node.databases.halt({
    name: nameOf(exchange),
    id,
    waitMs: waitOf(exchange),
    renew: url.searchParams.get('renew') === 'true',
  });
  const [txid, postApplyChecksum] = formatPosition(position).split('/');
  const expires = new Date(Date.now() + Math.max(0, remainingMs)).toISOString();
  sendJson(response, 200, { id, pos: { txid, postApplyChecksum }, expires });
}

async function unhalt(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  await exchange.node.databases.unhalt(nameOf(exchange), idOf(exchange));
  sendJson(exchange.response, 200, {});
}

function idOf({ url }: Exchange): number {
  const id = Number(url.searchParams.get('id') ?? Number.NaN);
  if (Number.isSafeInteger(id) && id >= 0) return id;
  throw new KiteError(
    'ERR_HTTP_REQUEST',
    'id: expected a whole number below 2^53 that the caller has chosen',
  );
}

/** `?wait=` in milliseconds. */
function waitOf({ url }: Exchange): number {
  const text = url.searchParams.get('wait') ?? '5000';
  if (!/^\d{1,7}$/.test(text))
    throw new KiteError('ERR_HTTP_REQUEST', 'wait: expected a number of milliseconds');
  return Number(text);
}

async function exportDatabase(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  const { node, response } = exchange;
  const database = await node.databases.export(nameOf(exchange));
  response.writeHead(200, {
    'content-type': 'application/vnd.sqlite3',
    'content-length': database.sizeBytes,
  });
  await pipeline(Readable.from(database.chunks(), { objectMode: false }), response);
}

/** The body goes to a file first, so that a broken upload never reaches a database. */
async function importDatabase(exchange: Exchange): Promise<void> {
  requireAdmin(exchange);
  const { request, response, url, node, importDir, maxImportBytes } = exchange;
  const name = nameOf(exchange);
  const ifNotExists = url.searchParams.get('if-not-exists') === 'true';
  await mkdir(importDir, { recursive: true });
  const path = join(importDir, randomUUID());
  let outcome: { position: string; imported: boolean };
  try {
    const { bavail, bsize } = await statfs(importDir);
    await receiveFile(request, path, Math.min(maxImportBytes, bavail * bsize));
    outcome = await node.databases.import(name, path, { ifNotExists });
  } finally {
    await rm(path, { force: true });
  }
  sendJson(response, 200, { name, ...outcome });
}

/** Writes a body to a new file; a body that is too large, or says it will be, is refused as soon as that is known. */
async function receiveFile(request: IncomingMessage, path: string, limitBytes: number): Promise<void> {
  const checkSize = (bytes: number): void => {
    if (bytes > limitBytes)
      throw new KiteError(
        'ERR_HTTP_TOO_LARGE',
        `the file is larger than ${limitBytes} bytes, which is all that fits`,
      );
  };
  checkSize(Number(request.headers['content-length'] ?? 0));
  const file = await open(path, 'wx', 0o600);
  try {
    let receivedBytes = 0;
    // The request stays open when this loop is left: its sender still has to be answered.
    for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      receivedBytes += chunk.length;
      checkSize(receivedBytes);
      await file.writeFile(chunk);
    }
  } finally {
    await file.close();
  }
}

function nameOf({ url }: Exchange): string {
  const name = url.searchParams.get('name');
  if (!name) throw new KiteError('ERR_HTTP_REQUEST', 'the name of the database is missing (?name=app.db)');
  checkDatabaseName(name);
  return name;
}

/**
 * Who changes something or reads whole databases shows the token of `http.token`; where none is set, only programs on the
 * node itself are served. A page in a browser on this machine could post here as well: browsers say where a page comes from.
 */
function requireAdmin({ request, token }: Exchange): void {
  const { origin, authorization } = request.headers;
  if (request.method !== 'GET' && origin !== undefined)
    throw new KiteError('ERR_HTTP_REQUEST', 'this is not taken from a web page');
  if (token === undefined) {
    if (isLoopback(request.socket.remoteAddress ?? '')) return;
    throw new KiteError('ERR_HTTP_LOOPBACK', 'without http.token this is served to this machine only');
  }
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  // Of equal length, and compared in constant time: nothing of the token shows.
  if (!timingSafeEqual(digest(authorization ?? ''), digest(`Bearer ${token}`)))
    throw new KiteError('ERR_HTTP_TOKEN', 'the token of http.token is missing or wrong');
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
