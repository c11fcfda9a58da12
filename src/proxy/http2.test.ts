import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  constants,
  type OutgoingHttpHeaders,
} from 'node:http2';
import { connect, type Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import { exchangeRaw, RawTarget, scene, StubView } from '../../test/helpers/proxy.js';

const { undo, raw, proxy } = scene();
const { NGHTTP2_CANCEL, NGHTTP2_INTERNAL_ERROR, NGHTTP2_NO_ERROR } = constants;

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-App: 1\r\n\r\nhi';
const always = async (answer = OK): Promise<RawTarget> => {
  const started = await RawTarget.always(answer);
  undo.push(() => started.stop());
  return started;
};

function session(port: number): ClientHttp2Session {
  const opened = connectHttp2(`http://127.0.0.1:${port}`);
  opened.on('error', () => undefined);
  undo.push(() => opened.destroy());
  return opened;
}

interface Answer {
  readonly status: number;
  readonly headers: Record<string, unknown>;
  readonly raw: readonly string[];
  readonly body: string;
  readonly trailers: Record<string, unknown>;
  readonly rstCode: number;
}

/** What comes of a stream when it has ended. */
async function answerTo(stream: ClientHttp2Stream): Promise<Answer> {
  let [status, headers, rawHeaders, body, trailers] = [0, {}, [] as string[], '', {}];
  stream.on('response', (given: Record<string, unknown>, _flags: number, all: string[] = []) => {
    status = Number(given[':status']);
    headers = given;
    rawHeaders = all;
  });
  stream.on('trailers', (given) => (trailers = { ...given }));
  stream.on('data', (chunk) => (body += String(chunk)));
  stream.on('error', () => undefined);
  await new Promise((resolve) => stream.once('close', resolve));
  return { status, headers, raw: rawHeaders, body, trailers, rstCode: stream.rstCode ?? 0 };
}

function ask(to: ClientHttp2Session, headers: OutgoingHttpHeaders, body?: string): Promise<Answer> {
  const stream = to.request(headers, { endStream: body === undefined });
  if (body !== undefined) stream.end(body);
  return answerTo(stream);
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe('a client of HTTP/2', () => {
  it('is answered by an application of HTTP/1.1, which sees a request like any other', async () => {
    const app = await always(
      'HTTP/1.1 201 Made so\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Twice: 1\r\nX-Twice: 2\r\nX-Content-Type-Options: nosniff\r\nX-Content-Type-Options: nosniff\r\nX-Odd: \xe4\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\r\nhi',
    );
    const { port, counted } = await proxy([app.port], { responseHeaders: true });
    const client = session(port);
    const odd = '/a%2F..%2f;x=%00//b?q=a+b&&=%zz';
    const answer = await ask(client, {
      ':path': odd,
      ':authority': 'app.example:8080',
      cookie: ['a=1', 'b=2'],
      'x-twice': ['1', '2'],
      'x-odd': '\xe4',
      te: 'trailers',
    });
    expect(answer).toMatchObject({ status: 201, body: 'hi', rstCode: NGHTTP2_NO_ERROR });
    expect(answer.headers).toMatchObject({
      'set-cookie': ['a=1', 'b=2'],
      'x-twice': '1, 2',
      'x-content-type-options': 'nosniff, nosniff',
      'x-odd': '\xe4',
      'kitefs-node': 'a',
    });
    expect(Object.keys(answer.headers)).not.toEqual(expect.arrayContaining(['x-hop']));
    // The application said none.
    expect(answer.headers['date']).toBeUndefined();
    expect(app.received.split('\r\n')[0]).toBe(`GET ${odd} HTTP/1.1`);
    expect(app.received).toMatch(/^host: app\.example:8080\r$/im);
    expect(app.received).toContain('cookie: a=1; b=2\r\n');
    expect(app.received).toContain('x-twice: 1\r\nx-twice: 2\r\nx-odd: \xe4\r\n');
    expect(app.received).toContain('X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n');
    expect(app.received).not.toMatch(/^te:|transfer-encoding|^:/im);
    expect(counted).toEqual(['read local 201']);
    // The same port speaks HTTP/1.1 as before, however its first bytes come.
    const slow = await exchangeRaw(port, ['P', 10, 'R', 10, 'OPFIND / HTTP/1.1\r\nHost: app\r\n\r\n'], /hi$/);
    expect(slow).toMatch(/^HTTP\/1.1 201 Made so\r\n/);
  });

  it('has bodies and trailers streamed both ways, each piece as it comes', async () => {
    const app = await raw((socket, received) => {
      if (received.endsWith('first\r\n'))
        socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\none\r\n');
      if (received.endsWith('\r\n\r\n') && received.includes('second'))
        socket.write('3\r\ntwo\r\n0\r\nX-Sum: 7\r\nSet-Cookie: c=3\r\n\r\n');
    });
    const { port } = await proxy([app.port]);
    const stream = session(port).request({ ':method': 'POST' }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-t': '1', host: 'evil' }));
    const answer = answerTo(stream);
    stream.write('first');
    expect(String((await once(stream, 'data'))[0])).toBe('one');
    stream.end('second');
    expect(await answer).toMatchObject({ status: 200, body: 'onetwo', rstCode: NGHTTP2_NO_ERROR });
    expect((await answer).trailers).toHaveProperty('x-sum', '7');
    expect((await answer).trailers).not.toHaveProperty('set-cookie');
    expect(app.received).toMatch(/transfer-encoding: chunked/i);
    expect(app.received).toMatch(/0\r\nx-t: 1\r\n\r\n$/);
  });

  it('and the application are each bounded by the slower side', async () => {
    const big = 32 << 20;
    const app = await raw((socket, received) => {
      // Whoever posts here is not read.
      if (received.startsWith('POST')) {
        socket.pause();
        return;
      }
      socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${big}\r\n\r\n`);
      const chunk = Buffer.alloc(64 << 10);
      const more = (): void => {
        while (socket.bytesWritten < big + 100 && socket.write(chunk));
      };
      socket.on('drain', more);
      more();
    });
    const { port } = await proxy([app.port]);
    const client = session(port);
    const down = client.request({});
    await once(down, 'response');
    const up = client.request({ ':method': 'POST' });
    let sent = 0;
    const push = (): void => {
      up.write(Buffer.alloc(64 << 10), () => {
        sent += 64 << 10;
        if (sent < big) push();
      });
    };
    push();
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(app.sockets[0]!.bytesWritten - app.sockets[0]!.writableLength).toBeLessThan(12 << 20);
    expect(sent).toBeLessThan(12 << 20);
    // One that stands still does not hold up the others.
    const other = await proxy([(await always()).port]);
    expect((await ask(session(other.port), {})).status).toBe(200);
  });

  it('that goes away takes its request with it; half an answer is never a whole one', async () => {
    const app = await raw((socket, received) => {
      if (received.includes('/half'))
        socket.end('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n');
    });
    const { port, server } = await proxy([app.port]);
    const client = session(port);
    const stream = client.request({ ':path': '/wait' });
    stream.on('error', () => undefined);
    await until(() => app.sockets.length === 1);
    const gone = once(app.sockets[0]!, 'close');
    stream.close(NGHTTP2_CANCEL);
    await gone;
    const half = await ask(client, { ':path': '/half' });
    expect(half).toMatchObject({ status: 200, body: 'half', rstCode: NGHTTP2_INTERNAL_ERROR });
    await until(() => server.state.requests === 0);
  });

  it('gets HEAD, Expect, early hints and answers without a body as they are', async () => {
    const app = await raw((socket, all) => {
      const received = all.slice([...all.matchAll(/(HEAD|GET|POST) \//g)].at(-1)?.index);
      if (received.startsWith('HEAD')) socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n');
      else if (received.includes('/304')) socket.write('HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n');
      else if (received.includes('/no')) socket.write('HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n');
      else if (received.includes('/hint'))
        socket.write(`HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n${OK}`);
      else if (received.endsWith('\r\n\r\n')) socket.write('HTTP/1.1 100 Continue\r\n\r\n');
      else if (received.endsWith('body')) socket.write(OK);
    });
    const { port } = await proxy([app.port]);
    const client = session(port);
    const head = await ask(client, { ':method': 'HEAD' });
    expect([head.status, head.headers['content-length'], head.body]).toEqual([200, '1000', '']);
    const same = await ask(client, { ':path': '/304' });
    expect([same.status, same.headers['etag'], same.rstCode]).toEqual([304, '"1"', NGHTTP2_NO_ERROR]);
    const hinted = client.request({ ':path': '/hint' });
    const hints: unknown[] = [];
    hinted.on('headers', (given) => hints.push({ ...given }));
    expect((await answerTo(hinted)).body).toBe('hi');
    expect(hints).toMatchObject([{ ':status': 103, link: '</a.css>; rel=preload' }]);
    const expecting = { ':method': 'POST', expect: '100-continue', 'content-length': 4 };
    const yes = client.request(expecting);
    const answer = answerTo(yes);
    await once(yes, 'continue');
    yes.end('body');
    expect((await answer).status).toBe(200);
    // Not wanted: the whole answer, and then the word that no body is.
    const no = await answerTo(client.request({ ...expecting, ':path': '/no' }));
    expect(no).toMatchObject({ status: 413, rstCode: NGHTTP2_NO_ERROR });
    const wonders = await ask(client, { expect: 'wonders' });
    expect([wonders.status, wonders.headers['kitefs-error']]).toEqual([417, 'ERR_PROXY_EXPECT']);
  });

  it('begins many streams on one connection, reads here and writes at the primary', async () => {
    const [there, here] = [await always(), await always()];
    const secret = 'a secret of the cluster';
    const primary = await proxy([there.port], { secret }, new StubView({ nodeId: 'b', epoch: 7n }));
    const replica = await proxy([here.port], { secret }, new StubView({ nodeId: 'a', epoch: 7n }));
    replica.view.follow(primary.port);
    const client = session(replica.port);
    const answers = await Promise.all(
      Array.from({ length: 300 }, (_, i) =>
        ask(client, { ':path': `/${i}`, ':method': i % 3 === 0 ? 'POST' : 'GET', 'content-length': 0 }),
      ),
    );
    expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 300 }, () => 200));
    expect(there.received.match(/POST \/\d+ /g)).toHaveLength(100);
    expect(here.received.match(/GET \/\d+ /g)).toHaveLength(200);
    expect(there.received).toContain('Kitefs-Via: a, b\r\n');
    const body = 'x'.repeat(200_000);
    const large = await raw((socket, received) => {
      if ((received.match(/x/g)?.length ?? 0) > 190_000 && received.endsWith('\r\n0\r\n\r\n'))
        socket.write(OK);
    });
    const other = await proxy([large.port], { secret }, new StubView({ nodeId: 'b', epoch: 7n }));
    replica.view.follow(other.port);
    expect((await ask(client, { ':method': 'POST' }, body)).body).toBe('hi');
    // Nobody is the primary.
    replica.view.follow(undefined);
    const none = await proxy([here.port], { primaryWaitMs: 50 });
    none.view.follow(undefined);
    const refused = await ask(session(none.port), { ':method': 'POST' }, 'x');
    expect(refused).toMatchObject({ status: 503, rstCode: NGHTTP2_NO_ERROR });
    expect(refused.headers).toMatchObject({ 'retry-after': '1', 'kitefs-error': 'ERR_PROXY_NO_PRIMARY' });
    expect(JSON.parse(refused.body)).toMatchObject({ error: { code: 'ERR_PROXY_NO_PRIMARY' } });
  });

  it('carries tokens in cookies among others, or in the header', async () => {
    const app = await always();
    const view = new StubView({
      databases: new Map([['app.db', { position: { epoch: 7n, txid: 3n }, ends: [], freshAtMs: Infinity }]]),
    });
    view.seen = () => Promise.resolve(new Map([['app.db', { epoch: 7n, txid: 26n }]]));
    const { port } = await proxy([app.port], { token: 'cookie' }, view);
    const client = session(port);
    const first = await ask(client, {});
    expect(first.headers['set-cookie']).toEqual([expect.stringContaining('kitefs-token=app.db=7:1a;')]);
    const crumbs = { cookie: ['a=1', 'kitefs-token=app.db=7:1a', 'b=2'] };
    expect((await ask(client, crumbs)).headers['set-cookie']).toBeUndefined();
    expect((await ask(client, { 'kitefs-token': '' })).headers['kitefs-token']).toBe('app.db=7:1a');
    const bound = await ask(client, { 'kitefs-max-staleness': 'soon' });
    expect([bound.status, bound.headers['kitefs-error']]).toEqual([400, 'ERR_PROXY_REQUEST']);
  });

  it('hears GOAWAY when the proxy ends, and has its answers first', async () => {
    let answer: (() => void) | undefined;
    const app = await raw((socket) => (answer = () => socket.write(OK)));
    const { port, server } = await proxy([app.port]);
    const [client, idle] = [session(port), session(port)];
    const running = ask(client, {});
    await Promise.all([until(() => answer !== undefined), once(idle, 'remoteSettings')]);
    const goaway = once(client, 'goaway');
    const ended = Promise.all([once(client, 'close'), once(idle, 'close')]);
    const closed = server.close(5000);
    expect(((await goaway) as number[])[0]).toBe(NGHTTP2_NO_ERROR);
    answer?.();
    expect((await running).body).toBe('hi');
    await Promise.all([ended, closed]);
  });

  it('opens WebSockets as streams (RFC 8441)', async () => {
    const key = (text: string): string => /sec-websocket-key: (\S+)/i.exec(text)?.[1] ?? '';
    const app = await raw((socket, received) => {
      const accept = createHash('sha1')
        .update(`${key(received)}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
        .digest('base64');
      const said = received.includes('/wrong') ? 'x' : accept;
      if (received.includes('/refused'))
        socket.write('HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno');
      else if (received.endsWith('\r\n\r\n'))
        socket.write(
          `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${said}\r\nSec-WebSocket-Protocol: chat\r\n\r\n`,
        );
      else socket.write(`<${received.slice(received.lastIndexOf('\r\n\r\n') + 4)}>`, 'latin1');
    });
    const { port, server } = await proxy([app.port], { drainMs: 100 });
    const client = session(port);
    await once(client, 'remoteSettings');
    const opening = (path: string, protocol = 'websocket'): ClientHttp2Stream =>
      client.request(
        {
          ':method': 'CONNECT',
          ':protocol': protocol,
          ':scheme': 'http',
          ':path': path,
          'sec-websocket-version': '13',
          'sec-websocket-protocol': 'chat',
        },
        { endStream: false },
      );
    const stream = opening('/chat');
    const [head] = (await once(stream, 'response')) as [Record<string, unknown>];
    expect(head).toMatchObject({ ':status': 200, 'sec-websocket-protocol': 'chat' });
    expect(head).not.toHaveProperty('sec-websocket-accept');
    expect(app.received).toMatch(
      /^GET \/chat HTTP\/1.1\r\n[^]*Connection: Upgrade\r\nUpgrade: websocket\r\n/,
    );
    stream.write(Buffer.from('\xff\0hi', 'latin1'));
    expect(((await once(stream, 'data')) as [Buffer])[0].toString('latin1')).toBe('<\xff\0hi>');
    expect(server.state.upgrades).toBe(1);
    const gone = once(app.sockets[0]!, 'close');
    stream.close(NGHTTP2_CANCEL);
    await gone;
    await until(() => server.state.upgrades === 0);
    expect(await answerTo(opening('/refused'))).toMatchObject({ status: 404, body: 'no' });
    expect(await answerTo(opening('/wrong'))).toMatchObject({ status: 502 });
    expect(await answerTo(opening('/', 'tls'))).toMatchObject({ status: 501 });
    // One that is open when the proxy ends is cut after its time.
    const last = opening('/chat');
    await once(last, 'response');
    last.resume();
    await Promise.all([once(last, 'close'), server.close(100)]);
  });
});

// --- frames by hand, for what no client sends

const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
const [DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION] = [0, 1, 3, 4, 6, 7, 9];
const [END_STREAM, END_HEADERS] = [1, 4];

function frame(type: number, flags: number, stream: number, payload: Buffer | string = ''): Buffer {
  const body = Buffer.from(payload);
  const head = Buffer.alloc(9);
  head.writeUIntBE(body.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, body]);
}

/** Literals without an index (RFC 7541 §6.2.2), so that anything can be said. */
function block(...headers: readonly (readonly [string, string])[]): Buffer {
  const text = (value: string): Buffer => {
    const bytes = Buffer.from(value, 'latin1');
    if (bytes.length < 127) return Buffer.concat([Buffer.from([bytes.length]), bytes]);
    const length: number[] = [127];
    let rest = bytes.length - 127;
    for (; rest > 127; rest >>= 7) length.push((rest & 127) | 128);
    return Buffer.concat([Buffer.from([...length, rest]), bytes]);
  };
  return Buffer.concat(
    headers.map(([name, value]) => Buffer.concat([Buffer.from([0]), text(name), text(value)])),
  );
}

const request = (...more: readonly (readonly [string, string])[]): [string, string][] => {
  const all = new Map([
    [':method', 'GET'],
    [':scheme', 'http'],
    [':authority', 'app'],
    [':path', '/'],
  ]);
  const rest: [string, string][] = [];
  for (const [name, value] of more) {
    if (all.has(name)) all.set(name, value);
    else rest.push([name, value]);
  }
  return [...all, ...rest];
};

interface Frame {
  readonly type: number;
  readonly stream: number;
  readonly payload: Buffer;
}

/** A connection of HTTP/2 as bytes: what has come on it, frame by frame. */
class RawConnection {
  readonly frames: Frame[] = [];
  readonly socket: Socket;
  readonly ended: Promise<unknown>;

  constructor(port: number) {
    this.socket = connect(port, '127.0.0.1');
    let bytes = Buffer.alloc(0);
    this.socket.on('data', (chunk) => {
      bytes = Buffer.concat([bytes, chunk]);
      while (bytes.length >= 9 && bytes.length >= 9 + bytes.readUIntBE(0, 3)) {
        const end = 9 + bytes.readUIntBE(0, 3);
        const stream = bytes.readUInt32BE(5);
        this.frames.push({ type: bytes[3]!, stream, payload: bytes.subarray(9, end) });
        bytes = bytes.subarray(end);
      }
    });
    this.socket.on('error', () => undefined);
    this.ended = once(this.socket, 'close');
    this.write(PREFACE, frame(SETTINGS, 0, 0));
    undo.push(() => this.socket.destroy());
  }

  write(...frames: readonly Buffer[]): void {
    this.socket.write(Buffer.concat(frames));
  }

  /** The status of a stream's answer; `reset`: it was ended by a word of the protocol, or with the connection. */
  async outcome(stream: number): Promise<number | 'reset'> {
    const ofIt = (type: number): Frame | undefined =>
      this.frames.find((one) => one.type === type && one.stream === stream);
    await Promise.race([
      until(() => ofIt(HEADERS) !== undefined || ofIt(RST_STREAM) !== undefined),
      this.ended,
    ]);
    const head = ofIt(HEADERS)?.payload;
    if (!head) return 'reset';
    // 200 has an entry of the static table; others are a literal with the name of one (RFC 7541 appendix A).
    if (head[0]! & 0x80) return [200, 204, 206, 304, 400, 404, 500][(head[0]! & 0x7f) - 8] ?? 0;
    const length = head[1]! & 0x7f;
    return head[1]! & 0x80
      ? huffmanDigits(head.subarray(2, 2 + length))
      : Number(head.subarray(2, 2 + length));
  }
}

/** Digits in HPACK's code (RFC 7541 appendix B): 0 to 2 have five bits, 3 to 9 six. */
function huffmanDigits(bytes: Buffer): number {
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  let text = '';
  for (let at = 0; text.length < 3;) {
    const five = Number.parseInt(bits.slice(at, at + 5), 2);
    text += String(five <= 2 ? five : Number.parseInt(bits.slice(at, at + 6), 2) - 0x19 + 3);
    at += five <= 2 ? 5 : 6;
  }
  return Number(text);
}

describe('bad input of HTTP/2', () => {
  type Headers = readonly (readonly [string, string])[];
  const without = (name: string): Headers => request().filter(([one]) => one !== name);
  const cases: readonly (readonly [string, Headers, number | 'reset'])[] = [
    ['Connection', request(['connection', 'x-a']), 'reset'],
    ['Transfer-Encoding', request(['transfer-encoding', 'chunked']), 'reset'],
    ['Upgrade', request(['upgrade', 'websocket']), 'reset'],
    ['Keep-Alive', request(['keep-alive', '5']), 'reset'],
    ['TE other than trailers', request(['te', 'gzip']), 'reset'],
    ['two lengths', request(['content-length', '0'], ['content-length', '1']), 'reset'],
    ['a length that is none', request(['content-length', '+3']), 'reset'],
    ['a length without a body', request(['content-length', '3']), 'reset'],
    ['an upper-case name', request(['X-A', '1']), 'reset'],
    ['a line break in the path', request([':path', '/ HTTP/1.1\r\nX: y']), 'reset'],
    ['a space in the path', request([':path', '/a b']), 'reset'],
    ['a path that is none', request([':path', 'x']), 'reset'],
    ['an empty path', request([':path', '']), 'reset'],
    ['no path', without(':path'), 'reset'],
    ['no method', without(':method'), 'reset'],
    ['no scheme', without(':scheme'), 'reset'],
    ['a line break in the method', request([':method', 'GET / HTTP/1.1\r\n']), 'reset'],
    ['a pseudo-header that is none', [...request(), [':x', '1']], 'reset'],
    ['a pseudo-header after the others', [...without(':path'), ['x-a', '1'], [':path', '/']], 'reset'],
    ['two paths', [...request(), [':path', '/b']], 'reset'],
    ['a status', [...request(), [':status', '200']], 'reset'],
    ['a byte in the path that is no ASCII', request([':path', '/\xe9']), 400],
    ['an unknown method', request([':method', 'BREW']), 400],
    ['another Host than :authority', request(['host', 'evil']), 400],
    ['two Hosts', [...without(':authority'), ['host', 'a'], ['host', 'b']], 'reset'],
    ['an empty authority', request([':authority', '']), 'reset'],
    ['no authority', without(':authority'), 'reset'],
    [
      'CONNECT',
      [
        [':method', 'CONNECT'],
        [':authority', 'app:443'],
      ],
      501,
    ],
    ['a giant header', request(['x-a', 'a'.repeat(20_000)]), 431],
    ['a giant path', request([':path', `/${'a'.repeat(20_000)}`]), 431],
    ['too many headers', request(...Array.from({ length: 510 }, () => ['x', ''] as const)), 431],
    ['far too many headers', request(...Array.from({ length: 3000 }, () => ['x', ''] as const)), 'reset'],
    ['a proof that is none', request(['kitefs-forwarded', 'epoch=1; from=b']), 403],
    ['a loop', request(['kitefs-via', 'x, a']), 508],
  ];
  it.each(cases)('%s never reaches the application', async (_what, headers, expected) => {
    const app = await always();
    const { port } = await proxy([app.port]);
    const client = new RawConnection(port);
    const bytes = block(...headers);
    const parts: Buffer[] = [];
    for (let at = 0; at === 0 || at < bytes.length; at += 16_000) {
      const isLast = at + 16_000 >= bytes.length;
      const flags = (at === 0 ? END_STREAM : 0) | (isLast ? END_HEADERS : 0);
      parts.push(frame(at === 0 ? HEADERS : CONTINUATION, flags, 1, bytes.subarray(at, at + 16_000)));
    }
    client.write(...parts);
    expect(await client.outcome(1)).toBe(expected);
    expect(app.received).toBe('');
  });

  // So nghttp2 does it, and Node has no word in that: what is left means nothing else.
  it('in the name or the value of a header is that header left out', async () => {
    const app = await always();
    const { port } = await proxy([app.port]);
    const client = new RawConnection(port);
    const odd = [
      ['x a', '1'],
      ['x:a', '1'],
      ['', '1'],
      ['x-a', '1\r\nx-b: 2'],
      ['x-a', '\0'],
    ] as const;
    client.write(frame(HEADERS, END_STREAM | END_HEADERS, 1, block(...request(...odd, ['x-c', '3']))));
    expect(await client.outcome(1)).toBe(200);
    expect(app.received).toMatch(/^GET \/ HTTP\/1.1\r\nhost: app\r\nx-c: 3\r\nX-Forwarded-For/);
  });

  it('in a body ends the request: other lengths than were said, trailers that are none', async () => {
    const app = await raw(() => undefined);
    const { port } = await proxy([app.port]);
    const post = (...more: [string, string][]): Buffer =>
      frame(HEADERS, END_HEADERS, 1, block(...request([':method', 'POST'], ...more)));
    for (const end of [
      [post(['content-length', '3']), frame(DATA, END_STREAM, 1, 'toolong')],
      [post(['content-length', '9']), frame(DATA, END_STREAM, 1, 'short')],
      [
        post(),
        frame(DATA, 0, 1, 'x'),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, block([':path', '/evil'])),
      ],
    ]) {
      const client = new RawConnection(port);
      client.write(...end);
      expect(await client.outcome(1)).toBe('reset');
    }
    await until(() => app.sockets.every((socket) => socket.destroyed));
    // For the application none was ever whole.
    expect(app.received).not.toMatch(/\r\n\r\ntoo|\r\n0\r\n|evil/);
  });

  it('that never ends has its time and no more', async () => {
    const app = await raw(() => undefined);
    const { port } = await proxy([app.port], {
      readHeaderTimeoutMs: 200,
      idleTimeoutMs: 200,
      readTimeoutMs: 300,
    });
    // Half a preface; a head that is never whole; an idle connection that pings; a body that stops.
    const half = exchangeRaw(port, ['PRI * HT']);
    const head = new RawConnection(port);
    head.write(frame(HEADERS, 0, 1, block(...request())));
    const pinging = new RawConnection(port);
    const pings = setInterval(() => pinging.write(frame(PING, 0, 0, Buffer.alloc(8))), 20);
    undo.push(() => clearInterval(pings));
    const body = new RawConnection(port);
    body.write(frame(HEADERS, END_HEADERS, 1, block(...request([':method', 'POST']))));
    expect(await half).toMatch(/^HTTP\/1.1 408 /);
    expect(await body.outcome(1)).toBe(408);
    await Promise.all([head.ended, pinging.ended, until(() => app.sockets[0]!.destroyed)]);
    clearInterval(pings);
    expect(pinging.frames.some(({ type }) => type === GOAWAY)).toBe(true);
  });

  it('in floods ends the connection: resets, heads without end, more streams than are allowed', async () => {
    const app = await always();
    const { port, server } = await proxy([app.port]);
    const head = block(...request());
    // After its GOAWAY nothing new is begun; the connection ends as an idle one does.
    const waiting = await proxy([app.port], { idleTimeoutMs: 200 });
    waiting.view.follow(undefined);
    const resets = new RawConnection(waiting.port);
    const write = block(...request([':method', 'POST']));
    const cancel = Buffer.from([0, 0, 0, NGHTTP2_CANCEL]);
    for (let i = 0; i < 1200; i++)
      resets.write(
        frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, write),
        frame(RST_STREAM, 0, 2 * i + 1, cancel),
      );
    await resets.ended;
    expect(waiting.counted.length).toBeLessThanOrEqual(1100);
    const endless = new RawConnection(port);
    endless.write(frame(HEADERS, END_STREAM, 1, head));
    for (let i = 0; i < 20; i++) endless.write(frame(CONTINUATION, 0, 1, block(['x', String(i)])));
    await endless.ended;
    // A head that the compression makes larger than its bytes: one entry of 4 KB, named again and again.
    const bomb = new RawConnection(port);
    const entry = Buffer.concat([Buffer.from([0x40]), block(['x', 'a'.repeat(4000)]).subarray(1)]);
    bomb.write(
      frame(HEADERS, END_STREAM, 1, Buffer.concat([head, entry])),
      frame(CONTINUATION, END_HEADERS, 1, Buffer.alloc(8000, 0xbe)),
    );
    expect(await bomb.outcome(1)).toBe('reset');
    const silent = await raw(() => undefined);
    const other = await proxy([silent.port]);
    const many = new RawConnection(other.port);
    await until(() => many.frames.some(({ type }) => type === SETTINGS));
    many.write(frame(SETTINGS, 1, 0));
    for (let i = 0; i < 300; i++) many.write(frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, head));
    await many.ended;
    expect(many.frames.some(({ type }) => type === GOAWAY)).toBe(true);
    await until(() => other.server.state.requests === 0);
    await until(() => server.state.requests === 0);
    // Nobody else has noticed.
    for (const one of [port, waiting.port]) expect((await ask(session(one), {})).status).toBe(200);
  });
});
