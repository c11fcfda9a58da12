import { once } from 'node:events';
import { request as httpRequest } from 'node:http';
import { connect, type Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import { exchangeRaw, RawTarget, scene, StubView, type TestProxy } from '../../test/helpers/proxy.js';
import { classify, matchesPath } from './classify.js';
import type { ProxySettings } from './settings.js';

const { undo, raw, proxy } = scene();

const answerOf = (text: string, more = ''): string =>
  `HTTP/1.1 200 OK\r\nContent-Length: ${text.length}\r\n${more}\r\n${text}`;

async function app(name: string, more = ''): Promise<RawTarget> {
  return await raw((socket, all) => {
    const last = [...all.matchAll(/(GET|POST|PUT|HEAD) (\S+) HTTP\/1.1\r\n/g)].at(-1);
    if (!last) return;
    const [, method, path] = last;
    const received = all.slice(last.index);
    const bodyAt = received.indexOf('\r\n\r\n') + 4;
    const length = Number(/content-length: (\d+)/i.exec(received)?.[1] ?? 0);
    const isWhole = /transfer-encoding/i.test(received)
      ? received.endsWith('\r\n0\r\n\r\n')
      : bodyAt > 3 && received.length - bodyAt >= length;
    if (isWhole) socket.write(answerOf(`${name} ${method} ${path}`, more));
  });
}

/** The proxies of a primary and of its replica. */
async function pair(
  primaryApp: number,
  replicaApp: number,
  change: Partial<ProxySettings> = {},
): Promise<{ primary: TestProxy; replica: TestProxy }> {
  const primary = await proxy([primaryApp], change, new StubView({ nodeId: 'b', epoch: 7n }));
  const replica = await proxy([replicaApp], change, new StubView({ nodeId: 'a', epoch: 7n }));
  replica.view.follow(primary.port);
  return { primary, replica };
}

interface Answer {
  readonly status: number;
  readonly headers: Record<string, unknown>;
  readonly body: string;
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

function ask(
  port: number,
  method = 'GET',
  path = '/',
  options: { body?: string | Buffer; headers?: Record<string, string> } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = httpRequest({
      port,
      host: '127.0.0.1',
      method,
      path,
      headers: options.headers,
      agent: false,
    });
    sent.once('response', (response) => {
      let body = '';
      response.on('data', (chunk) => (body += String(chunk)));
      response.once('end', () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body }),
      );
      response.once('error', reject);
    });
    sent.once('error', reject);
    sent.end(options.body);
  });
}

describe('a request', () => {
  type Rules = Parameters<typeof classify>[1];
  const none: Rules = { routes: [], passthrough: [], alwaysForward: [], reads: [] };
  const pattern = (path: string, ...methods: string[]) => ({
    path,
    methods: methods.length > 0 ? methods : undefined,
  });
  const route = (path: string, more: object) => ({
    ...pattern(path),
    as: undefined,
    withoutPrimary: undefined,
    upgrade: undefined,
    maxStalenessMs: undefined,
    readWaitMs: undefined,
    ...more,
  });
  const settings: Rules = {
    routes: [
      route('/ws', { upgrade: 'primary' }),
      route('/search', { as: 'read' }),
      route('/x', { as: 'write' }),
    ],
    passthrough: [pattern('*.png')],
    alwaysForward: [pattern('/admin/*')],
    reads: [pattern('/graphql', 'POST')],
  };
  it.each([
    [none, 'GET', '/', 'read'],
    [none, 'HEAD', '/', 'read'],
    [none, 'OPTIONS', '*', 'read'],
    [none, 'POST', '/', 'write'],
    [none, 'PROPFIND', '/', 'write'],
    [settings, 'POST', '/search', 'read'],
    [settings, 'GET', '/x', 'write'],
    [settings, 'POST', '/a/b.png', 'passthrough'],
    [settings, 'GET', '/admin/users', 'write'],
    [settings, 'POST', '/graphql', 'read'],
    [settings, 'PUT', '/graphql', 'write'],
    [settings, 'GET', '/ws', 'read'],
  ] as const)('%# %s %s is a %s', (given, method, path, kind) => {
    expect(classify({ method, path, upgrade: false }, given).kind).toBe(kind);
  });

  it('for an upgrade goes where its route says', () => {
    const at = (path: string) => classify({ method: 'GET', path, upgrade: true }, settings);
    expect(at('/ws').kind).toBe('write');
    expect(at('/other').kind).toBe('read');
  });

  it('matches patterns as LiteFS does: all of the path, * for anything', () => {
    expect(matchesPath('/a/*/c', '/a/b/b/c')).toBe(true);
    expect(matchesPath('/a/*/c', '/a/c')).toBe(false);
    expect(matchesPath('*', '')).toBe(true);
    expect(matchesPath('/a', '/a/')).toBe(false);
    expect(matchesPath('a*a', 'a')).toBe(false);
    const long = 'a'.repeat(50_000);
    expect(matchesPath(`${'*a'.repeat(50)}b`, long)).toBe(false);
  });
});

