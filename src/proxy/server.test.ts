import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import { exchangeRaw, RawTarget, scene } from '../../test/helpers/proxy.js';

const { undo, raw, proxy } = scene();

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-App: 1\r\n\r\nhi';

async function target(answer = OK): Promise<RawTarget> {
  const started = await RawTarget.always(answer);
  undo.push(() => started.stop());
  return started;
}

const get = (path = '/', headers = ''): string => `GET ${path} HTTP/1.1\r\nHost: app\r\n${headers}\r\n`;
const close = 'Connection: close\r\n';
const status = (answer: string): string => answer.split('\r\n')[0] ?? '';
const until = (socket: Socket, what: RegExp, before = ''): Promise<string> =>
  new Promise((resolve, reject) => {
    let text = before;
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1');
      if (what.test(text)) resolve(text);
    });
    socket.once('close', () => reject(new Error(`closed after ${JSON.stringify(text)}`)));
    socket.on('error', () => undefined);
  });

describe('what is passed on', () => {
  it('is the request byte for byte but for what belongs to the connection', async () => {
    const app = await target();
    const { port } = await proxy([app.port]);
    const odd = '/a%2F..%2f;x=%00//b/../%C3%A9?q=a+b&&=%zz';
    const answer = await exchangeRaw(port, [
      get(
        odd,
        'X-Twice: 1\r\nx-twice: 2\r\nCookie: a=\xe4\r\nConnection: X-Secret, close\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Connection: close\r\n',
      ),
    ]);
    expect(status(answer)).toBe('HTTP/1.1 200 OK');
    expect(answer).toContain('X-App: 1\r\n');
    expect(answer.endsWith('hi')).toBe(true);
    const head = app.received;
    expect(head.split('\r\n')[0]).toBe(`GET ${odd} HTTP/1.1`);
    expect(head).toContain('X-Twice: 1\r\nx-twice: 2\r\nCookie: a=\xe4\r\n');
    expect(head).toContain(
      'X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: app\r\n',
    );
    expect(head).toContain('Forwarded: for=127.0.0.1;host="app";proto=http\r\n');
    expect(head).not.toMatch(/x-secret|te: gzip|keep-alive: 5|proxy-connection/i);
  });

  it('keeps what a proxy in front has said of the client, and says it of that proxy too', async () => {
    const app = await target();
    const { port } = await proxy([app.port]);
    await exchangeRaw(port, [
      get(
        '/',
        `X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\nX-Forwarded-Proto: https\r\n${close}`,
      ),
    ]);
    expect(app.received).toContain('X-Forwarded-For: 1.1.1.1, 2.2.2.2, 127.0.0.1\r\n');
    expect(app.received).toContain('X-Forwarded-Proto: https\r\n');
    expect(app.received.match(/x-forwarded-proto/gi)).toHaveLength(1);
    expect(app.received).toContain('proto=https');
  });

  it('is the answer with its trailers, without what belongs to the connection', async () => {
    const app = await target(
      'HTTP/1.1 201 Made so\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKitefs-Error: ERR_PROXY_NOT_PRIMARY\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nSet-Cookie: c=3\r\n\r\n',
    );
    const { port } = await proxy([app.port]);
    const answer = await exchangeRaw(port, [get('/', close)]);
    expect(status(answer)).toBe('HTTP/1.1 201 Made so');
    expect(answer).toContain('Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n');
    expect(answer).not.toMatch(/x-hop|kitefs-error/i);
    expect(answer).toMatch(/3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n$/);
  });

  it('is a chunked body with its trailers, and one of known length', async () => {
    const app = await raw((socket, received) => {
      if (/\r\n0\r\n(.+\r\n)*\r\n$|hello$|Content-Length: 0\r\n[^]*\r\n\r\n$/.test(received))
        socket.write(OK);
    });
    const { port } = await proxy([app.port]);
    const chunked =
      'POST /c HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n4;ext=1\r\nwiki\r\n';
    await exchangeRaw(port, [chunked, 20, '3\r\nped\r\n0\r\nX-T: 1\r\nHost: evil\r\n\r\n'], /hi$/);
    expect(app.received).toMatch(/transfer-encoding: chunked/i);
    expect(app.received).toContain('wiki');
    expect(app.received).toMatch(/0\r\nX-T: 1\r\n\r\n$/);
    app.received = '';
    await exchangeRaw(
      port,
      ['POST /l HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhe', 20, 'llo'],
      /hi$/,
    );
    expect(app.received).toMatch(/^POST \/l HTTP\/1.1\r\n[^]*Content-Length: 5\r\n[^]*hello$/);
    expect(app.received).not.toMatch(/transfer-encoding/i);
    app.received = '';
    await exchangeRaw(port, ['POST /e HTTP/1.1\r\nHost: app\r\n\r\n'], /hi$/);
    expect(app.received).toMatch(/Content-Length: 0\r\n/);
  });

  it('is each piece as it comes: events, early hints, HEAD without a body', async () => {
    const app = await raw((socket, received) => {
      if (received.startsWith('HEAD')) socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n');
      else {
        socket.write('HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n');
        socket.write('HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n');
      }
    });
    const { port } = await proxy([app.port]);
    const client = connect(port, '127.0.0.1');
    client.write(get('/events'));
    // The head alone, before there is any event.
    expect(await until(client, /event-stream[^]*\r\n\r\n$/)).toContain(
      '103 Early Hints\r\nLink: </a.css>; rel=preload',
    );
    const first = until(client, /data: 1\n\n/);
    app.sockets[0]!.write('data: 1\n\n');
    await first;
    const gone = once(app.sockets[0]!, 'close');
    // A client that goes away takes its request with it.
    client.destroy();
    await gone;
    const head = await exchangeRaw(port, [`HEAD / HTTP/1.1\r\nHost: app\r\n${close}\r\n`]);
    expect(head).toMatch(/Content-Length: 1000\r\n[^]*\r\n\r\n$/);
  });

  it('is Expect: 100-continue and what the application says to it', async () => {
    const app = await raw((socket, received, self) => {
      if (received.includes('/no')) socket.write('HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n');
      else if (received.endsWith('\r\n\r\n') && self.received.includes('100-continue'))
        socket.write('HTTP/1.1 100 Continue\r\n\r\n');
      else if (received.endsWith('body')) socket.write(OK);
    });
    const { port } = await proxy([app.port]);
    const post = (path: string): string =>
      `POST ${path} HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n`;
    const client = connect(port, '127.0.0.1');
    client.write(post('/yes'));
    await until(client, /^HTTP\/1.1 100 Continue\r\n\r\n$/);
    const answer = until(client, /hi$/);
    client.write('body');
    expect(await answer).toContain('200 OK');
    client.destroy();
    // Not wanted: no body is asked for, and the connection ends, because nobody knows what comes next on it.
    const refused = await exchangeRaw(port, [post('/no')]);
    expect(status(refused)).toBe('HTTP/1.1 413 Too Large');
    expect(refused).toMatch(/Connection: close/i);
    expect(status(await exchangeRaw(port, [get('/', 'Expect: wonders\r\n')], /\}/))).toBe(
      'HTTP/1.1 417 Expectation Failed',
    );
  });

  it('is bounded by the slower side', async () => {
    const big = 64 << 20;
    const app = await raw((socket) => {
      socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${big}\r\n\r\n`);
      const chunk = Buffer.alloc(64 << 10);
      const more = (): void => {
        while (socket.bytesWritten < big + 100 && socket.write(chunk));
      };
      socket.on('drain', more);
      more();
    });
    const { port } = await proxy([app.port]);
    const client = connect(port, '127.0.0.1');
    client.write(get());
    await once(client, 'readable');
    await new Promise((resolve) => setTimeout(resolve, 300));
    // What is neither read by the client nor kept by the kernel has not been sent.
    expect(app.sockets[0]!.bytesWritten - app.sockets[0]!.writableLength).toBeLessThan(24 << 20);
    client.destroy();
  });
});

describe('bad input', () => {
  const post = (headers: string, body = ''): string =>
    `POST / HTTP/1.1\r\nHost: app\r\n${headers}\r\n${body}`;
  const cases: readonly (readonly [string, string, RegExp])[] = [
    ['what only begins like HTTP/2', 'PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n', /^HTTP\/1.1 400 /],
    ['no HTTP at all', 'hello\r\n\r\n', /^HTTP\/1.1 400 /],
    [
      'Content-Length and Transfer-Encoding',
      post('Content-Length: 3\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'),
      /^HTTP\/1.1 400 /,
    ],
    [
      'Transfer-Encoding, then Content-Length',
      post('Transfer-Encoding: chunked\r\nContent-Length: 3\r\n', '0\r\n\r\n'),
      /^HTTP\/1.1 400 /,
    ],
    ['two lengths', post('Content-Length: 3\r\nContent-Length: 4\r\n', 'abcd'), /^HTTP\/1.1 400 /],
    ['two equal lengths', post('Content-Length: 3\r\nContent-Length: 3\r\n', 'abc'), /^HTTP\/1.1 400 /],
    ['a length that is a list', post('Content-Length: 3, 3\r\n', 'abc'), /^HTTP\/1.1 400 /],
    ['a negative length', post('Content-Length: -1\r\n'), /^HTTP\/1.1 400 /],
    ['a length with a sign', post('Content-Length: +3\r\n', 'abc'), /^HTTP\/1.1 400 /],
    [
      'another transfer coding last',
      post('Transfer-Encoding: chunked, identity\r\n', '0\r\n\r\n'),
      /^HTTP\/1.1 400 /,
    ],
    [
      'a transfer coding inside of chunked',
      post('Transfer-Encoding: gzip, chunked\r\n', '4\r\nwiki\r\n0\r\n\r\n'),
      /^HTTP\/1.1 400 /,
    ],
    [
      'a chunk extension without end',
      post('Transfer-Encoding: chunked\r\n', `4;${'e'.repeat(40_000)}`),
      /^HTTP\/1.1 400 /,
    ],
    ['a length beyond all', post('Content-Length: 99999999999999999999999\r\n'), /^HTTP\/1.1 400 /],
    ['a Host that is none', 'GET / HTTP/1.1\r\nHost: app@evil\r\n\r\n', /^HTTP\/1.1 400 /],
    ['a Host that is two', 'GET / HTTP/1.1\r\nHost: app, evil\r\n\r\n', /^HTTP\/1.1 400 /],
    ['another host in the address', 'GET http://evil/ HTTP/1.1\r\nHost: app\r\n\r\n', /^HTTP\/1.1 400 /],
    ['a fragment', 'GET /admin#x HTTP/1.1\r\nHost: app\r\n\r\n', /^HTTP\/1.1 400 /],
    ['an unknown transfer coding', post('Transfer-Encoding: xchunked\r\n', '0\r\n\r\n'), /^HTTP\/1.1 400 /],
    [
      'Transfer-Encoding with a control character',
      post('Transfer-Encoding: \x0bchunked\r\n', '0\r\n\r\n'),
      /^HTTP\/1.1 400 /,
    ],
    [
      'Transfer-Encoding in HTTP/1.0',
      'POST / HTTP/1.0\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      /^HTTP\/1.1 400 /,
    ],
    [
      'a chunk size that is none',
      post('Transfer-Encoding: chunked\r\n', '0x3\r\nabc\r\n0\r\n\r\n'),
      /^HTTP\/1.1 400 /,
    ],
    ['a space before the colon', get('/', 'X-A : 1\r\n'), /^HTTP\/1.1 400 /],
    ['a space in the name', get('/', 'X A: 1\r\n'), /^HTTP\/1.1 400 /],
    ['a folded header', get('/', 'X-A: 1\r\n 2\r\n'), /^HTTP\/1.1 400 /],
    ['a first header that is folded', 'GET / HTTP/1.1\r\n Host: app\r\n\r\n', /^HTTP\/1.1 400 /],
    ['a bare LF after a header', 'GET / HTTP/1.1\r\nHost: app\nX-A: 1\r\n\r\n', /^HTTP\/1.1 400 /],
    ['a bare LF after the request line', 'GET / HTTP/1.1\nHost: app\r\n\r\n', /^HTTP\/1.1 400 /],
    ['a bare CR in a header', get('/', 'X-A: 1\rX-B: 2\r\n'), /^HTTP\/1.1 400 /],
    ['a NUL in a header', get('/', 'X-A: \0\r\n'), /^HTTP\/1.1 400 /],
    ['a control character in the path', 'GET /\x01 HTTP/1.1\r\nHost: app\r\n\r\n', /^HTTP\/1.1 400 /],
    ['a byte in the path that is no ASCII', 'GET /\xe9 HTTP/1.1\r\nHost: app\r\n\r\n', /^HTTP\/1.1 400 /],
    ['no Host', 'GET / HTTP/1.1\r\n\r\n', /^HTTP\/1.1 400 /],
    ['two Hosts', get('/', 'Host: evil\r\n'), /^HTTP\/1.1 400 /],
    ['an unknown version', 'GET / HTTP/3.7\r\nHost: app\r\n\r\n', /^HTTP\/1.1 400 /],
    ['an unknown method', 'BREW / HTTP/1.1\r\nHost: app\r\n\r\n', /^HTTP\/1.1 400 /],
    ['CONNECT', 'CONNECT app:443 HTTP/1.1\r\nHost: app\r\n\r\n', /^HTTP\/1.1 501 /],
    ['a giant header', get('/', `X-A: ${'a'.repeat(40_000)}\r\n`), /^HTTP\/1.1 431 /],
    ['too many headers', get('/', 'X-A: 1\r\n'.repeat(4000)), /^HTTP\/1.1 431 /],
    ['a giant path', get(`/${'a'.repeat(40_000)}`), /^HTTP\/1.1 431 /],
    [
      'a body with Upgrade',
      post('Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n', 'abc'),
      /^HTTP\/1.1 400 /,
    ],
    [
      'Kitefs-Forwarded without a proof',
      get('/', 'Kitefs-Forwarded: epoch=1; from=b\r\n'),
      /^HTTP\/1.1 403 /,
    ],
    [
      'Kitefs-Forwarded with a wrong proof',
      get('/', `Kitefs-Forwarded: epoch=1; from=b; mac=${'a'.repeat(43)}\r\n`),
      /^HTTP\/1.1 403 /,
    ],
    ['a loop', get('/', 'Kitefs-Via: x, a\r\n'), /^HTTP\/1.1 508 /],
    [
      'a chain without end',
      get('/', 'Kitefs-Via: 1, 2, 3, 4\r\nKitefs-Via: 5, 6, 7, 8\r\n'),
      /^HTTP\/1.1 508 /,
    ],
  ];

  it.each(cases)('%s never reaches the application', async (what, text, expected) => {
    const app = await target();
    const { port } = await proxy([app.port]);
    // What would be smuggled in the body of the other reading.
    const isFraming = /length|coding|chunk/i.test(what);
    const answer = await exchangeRaw(port, [text, isFraming ? get('/second') : ''], /\}\n$/);
    expect(answer).toMatch(expected);
    // A body whose framing breaks later has begun by then; for the application the request is never whole.
    expect(app.received).toMatch(/^a chunk (size|ext)/.test(what) ? /^(POST [^]*\r\n\r\n)?$/ : /^$/);
    expect(answer).toContain('Kitefs-Error: ERR_PROXY_');
  });

  it('never gets an answer in the place of the one before it', async () => {
    const app = await raw((socket, received) => {
      if (received.includes('/first')) setTimeout(() => socket.write(OK), 300);
    });
    const { port } = await proxy([app.port]);
    const first = 'POST /first HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n';
    // Malformed: the first is carried out, so 400 would be a lie.
    const answer = await exchangeRaw(port, [first, 50, get('/second', 'X-A : 1\r\n')]);
    expect(answer).toMatch(/^HTTP\/1.1 200 OK\r\n[^]*Connection: close\r\n\r\nhi$/);
    expect(app.received).not.toContain('second');
  });

  it('is what an application sends beyond its answer, which nobody else gets', async () => {
    for (const lateMs of [0, 20]) {
      const app = await raw((socket, received) => {
        const evil = 'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil';
        if (!received.endsWith('\r\n\r\n')) return;
        if (!received.includes('/first')) socket.write(OK);
        else if (lateMs === 0) socket.write(OK + evil);
        else {
          socket.write(OK);
          setTimeout(() => socket.write(evil), lateMs);
        }
      });
      const { port } = await proxy([app.port]);
      for (const path of ['/first', '/second', '/third']) {
        expect(await exchangeRaw(port, [get(path, close)])).toMatch(/\r\n\r\nhi$/);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  });

  it('gives a slow head and a slow body their time and no more', async () => {
    const app = await target();
    const { port } = await proxy([app.port], { readHeaderTimeoutMs: 300, readTimeoutMs: 500 });
    const slow = await Promise.all([
      exchangeRaw(port, ['GET / HTTP/1.1\r\nHo']),
      exchangeRaw(port, [post('Content-Length: 100\r\n', 'a')]),
    ]);
    expect(slow[0]).toMatch(/^HTTP\/1.1 408 /);
    expect(slow[1]).toMatch(/^HTTP\/1.1 408 |^$/);
  });

  it('of an application is 502, and half an answer is never a whole one', async () => {
    const answers: readonly (readonly [string, RegExp])[] = [
      ['', /^HTTP\/1.1 502 /],
      ['nonsense\r\n\r\n', /^HTTP\/1.1 502 /],
      [
        'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
        /^HTTP\/1.1 502 /,
      ],
      [`HTTP/1.1 200 OK\r\nX-A: ${'a'.repeat(40_000)}\r\n\r\n`, /^HTTP\/1.1 502 /],
      ['HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n', /^HTTP\/1.1 502 /],
      ['HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf', /^HTTP\/1.1 200 [^]*\r\n\r\nhalf$/],
      [
        'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n',
        /^HTTP\/1.1 200 [^]*4\r\nhalf\r\n$/,
      ],
    ];
    for (const [answer, expected] of answers) {
      const app = await raw((socket) => socket.end(answer));
      const { port } = await proxy([app.port]);
      expect(
        await exchangeRaw(port, ['POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n'], /\}\n$/),
      ).toMatch(expected);
    }
  });
});
