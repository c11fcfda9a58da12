import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { EventSource } from 'eventsource';
import { chromium } from 'playwright-core';
import { describe, expect, it } from 'vitest';
import { WebSocket, WebSocketServer } from 'ws';
import type { NodeApi, NodeChange } from '../../src/http/node-api.js';
import { AdminServer } from '../../src/http/server.js';
import { createLogger } from '../../src/observability/log.js';
import type { Metrics } from '../../src/observability/metrics.js';
import type { Route } from '../../src/proxy/settings.js';
import { scene, StubView } from '../helpers/proxy.js';

/** What browsers and applications use: `ws` on both sides, `eventsource`, and a browser's own WebSocket and EventSource. */
const { undo, proxy } = scene();

const TO_PRIMARY: Route = {
  path: '/primary',
  methods: undefined,
  as: undefined,
  withoutPrimary: undefined,
  upgrade: 'primary',
  maxStalenessMs: undefined,
  readWaitMs: undefined,
};

interface App {
  readonly port: number;
  /** Its WebSockets. */
  readonly sockets: ReadonlySet<WebSocket>;
}

/** An application with WebSockets that say its name and then everything back. */
async function application(
  name: string,
  answer: (request: IncomingMessage, response: ServerResponse) => void = (_request, response) => {
    response.end(name);
  },
): Promise<App> {
  const http = createServer(answer);
  const server = new WebSocketServer({ noServer: true, perMessageDeflate: true });
  http.on('upgrade', (request, socket, head) => {
    if (request.url === '/refused') {
      socket.end('HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno');
      return;
    }
    server.handleUpgrade(request, socket, head, (client) => {
      client.send(name);
      client.on('message', (data, isBinary) => client.send(data, { binary: isBinary }));
    });
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  undo.push(() => {
    for (const client of server.clients) client.terminate();
    http.closeAllConnections();
    http.close();
  });
  return { port: (http.address() as AddressInfo).port, sockets: server.clients };
}

async function open(port: number, path = '/'): Promise<{ socket: WebSocket; name: string }> {
  const socket = new WebSocket(`ws://127.0.0.1:${port}${path}`, ['chat']);
  undo.push(() => socket.terminate());
  const [name] = (await once(socket, 'message')) as [Buffer];
  return { socket, name: String(name) };
}

const closed = async (socket: WebSocket): Promise<[number, string]> => {
  const [code, reason] = (await once(socket, 'close')) as [number, Buffer];
  return [code, String(reason)];
};

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe('ws', () => {
  it('passes messages of every kind and size, pings, and how it was closed', async () => {
    const app = await application('here');
    const { port } = await proxy([app.port]);
    const { socket, name } = await open(port);
    expect([name, socket.protocol, socket.extensions]).toEqual(['here', 'chat', 'permessage-deflate']);
    const echo = async (): Promise<[Buffer, boolean]> => (await once(socket, 'message')) as [Buffer, boolean];
    const large = Buffer.alloc(5 << 20, 'kite');
    socket.send(large);
    expect(Buffer.compare((await echo())[0], large)).toBe(0);
    socket.send('one ', { fin: false });
    socket.send('two ', { fin: false });
    socket.ping('in between');
    expect(String(((await once(socket, 'pong')) as [Buffer])[0])).toBe('in between');
    socket.send('three', { fin: true });
    const [whole, isBinary] = await echo();
    expect([String(whole), isBinary]).toEqual(['one two three', false]);
    const [server] = app.sockets;
    const heard = closed(server!);
    socket.close(4001, 'done');
    expect(await heard).toEqual([4001, 'done']);
    const other = await open(port);
    const told = closed(other.socket);
    for (const one of app.sockets) one.close(4002, 'go');
    expect(await told).toEqual([4002, 'go']);
    const refused = new WebSocket(`ws://127.0.0.1:${port}/refused`);
    refused.on('error', () => undefined);
    const [, answer] = (await once(refused, 'unexpected-response')) as [unknown, IncomingMessage];
    expect(answer.statusCode).toBe(401);
  });

  it('at the primary by route has until the deadline to be closed by its application when the role moves', async () => {
    const [there, here] = [await application('there'), await application('here')];
    const options = { routes: [TO_PRIMARY], drainMs: 300 };
    const primary = await proxy([there.port], options, new StubView({ nodeId: 'b', epoch: 7n }));
    const replica = await proxy([here.port], options, new StubView({ nodeId: 'a', epoch: 7n }));
    replica.view.follow(primary.port);
    const [local, told, cut] = [
      await open(replica.port),
      await open(replica.port, '/primary'),
      await open(replica.port, '/primary'),
    ];
    expect([local.name, told.name, cut.name]).toEqual(['here', 'there', 'there']);
    const [first] = there.sockets;
    const [toldSays, cutSays] = [closed(told.socket), closed(cut.socket)];
    replica.view.set({ role: 'primary', primary: undefined, writableUntilMs: Infinity, epoch: 8n });
    // An application that knows says so itself.
    first!.close(1012, 'the primary has moved');
    expect(await toldSays).toEqual([1012, 'the primary has moved']);
    // Otherwise the connection is cut: no word that came from the proxy would be the application's.
    expect(await cutSays).toEqual([1006, '']);
    const again = await open(replica.port, '/primary');
    expect(again.name).toBe('here');
    local.socket.send('still there');
    expect(String(((await once(local.socket, 'message')) as [Buffer])[0])).toBe('still there');
  });
});

/** Server-sent events: two at once, then it ends; whoever comes back with the id of the last gets the next. */
function events(request: IncomingMessage, response: ServerResponse): void {
  const last = Number(request.headers['last-event-id'] ?? 0);
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  response.write('retry: 10\n\n');
  for (const id of [last + 1, last + 2]) response.write(`id: ${id}\ndata: event ${id}\n\n`);
  if (last >= 4) return;
  // Once whole, once in the middle of an event: both are the end for the client.
  if (last === 0) response.end();
  else setTimeout(() => response.destroy(), 50);
}

describe('eventsource', () => {
  it('gets events as they come, and goes on where an answer has ended or broken off', async () => {
    const app = await application('here', events);
    const { port } = await proxy([app.port]);
    const source = new EventSource(`http://127.0.0.1:${port}/`);
    undo.push(() => source.close());
    const heard: string[] = [];
    source.addEventListener('message', ({ data }) => heard.push(String(data)));
    await until(() => heard.length >= 6);
    expect(heard).toEqual([1, 2, 3, 4, 5, 6].map((id) => `event ${id}`));
  });

  it('reads /events of a node through a proxy', async () => {
    let tell: ((change: NodeChange) => void) | undefined;
    const node = {
      primary: () => ({ isPrimary: true, hostname: 'node1' }),
      watch: (listener: (change: NodeChange) => void) => {
        tell = listener;
        return () => undefined;
      },
    } as Partial<NodeApi> as NodeApi;
    const admin = await AdminServer.listen({
      address: { host: '127.0.0.1', port: 0 },
      node,
      metrics: {} as Metrics,
      logger: createLogger({ format: 'json', level: 'silent' }),
      importDir: '/nonexistent',
      maxImportBytes: 0,
      maxLagMs: 10_000,
    });
    undo.push(() => admin.close());
    const { port } = await proxy([admin.port]);
    const source = new EventSource(`http://127.0.0.1:${port}/events`);
    undo.push(() => source.close());
    const next = (type: string): Promise<unknown> =>
      new Promise((resolve) => {
        source.addEventListener(type, ({ data }) => resolve(JSON.parse(String(data))), { once: true });
      });
    expect(await next('init')).toMatchObject({ data: { isPrimary: true, hostname: 'node1' } });
    const changed = next('primaryChange');
    tell?.({ kind: 'primary', isPrimary: false, hostname: 'node2' });
    expect(await changed).toMatchObject({ data: { isPrimary: false, hostname: 'node2' } });
  });
});

const PAGE = `<!doctype html><script>
  const heard = [];
  const source = new EventSource('/events');
  source.onmessage = ({ data }) => heard.push(data);
  const socket = new WebSocket('ws://' + location.host + '/socket');
  socket.binaryType = 'arraybuffer';
  const said = [];
  socket.onmessage = ({ data }) => {
    said.push(typeof data === 'string' ? data : data.byteLength);
    if (said.length === 1) { socket.send('text'); socket.send(new Uint8Array(1 << 20)); }
    if (said.length === 3) socket.close(4003, 'enough');
  };
  socket.onclose = ({ code, reason, wasClean }) => said.push([code, reason, wasClean]);
</script>`;

it('a browser has its page, its EventSource and its WebSocket through the proxy, and its cookie', async () => {
  const app = await application('here', (request, response) => {
    if (request.url === '/events') events(request, response);
    else response.writeHead(200, { 'content-type': 'text/html' }).end(PAGE);
  });
  const view = new StubView({
    databases: new Map([['app.db', { position: { epoch: 7n, txid: 26n }, ends: [], freshAtMs: Infinity }]]),
  });
  view.seen = () => Promise.resolve(new Map([['app.db', { epoch: 7n, txid: 26n }]]));
  const { port } = await proxy([app.port], { token: 'cookie' }, view);
  const browser = await chromium.launch({
    executablePath: process.env['CHROMIUM'] ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu'],
  });
  undo.push(() => browser.close());
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${port}/`);
  await page.waitForFunction('heard.length >= 6 && said.length >= 4');
  expect(await page.evaluate('[heard, said]')).toEqual([
    [1, 2, 3, 4, 5, 6].map((id) => `event ${id}`),
    ['here', 'text', 1 << 20, [4003, 'enough', true]],
  ]);
  expect(await page.context().cookies()).toMatchObject([
    { name: 'kitefs-token', value: 'app.db=7:1a', httpOnly: true, sameSite: 'Lax' },
  ]);
});