describe('a write on a replica', () => {
  it('goes to the primary, with its body, and comes back; a read does not', async () => {
    const [there, here] = [await app('there'), await app('here')];
    const { replica, primary } = await pair(there.port, here.port);
    expect((await ask(replica.port)).body).toBe('here GET /');
    const big = 'x'.repeat(1 << 20);
    for (const body of ['small', big]) {
      const answer = await ask(replica.port, 'POST', '/w?a=%2f', { body });
      expect(answer.body).toBe('there POST /w?a=%2f');
    }
    expect(there.received).toContain('X-Forwarded-For: 127.0.0.1\r\n');
    expect(there.received).toContain('Kitefs-Via: a, b\r\n');
    expect(there.received).not.toMatch(/kitefs-forwarded/i);
    expect(replica.counted).toEqual(['read local 200', 'write primary 200', 'write primary 200']);
    expect(primary.counted).toEqual(['write local 200', 'write local 200']);
  });

  it('is refused when its sender does not know the secret, before anything is carried out', async () => {
    const [there, here] = [await app('there'), await app('here')];
    const { primary, replica } = await pair(there.port, here.port);
    const stranger = await proxy([here.port], { secret: 'some other secret' }, new StubView({ nodeId: 'x' }));
    stranger.view.follow(primary.port);
    expect((await ask(stranger.port, 'POST', '/', { body: 'x' })).status).toBe(403);
    expect(there.received).toBe('');
    expect((await ask(replica.port, 'POST', '/', { body: 'x' })).status).toBe(200);
  });

  it('waits for a primary, then goes there; 503 when none comes', async () => {
    const [there, here] = [await app('there'), await app('here')];
    const { replica, primary } = await pair(there.port, here.port, { primaryWaitMs: 300 });
    replica.view.follow(undefined);
    const late = ask(replica.port, 'POST', '/late', { body: 'x' });
    await new Promise((resolve) => setTimeout(resolve, 100));
    replica.view.follow(primary.port);
    expect((await late).body).toBe('there POST /late');
    replica.view.follow(undefined);
    const refused = await ask(replica.port, 'POST', '/', { body: 'x' });
    expect(refused.status).toBe(503);
    expect(refused.headers).toMatchObject({ 'retry-after': '1', 'kitefs-error': 'ERR_PROXY_NO_PRIMARY' });
    // Reads go on.
    expect((await ask(replica.port)).body).toBe('here GET /');
    expect(replica.view.listeners).toBe(1);
  });

  it('is held while the primary hands over, and sent to the new one, whole', async () => {
    const [there, here] = [await app('there'), await app('here')];
    const { replica, primary } = await pair(there.port, here.port);
    const body = 'y'.repeat(50_000);
    primary.view.set({ role: 'draining' });
    const held = [
      ask(replica.port, 'POST', '/h', { body }),
      ask(primary.port, 'POST', '/h', { body }),
      // Larger than what is kept: its body is not asked for before it is known who takes it.
      ask(replica.port, 'POST', '/big', { body: body.repeat(20) }),
    ];
    await new Promise((resolve) => setTimeout(resolve, 100));
    replica.view.set({ role: 'primary', writableUntilMs: Infinity, primary: undefined, epoch: 8n });
    primary.view.set({
      role: 'replica',
      writableUntilMs: 0,
      epoch: 8n,
      primary: {
        nodeId: 'a',
        proxyAddress: `127.0.0.1:${replica.port}`,
        instance: undefined,
        region: '',
        hostname: 'a',
      },
    });
    const answers = await Promise.all(held);
    expect(answers.map((one) => one.body)).toEqual(['here POST /h', 'here POST /h', 'here POST /big']);
    expect(there.received).toBe('');
    expect(here.received.match(/y/g)).toHaveLength(22 * 50_000);
  });

  it('goes no further from a node that is not the primary of that epoch', async () => {
    const [there, here] = [await app('there'), await app('here')];
    const { replica, primary } = await pair(there.port, here.port, { primaryWaitMs: 300 });
    // It believes to be the primary of an epoch that is over.
    replica.view.set({ epoch: 9n });
    const answer = await ask(replica.port, 'POST', '/', { body: 'x' });
    expect(answer.status).toBe(503);
    expect(there.received).toBe('');
    expect(primary.counted.every((line) => line === 'write proxy 421')).toBe(true);
  });

  it('is not sent twice when it may have been carried out, unless that changes nothing', async () => {
    let broken = 0;
    const breaking = await raw((socket, received) => {
      if (!received.includes('\r\n\r\n')) return;
      broken++;
      socket.destroy();
    });
    const here = await app('here');
    const { replica, primary } = await pair(breaking.port, here.port, { primaryWaitMs: 1000 });
    // The primary dies with the request in its hands.
    const dying = await raw((socket, received) => {
      if (!received.includes('\r\n\r\n')) return;
      broken++;
      socket.destroy();
      replica.view.follow(next.port);
    });
    const next = await proxy([(await app('next')).port], {}, new StubView({ nodeId: 'b', epoch: 7n }));
    const once1 = async (method: string, headers = {}): Promise<Answer> => {
      broken = 0;
      replica.view.follow(dying.port);
      return await ask(replica.port, method, '/', { body: 'x', headers });
    };
    expect((await once1('POST')).status).toBe(502);
    expect(broken).toBe(1);
    expect((await once1('PUT')).body).toBe('next PUT /');
    expect((await once1('POST', { 'idempotency-key': '1' })).body).toBe('next POST /');
    // An application that breaks off is not asked again: it has ended that request by itself.
    broken = 0;
    replica.view.follow(primary.port);
    const answer = await ask(replica.port, 'POST', '/', { body: 'x' });
    expect([answer.status, answer.headers['kitefs-error'], broken]).toEqual([502, 'ERR_PROXY_TARGET', 1]);
  });

  it('is one when the application says so, as far as its body is kept', async () => {
    const there = await app('there');
    const here = await app('here', 'Kitefs-Forward: primary\r\n');
    const { replica, primary } = await pair(there.port, here.port, {
      reads: [{ path: '/r', methods: undefined }],
    });
    expect((await ask(replica.port, 'POST', '/r', { body: 'kept' })).body).toBe('there POST /r');
    expect(there.received).toContain('kept');
    const large = await ask(replica.port, 'POST', '/r', { body: 'x'.repeat(100_000) });
    expect([large.status, large.headers['kitefs-error']]).toEqual([413, 'ERR_PROXY_TOO_LARGE']);
    // LiteFS's applications.
    const fly = await app('fly', 'Fly-Replay: instance=xyz\r\n');
    const other = await proxy([fly.port], {}, new StubView({ nodeId: 'c', epoch: 7n }));
    other.view.follow(primary.port);
    expect((await ask(other.port, 'GET', '/f')).body).toBe('there GET /f');
  });

  it('is replayed by Fly.io, where that can', async () => {
    const [there, here] = [await app('there'), await app('here')];
    for (const [replay, expected] of [
      ['instance', 'instance=m1'],
      ['region', 'region=fra'],
    ] as const) {
      const { replica } = await pair(there.port, here.port, { replay, replayMaxBodyBytes: 10 });
      replica.view.set({ primary: { ...replica.view.now.primary!, instance: 'm1' } });
      const replayed = await ask(replica.port, 'POST', '/', { body: 'small' });
      expect([replayed.status, replayed.headers['fly-replay'], replayed.body]).toEqual([409, expected, '']);
      // Too large for Fly.io, and one that it has replayed already: these go by ourselves.
      expect((await ask(replica.port, 'POST', '/', { body: 'larger than 10' })).body).toBe('there POST /');
      const again = { body: 'x', headers: { 'fly-replay-src': 'instance=m0' } };
      expect((await ask(replica.port, 'POST', '/', again)).body).toBe('there POST /');
    }
  });
});

