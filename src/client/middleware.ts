import type { IncomingMessage, ServerResponse } from 'node:http';
import type { KiteClient } from './client.js';

/**
 * For Express, Fastify and Hono: an application on every node, which writes on the primary only. Each kind of it does the same:
 *
 * - a request that may write (any method but GET, HEAD and OPTIONS, or what `writes` says) and has come to a replica is answered with
 *   `kitefs-forward: primary`: KiteFS's proxy repeats it at the primary, and its client never sees that;
 * - a read that has not come through the proxy, and brings a token, waits until this node has what its client has seen.
 */

export interface MiddlewareOptions {
  /** Whether a request needs the primary. Default: by its method. */
  readonly writes?: (request: { readonly method: string; readonly path: string }) => boolean;
  /** How long a read with a token waits; then it goes on as it is. Default: 5000; 0: not at all. */
  readonly readWaitMs?: number;
}

interface Request {
  readonly method: string;
  readonly path: string;
  header(name: string): string | undefined;
}

/** What the request's answer is instead of the application's; undefined: the application answers. */
interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

const READS = new Set(['GET', 'HEAD', 'OPTIONS']);

/** 409 for who asks without a proxy in front: it was not done, and can be done at another place. */
const FORWARD: Answer = {
  status: 409,
  headers: { 'kitefs-forward': 'primary', 'content-type': 'text/plain', 'cache-control': 'no-store' },
  body: 'this node is a replica: send it to the primary\n',
};

async function answerFirst(
  client: KiteClient,
  request: Request,
  { writes, readWaitMs = 5000 }: MiddlewareOptions,
): Promise<Answer | undefined> {
  if (writes ? writes(request) : !READS.has(request.method)) {
    return (await client.isPrimary()) ? undefined : FORWARD;
  }
  // The proxy has waited already.
  const token = request.header('kitefs-via') === undefined ? tokenOf(request) : undefined;
  if (token !== undefined && readWaitMs > 0) {
    // Nonsense in a cookie is no reason to refuse a read.
    await client.waitFor(token, { timeoutMs: readWaitMs }).catch(() => false);
  }
  return undefined;
}

function tokenOf(request: Request): string | undefined {
  const cookie = /(?:^|;\s*)kitefs-token=([^;]+)/.exec(request.header('cookie') ?? '')?.[1];
  return request.header('kitefs-token') ?? cookie?.trim();
}

type Next = (error?: unknown) => void;

/** `app.use(express(client))`; also for Connect and Polka. */
export function express(
  client: KiteClient,
  options: MiddlewareOptions = {},
): (request: IncomingMessage, response: ServerResponse, next: Next) => void {
  const run = async (request: IncomingMessage, response: ServerResponse): Promise<boolean> => {
    const answer = await answerFirst(client, fromNode(request), options);
    if (answer) response.writeHead(answer.status, answer.headers).end(answer.body);
    return answer === undefined;
  };
  return (request, response, next) => {
    // Outside of the promise: what throws in the application must not come back here.
    const go = (error?: unknown): void => void setImmediate(next, error);
    run(request, response).then((isTheirs) => void (isTheirs && go()), go);
  };
}

/** The part of Fastify's reply that is used. */
interface FastifyReply {
  code(status: number): FastifyReply;
  headers(headers: Record<string, string>): FastifyReply;
  send(body: string): unknown;
}

/** `app.addHook('onRequest', fastify(client))`: before a body is read. */
export function fastify(
  client: KiteClient,
  options: MiddlewareOptions = {},
): (request: { raw: IncomingMessage }, reply: FastifyReply) => Promise<unknown> {
  return async (request, reply) => {
    const answer = await answerFirst(client, fromNode(request.raw), options);
    if (!answer) return undefined;
    // Returned, so that Fastify knows that there is an answer.
    return reply
      .code(answer.status)
      .headers({ ...answer.headers })
      .send(answer.body);
  };
}

/** The part of Hono's context that is used. */
interface HonoContext {
  readonly req: { readonly method: string; readonly path: string; header(name: string): string | undefined };
}

/** `app.use(hono(client))`. */
export function hono(
  client: KiteClient,
  options: MiddlewareOptions = {},
): (context: HonoContext, next: () => Promise<void>) => Promise<Response | undefined> {
  return async ({ req }, next) => {
    const request = { method: req.method, path: req.path, header: (name: string) => req.header(name) };
    const answer = await answerFirst(client, request, options);
    if (answer) return new Response(answer.body, { status: answer.status, headers: { ...answer.headers } });
    await next();
    return undefined;
  };
}

function fromNode(request: IncomingMessage): Request {
  return {
    method: request.method ?? 'GET',
    path: (request.url ?? '/').replace(/[?#].*$/s, ''),
    header: (name) => {
      const value = request.headers[name];
      return Array.isArray(value) ? value.join(', ') : value;
    },
  };
}
