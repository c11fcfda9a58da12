import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EventSource } from 'eventsource';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { KiteError } from '../errors.js';
import { createLogger } from '../observability/log.js';
import { Metrics } from '../observability/metrics.js';
import type { NodeStatus } from '../observability/node-status.js';
import type { PrimaryChange } from './events.js';
import type { NodeApi, NodeChange } from './node-api.js';
import { AdminServer } from './server.js';

const DATABASE = {
  name: 'tenants/42.db',
  position: '000000000000001a/8000000000000001',
  appliedPosition: '0000000000000019/8000000000000002',
  lagTransactions: 1,
  maxAgeMs: 250,
  sizeBytes: 8192,
  logFiles: 3,
  walBytes: 4152,
  check: undefined,
  error: undefined,
};

const STATUS: NodeStatus = {
  version: '1.2.3',
  nodeId: 'node1',
  clusterId: 'c',
  role: 'replica',
  ready: true,
  candidate: true,
  region: '',
  epoch: '7',
  primary: undefined,
  leaseRemainingMs: undefined,
  mount: { dir: '/m', driver: 'kernel' },
  dataDir: '/d',
  databases: [DATABASE],
  backups: [],
  otherFiles: [],
  members: [],
  events: [],
};

const CONTENT = Buffer.alloc(300_000, 'kite');