describe('the application', () => {
  it('that is not there yet is waited for; of several those that are there answer', async () => {
    const first = await app('first');
    const { port: gone } = first;
    first.stop();
    const waiting = await proxy([gone], { targetWaitMs: 300 });
    const refused = await ask(waiting.port);
    expect([refused.status, refused.headers['kitefs-error']]).toEqual([503, 'ERR_PROXY_TARGET_DOWN']);
    const second = await app('second');
    const both = await proxy([gone, second.port]);
    const answers = await Promise.all([1, 2, 3, 4].map(async () => (await ask(both.port)).body));
    expect(answers).toEqual(Array.from({ length: 4 }, () => 'second GET /'));
    expect(both.server.state.targetsUp).toBe(1);
    const late = ask((await proxy([gone], { targetWaitMs: 5000 })).port);
    const server = await RawTarget.start((socket) => socket.write(answerOf('late')), gone);
    undo.push(() => server.stop());
    expect((await late).body).toBe('late');
  });

  it('may have closed a connection that was kept: a read meets that unseen', async () => {
    // Answers one request per connection, says nothing of that, and closes when the next one comes.
    const app1 = await raw((socket, received) => {
      if ((received.match(/GET/g) ?? []).length > 1) socket.destroy();
      else if (received.endsWith('\r\n\r\n')) socket.write(answerOf('one'));
    });
    const { port } = await proxy([app1.port]);
    for (let i = 0; i < 5; i++) expect((await ask(port)).status).toBe(200);
    expect(app1.sockets.length).toBeGreaterThan(3);
  });

  it('is spared requests without a primary where that is configured, with a page for people', async () => {
    const here = await app('here');
    const strict = {
      path: '/money/*',
      methods: undefined,
      as: undefined,
      withoutPrimary: 'refuse',
      upgrade: undefined,
      maxStalenessMs: undefined,
      readWaitMs: undefined,
    } as const;
    const { port, view } = await proxy([here.port], {
      routes: [strict],
      maintenancePage: '<h1>soon</h1>',
      primaryWaitMs: 50,
    });
    view.follow(undefined);
    expect((await ask(port)).body).toBe('here GET /');
    const refused = await ask(port, 'GET', '/money/1');
    expect([refused.status, refused.body]).toEqual([503, '<h1>soon</h1>']);
    expect(refused.headers).toMatchObject({
      'content-type': 'text/html; charset=utf-8',
      'cache-control': 'no-store',
    });
  });

  it('finishes what runs when the proxy ends, and is asked nothing new', async () => {
    let answer: (() => void) | undefined;
    const slow = await raw((socket) => {
      answer = () => socket.write(answerOf('slow'));
    });
    const { port, server } = await proxy([slow.port]);
    const running = ask(port);
    await until(() => answer !== undefined);
    const closed = server.close(5000);
    await expect(ask(port)).rejects.toThrow('ECONNREFUSED');
    answer?.();
    expect((await running).headers).toMatchObject({ connection: 'close' });
    await closed;
  });
});

describe('an application that learns late that it is at the primary', () => {
  const wants = 'HTTP/1.1 409 Conflict\r\nKitefs-Forward: primary\r\nContent-Length: 2\r\n\r\nno';
  /** Asks for the primary so many times, and is one then. */
  const late = async (times: number): Promise<{ readonly port: number; readonly bodies: string[] }> => {
    const bodies: string[] = [];
    const { port } = await raw((socket, all) => {
      const received = all.slice(all.lastIndexOf('POST /'));
      const [head = '', body = ''] = received.split('\r\n\r\n');
      if (!head.startsWith('POST') || body.length < Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0))
        return;
      bodies.push(body);
      socket.write(bodies.length <= times ? wants : answerOf('written'));
    });
    return { port, bodies };
  };

  it('is asked again until it knows, with the whole request each time', async () => {
    const there = await late(2);
    const { primary } = await pair(there.port, (await app('here')).port);
    const answer = await ask(primary.port, 'POST', '/', { body: 'the whole body' });
    expect([answer.status, answer.body]).toEqual([200, 'written']);
    expect(there.bodies).toEqual(Array.from({ length: 3 }, () => 'the whole body'));
    expect(primary.counted).toEqual(['write local 200']);
  });

  it('is asked again by its own proxy when another node has sent the request', async () => {
    const there = await late(1);
    const { primary, replica } = await pair(there.port, (await app('here')).port);
    expect((await ask(replica.port, 'POST', '/', { body: 'x' })).body).toBe('written');
    expect([primary.counted, replica.counted]).toEqual([['write local 200'], ['write primary 200']]);
    expect(there.bodies).toEqual(['x', 'x']);
  });

  it('has its time from its first refusal on, however long the request has waited before', async () => {
    const there = await late(1);
    const { primary } = await pair(there.port, (await app('here')).port);
    primary.view.set({ role: 'draining' });
    const answer = ask(primary.port, 'POST', '/', { body: 'x' });
    await new Promise((resolve) => setTimeout(resolve, 1100));
    primary.view.set({ role: 'primary', epoch: 8n });
    expect((await answer).body).toBe('written');
  });

  it('and never learns it, or cannot be asked twice, has the last word', async () => {
    const never = await late(Infinity);
    const { primary } = await pair(never.port, (await app('here')).port);
    const answer = await ask(primary.port, 'POST', '/', { body: 'x' });
    expect([answer.status, answer.body, answer.headers['kitefs-forward']]).toEqual([409, 'no', undefined]);
    expect(never.bodies.length).toBeGreaterThan(2);
    never.bodies.length = 0;
    // Larger than what is kept.
    const large = await ask(primary.port, 'POST', '/', { body: 'y'.repeat(100_000) });
    expect([large.status, never.bodies.length]).toEqual([409, 1]);
  });

  it('is left for another node when the role has gone meanwhile', async () => {
    const [there, here] = [await late(Infinity), await app('here')];
    const { primary, replica } = await pair(there.port, here.port);
    const answer = ask(primary.port, 'POST', '/', { body: 'x' });
    await until(() => there.bodies.length > 0);
    replica.view.set({ role: 'primary', writableUntilMs: Infinity, primary: undefined, epoch: 8n });
    primary.view.follow(replica.port, { epoch: 8n });
    expect((await answer).body).toBe('here POST /');
  });
});