describe('the admin server', () => {
  let dir: string;
  let server: AdminServer;
  let status: NodeStatus;
  let asked: unknown;
  let primary: PrimaryChange;
  const listeners = new Set<(change: NodeChange) => void>();
  let imported: { name: string; bytes: Buffer } | undefined;

  const node: NodeApi = {
    status: () => status,
    promote: (request) => {
      asked = request;
      return Promise.resolve();
    },
    handOff: (target) => Promise.resolve(target ?? 'whoever'),
    primary: () => primary,
    watch: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    databases: {
      export: (name) => {
        if (name !== DATABASE.name) return Promise.reject(new KiteError('ERR_HTTP_NOT_FOUND', `no ${name}`));
        return Promise.resolve({
          sizeBytes: CONTENT.length,
          async *chunks() {
            yield await Promise.resolve(CONTENT.subarray(0, 100_000));
            yield CONTENT.subarray(100_000);
          },
        });
      },
      import: (name, path) => {
        imported = { name, bytes: readFileSync(path) };
        return Promise.resolve({ position: '0000000000000001/8000000000000001', imported: true });
      },
      sync: () => Promise.resolve(),
      prepareRewind: () => Promise.reject(new KiteError('ERR_RESTORE_NOTHING', 'no backup')),
      commitRewind: () => Promise.reject(new KiteError('ERR_REWIND_GONE', 'gone')),
      cancelRewind: () => undefined,
      repair: () => Promise.reject(new KiteError('ERR_REPAIR_SOUND', 'sound')),
      halt: (request) => {
        asked = request;
        const position = { txid: 0x1fn, checksum: 0x8000000000000001n, epoch: 1n };
        return Promise.resolve({ position, remainingMs: 10_000 });
      },
      unhalt: (name, id) => {
        asked = { name, id };
        return Promise.resolve();
      },
      waitFor: (name, entry, timeoutMs) => {
        asked = { name, entry, timeoutMs };
        return Promise.resolve(entry.txid < 100n);
      },
      seen: () => Promise.resolve({ epoch: 7n, txid: 25n }),
    },
  };
  const call = (path: string, init?: RequestInit): Promise<Response> =>
    fetch(`http://127.0.0.1:${server.port}${path}`, init);

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'kitefs-app-http-'));
    status = STATUS;
    imported = undefined;
    primary = { isPrimary: false, hostname: 'node2' };
    server = await AdminServer.listen({
      address: { host: '127.0.0.1', port: 0 },
      node,
      metrics: new Metrics(() => status),
      logger: createLogger({ format: 'json', level: 'silent' }),
      importDir: dir,
      maxImportBytes: 1 << 20,
      maxLagMs: 10_000,
    });
  });
  afterEach(async () => {
    await server.close();
    rmSync(dir, { recursive: true });
  });

  it('shows the status, one database by its name, and whether the node is ready', async () => {
    expect(await (await call('/status')).json()).toEqual(JSON.parse(JSON.stringify(STATUS)));
    expect(await (await call('/db/tenants%2F42.db')).json()).toMatchObject({ name: DATABASE.name });
    expect((await call('/db/other')).status).toBe(404);
    expect((await call('/health')).status).toBe(200);
    expect((await call('/ready')).status).toBe(200);
    status = { ...STATUS, ready: false };
    expect((await call('/ready')).status).toBe(503);
  });

  it('says of a database what an application asks, once it is where a token says', async () => {
    expect(await (await call('/db/tenants%2F42.db')).json()).toMatchObject({
      role: 'replica',
      isPrimary: false,
      primary: { hostname: 'node2' },
      token: 'tenants%2F42.db=7:19',
      maxAgeMs: 250,
    });
    const at = (token: string) => call(`/db/tenants%2F42.db?wait=50&token=${encodeURIComponent(token)}`);
    expect((await at('tenants%2F42.db=7:19&b=9:1')).status).toBe(200);
    expect(asked).toEqual({ name: 'tenants/42.db', entry: { epoch: 7n, txid: 25n }, timeoutMs: 50 });
    const late = await at('tenants%2F42.db=7:64');
    expect([late.status, ((await late.json()) as { error: { code: string } }).error.code]).toEqual([
      504,
      'ERR_HTTP_NOT_REACHED',
    ]);
    expect((await at('nonsense')).status).toBe(400);
  });

  it('answers as LiteFS does to /info and /litefs/health', async () => {
    expect(await (await call('/info')).json()).toEqual({
      clusterID: 'c',
      isPrimary: false,
      candidate: true,
      path: '/d',
      primary: { hostname: 'node2' },
    });
    expect(await (await call('/litefs/health')).text()).toBe('OK\n');
    status = { ...STATUS, databases: [{ ...DATABASE, maxAgeMs: 10_001 }] };
    expect((await call('/litefs/health')).status).toBe(503);
    status = { ...STATUS, databases: [{ ...DATABASE, maxAgeMs: undefined }] };
    expect((await call('/litefs/health')).status).toBe(503);
  });

  describe('/events', () => {
    const tell = (change: NodeChange): void => {
      for (const listener of listeners) listener(change);
    };
    const transaction = (name: string, n: number): NodeChange => ({
      kind: 'transaction',
      name,
      txID: String(n).padStart(16, '0'),
      postApplyChecksum: '83b05248774ce767',
      pageSize: 4096,
      commit: 2,
    });
    const open = async (path: string, headers: Record<string, string> = {}) => {
      const end = new AbortController();
      const answer = await call(path, { headers, signal: end.signal });
      const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
      let text = '';
      /** Reads until the text has `mark`. */
      const until = async (mark: string): Promise<string> => {
        while (!text.includes(mark)) text += (await reader.read()).value ?? '';
        return text;
      };
      return { answer, until, end: () => end.abort() };
    };

    it('are LiteFS’s, a line each', async () => {
      const events = await open('/events');
      await events.until('init');
      tell(transaction('app.db', 27));
      tell({ kind: 'primary', ...primary });
      tell({ kind: 'primary', isPrimary: true, hostname: 'node1' });
      tell({ kind: 'primary', isPrimary: true, hostname: 'node1' });
      tell({ kind: 'primary', isPrimary: false });
      const lines = (await events.until('{"isPrimary":false}}')).trim().split('\n');
      expect(events.answer.headers.get('content-type')).toBe('application/x-ndjson');
      expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual([
        { type: 'init', data: { isPrimary: false, hostname: 'node2' } },
        {
          type: 'tx',
          db: 'app.db',
          data: {
            txID: '0000000000000027',
            postApplyChecksum: '83b05248774ce767',
            pageSize: 4096,
            commit: 2,
            timestamp: expect.stringMatching(/^\d{4}-.*Z$/),
          },
        },
        { type: 'primaryChange', data: { isPrimary: true, hostname: 'node1' } },
        { type: 'primaryChange', data: { isPrimary: false } },
      ]);
      events.end();
      await vi.waitFor(() => expect(listeners.size).toBe(0));
    });

    it('are server-sent events for who asks for them, of one database if wanted', async () => {
      const source = new EventSource(`http://127.0.0.1:${server.port}/events?db=b.db`);
      const seen: string[] = [];
      source.addEventListener('init', ({ data }) => seen.push(data));
      source.addEventListener('tx', ({ data }) => seen.push((JSON.parse(data) as { db: string }).db));
      await vi.waitFor(() => expect(seen).toHaveLength(1));
      tell(transaction('app.db', 1));
      tell(transaction('b.db', 1));
      await vi.waitFor(() => expect(seen.slice(1)).toEqual(['b.db']));
      source.close();
    });

    it('cost little for a client that does not read, which gets the newest in the end', async () => {
      const socket = connect(server.port, '127.0.0.1');
      socket.write('GET /events HTTP/1.1\r\nHost: x\r\n\r\n');
      await once(socket, 'readable');
      for (let i = 1; i <= 100_000; i += 1) tell(transaction(`db${i % 10}`, i));
      // 100 000 events are 18 MB of text.
      let text = '';
      socket.on('data', (chunk: Buffer) => (text += chunk.toString()));
      await vi.waitFor(() => expect(text).toContain('0000000000100000'));
      expect(text.split('"tx"').length).toBeLessThan(20_000);
      socket.destroy();
    });

    it('end for a client that is behind in more databases than are kept for it', async () => {
      const socket = connect(server.port, '127.0.0.1');
      socket.write('GET /events HTTP/1.1\r\nHost: x\r\n\r\n');
      await once(socket, 'readable');
      for (let i = 1; i <= 100_000; i += 1) tell(transaction(`db${i % 1000}`, i));
      expect(listeners.size).toBe(1);
      for (let i = 1; i <= 100; i += 1) tell(transaction(`other${i}`, i));
      await vi.waitFor(() => expect(listeners.size).toBe(0));
      socket.destroy();
    });

    it('are for 256 clients at a time; the next gets 503 and may try again', async () => {
      const all = await Promise.all(Array.from({ length: 256 }, () => open('/events')));
      const refused = await call('/events');
      expect(refused.status).toBe(503);
      expect(await refused.json()).toMatchObject({ error: { code: 'ERR_HTTP_EVENT_STREAMS' } });
      expect((await call('/info')).status).toBe(200);
      all.pop()!.end();
      await vi.waitFor(async () => {
        const next = await open('/events');
        expect(next.answer.status).toBe(200);
        next.end();
      });
      for (const one of all) one.end();
      await vi.waitFor(() => expect(listeners.size).toBe(0));
    });
  });

  it('gives metrics for Prometheus that follow the status', async () => {
    const text = await (await call('/metrics')).text();
    expect(text).toContain('kitefs_is_primary 0\n');
    expect(text).toContain('kitefs_epoch 7\n');
    expect(text).toContain('kitefs_db_txid{db="tenants/42.db"} 26\n');
    expect(text).toContain('kitefs_db_lag_seconds{db="tenants/42.db"} 0.25\n');
    status = { ...STATUS, databases: [] };
    expect(await (await call('/metrics')).text()).not.toContain('kitefs_db_txid{');
  });

  it('exports a database as it is', async () => {
    const response = await call('/export?name=tenants%2F42.db');
    expect(Buffer.from(await response.arrayBuffer()).equals(CONTENT)).toBe(true);
    const missing = await call('/export?name=other');
    expect(missing.status).toBe(404);
    expect(await missing.json()).toMatchObject({ error: { code: 'ERR_HTTP_NOT_FOUND' } });
  });

  it('imports a file and leaves nothing behind', async () => {
    const response = await call('/import?name=a.db', { method: 'POST', body: CONTENT });
    expect(await response.json()).toEqual({
      name: 'a.db',
      position: '0000000000000001/8000000000000001',
      imported: true,
    });
    expect(imported?.name).toBe('a.db');
    expect(imported?.bytes.equals(CONTENT)).toBe(true);
    expect(readdirSync(dir)).toEqual([]);
  });

  it('refuses an import that is too large, announced or not, without asking the node', async () => {
    const large = Buffer.alloc((1 << 20) + 1);
    const announced = await call('/import?name=a.db', { method: 'POST', body: large });
    expect(announced.status).toBe(413);
    async function* pieces() {
      for (let at = 0; at < large.length; at += 65_536)
        yield await Promise.resolve(large.subarray(at, at + 65_536));
    }
    const streamed = await call('/import?name=a.db', {
      method: 'POST',
      body: pieces(),
      duplex: 'half',
    });
    expect(streamed.status).toBe(413);
    expect(imported).toBeUndefined();
    expect(readdirSync(dir)).toEqual([]);
  });

  it('refuses what it does not know, a missing name, and a web page that posts', async () => {
    expect((await call('/nothing')).status).toBe(404);
    expect((await call('/status', { method: 'DELETE' })).status).toBe(404);
    expect((await call('/import', { method: 'POST', body: 'x' })).status).toBe(400);
    const fromPage = await call('/import?name=a', {
      method: 'POST',
      body: 'x',
      headers: { origin: 'http://evil' },
    });
    expect(fromPage.status).toBe(400);
    expect((await call('/db/%E0%A4%A')).status).toBe(400);
  });

  it('passes on who is to be primary, and refuses a request that it cannot read', async () => {
    const promoted = await call('/promote?wait=700&accept-loss=true', { method: 'POST' });
    expect(await promoted.json()).toEqual({ nodeId: STATUS.nodeId, epoch: STATUS.epoch });
    expect(asked).toEqual({ waitMs: 700, acceptLoss: true });
    const handed = await call('/handoff?nodeID=n2', { method: 'POST' });
    expect(await handed.json()).toEqual({ primary: 'n2' });
    const halted = await call('/halt?name=a.db&id=12&renew=true', { method: 'POST' });
    expect(asked).toEqual({ name: 'a.db', id: 12, waitMs: 5000, renew: true });
    expect(await halted.json()).toEqual({
      id: 12,
      pos: { txid: '000000000000001f', postApplyChecksum: '8000000000000001' },
      expires: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
    });
    expect((await call('/halt?name=a.db&id=12', { method: 'DELETE' })).status).toBe(200);
    expect(asked).toEqual({ name: 'a.db', id: 12 });
    expect((await call('/halt?name=a.db&id=1e99', { method: 'POST' })).status).toBe(400);
    expect((await call('/promote?wait=soon', { method: 'POST' })).status).toBe(400);
    expect((await call('/promote')).status).toBe(404);
  });

  it('serves admin actions only to who shows the token, once there is one', async () => {
    const guarded = await AdminServer.listen({
      address: { host: '127.0.0.1', port: 0 },
      node,
      metrics: new Metrics(() => status),
      logger: createLogger({ format: 'json', level: 'silent' }),
      importDir: dir,
      maxImportBytes: 1,
      maxLagMs: 10_000,
      token: '0123456789abcdef',
    });
    const ask = async (authorization?: string): Promise<number> => {
      const headers = authorization === undefined ? {} : { authorization };
      const url = `http://127.0.0.1:${guarded.port}`;
      const posts = [`${url}/promote`, `${url}/halt?name=a&id=1`, `${url}/handoff`, `${url}/import?name=a`];
      const answers = await Promise.all([
        ...posts.map((post) => fetch(post, { method: 'POST', headers })),
        fetch(`${url}/export?name=tenants%2F42.db`, { headers }),
      ]);
      const [first = 0, ...others] = answers.map((answer) => answer.status);
      expect(others).toEqual(others.map(() => first));
      return first;
    };
    expect(await ask()).toBe(401);
    expect(await ask('Bearer 0123456789abcdeg')).toBe(401);
    expect(await ask('Bearer 0123456789abcdef')).toBe(200);
    await guarded.close();
  });

  it('says that its port is in use', async () => {
    const again = AdminServer.listen({
      address: { host: '127.0.0.1', port: server.port },
      node,
      metrics: new Metrics(() => status),
      logger: createLogger({ format: 'json', level: 'silent' }),
      importDir: dir,
      maxImportBytes: 1,
      maxLagMs: 10_000,
    });
    await expect(again).rejects.toMatchObject({ code: 'ERR_DAEMON_PORT' });
  });
});