describe('an upgraded connection', () => {
  const upgrade = (path: string, more = ''): string =>
    `GET ${path} HTTP/1.1\r\nHost: app\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n${more}\r\n`;
  const echo = (name: string): Promise<RawTarget> =>
    raw((socket, received) => {
      if (received.endsWith('\r\n\r\n'))
        socket.write(
          `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s\r\n\r\n${name}:`,
        );
      else socket.write(`<${received.slice(received.lastIndexOf('\r\n\r\n') + 4)}>`, 'latin1');
    });
  const open = async (
    port: number,
    path: string,
  ): Promise<{ socket: Socket; text: () => string; closed: Promise<unknown> }> => {
    const socket = connect(port, '127.0.0.1');
    let text = '';
    socket.on('data', (chunk) => (text += chunk.toString('latin1')));
    socket.on('error', () => undefined);
    const closed = once(socket, 'close');
    socket.write(upgrade(path));
    await until(() => /\r\n\r\n\w+:/.test(text));
    socket.write('\xff\0hi', 'latin1');
    await until(() => text.endsWith('>'));
    return { socket, text: () => text, closed };
  };
  const routes = [
    {
      path: '/primary',
      methods: undefined,
      as: undefined,
      withoutPrimary: undefined,
      upgrade: 'primary',
      maxStalenessMs: undefined,
      readWaitMs: undefined,
    } as const,
  ];

  it('is here, or at the primary by route; bytes pass as they are', async () => {
    const [there, here] = [await echo('there'), await echo('here')];
    const { replica } = await pair(there.port, here.port, { routes });
    const local = await open(replica.port, '/');
    expect(local.text()).toMatch(
      /^HTTP\/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhere:<\xff\0hi>$/,
    );
    expect(here.received).toContain('Connection: Upgrade\r\nUpgrade: websocket\r\n');
    const remote = await open(replica.port, '/primary');
    expect(remote.text()).toMatch(/there:<\xff\0hi>$/);
    expect(there.received).toContain('Kitefs-Via: a, b\r\n');
    const gone = once(here.sockets[0]!, 'close');
    local.socket.destroy();
    await gone;
    there.sockets[0]!.end();
    await remote.closed;
    await until(() => replica.server.state.upgrades === 0);
  });

  it('at the primary ends some time after the primary has changed; one here does not', async () => {
    const [there, here] = [await echo('there'), await echo('here')];
    const { replica } = await pair(there.port, here.port, { routes, drainMs: 100 });
    const [local, remote] = [await open(replica.port, '/'), await open(replica.port, '/primary')];
    replica.view.follow(undefined);
    replica.view.set({ role: 'primary', primary: undefined, writableUntilMs: Infinity });
    await remote.closed;
    await until(() => replica.server.state.upgrades === 1);
    const ended = replica.server.close(100);
    await Promise.all([local.closed, ended]);
  });

  it('that is refused is an answer like any other, and the end of the connection; h2c is none', async () => {
    const refusing = await app('no');
    const { port } = await proxy([refusing.port]);
    const refused = await exchangeRaw(port, [upgrade('/'), 'GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n']);
    expect(refused).toMatch(/^HTTP\/1.1 200 OK\r\n[^]*Connection: close\r\n\r\nno GET \/$/);
    expect(refusing.received).not.toContain('smuggled');
    refusing.received = '';
    await exchangeRaw(port, [upgrade('/').replace('websocket', 'h2c')]);
    expect(refusing.received).not.toMatch(/upgrade/i);
    // An application that switches all the same.
    const eager = await echo('eager');
    const other = await proxy([eager.port]);
    const h2c = await exchangeRaw(other.port, [upgrade('/').replace('websocket', 'h2c')]);
    expect(h2c).toMatch(/^HTTP\/1.1 502 /);
  });
});

it('proxies that lead to each other say so', async () => {
  const view = new StubView();
  const first = await proxy([(await app('end')).port], {}, view);
  const second = await proxy([first.port], {}, new StubView({ nodeId: 'z' }));
  expect((await ask(second.port)).body).toBe('end GET /');
  const around = await proxy([second.port], {}, view);
  const answer = await ask(around.port);
  expect(answer.status).toBe(508);
  expect(JSON.parse(answer.body)).toMatchObject({ error: { code: 'ERR_PROXY_LOOP' } });
});
