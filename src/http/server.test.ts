import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { KiteError } from '../errors.js';
import { createLogger } from '../observability/log.js';
import { Metrics } from '../observability/metrics.js';
import type { NodeStatus } from '../observability/node-status.js';
import type { NodeApi } from './node-api.js';
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
  let imported: { name: string; bytes: Buffer } | undefined;

  const node: NodeApi = {
    status: () => status,
    exportDatabase: (name) => {
      if (name !== DATABASE.name) return Promise.reject(new KiteError('ERR_HTTP_NOT_FOUND', `no ${name}`));
      return Promise.resolve({
        sizeBytes: CONTENT.length,
        async *chunks() {
          yield await Promise.resolve(CONTENT.subarray(0, 100_000));
          yield CONTENT.subarray(100_000);
        },
      });
    },
    importDatabase: (name, path) => {
      imported = { name, bytes: readFileSync(path) };
      return Promise.resolve({ position: '0000000000000001/8000000000000001', imported: true });
    },
    promote: (request) => {
      asked = request;
      return Promise.resolve();
    },
    handOff: (target) => Promise.resolve(target ?? 'whoever'),
    syncBackups: () => Promise.resolve(),
    prepareRewind: () => Promise.reject(new KiteError('ERR_RESTORE_NOTHING', 'no backup')),
    commitRewind: () => Promise.reject(new KiteError('ERR_REWIND_GONE', 'gone')),
    cancelRewind: () => undefined,
    halt: (request) => {
      asked = request;
      const position = { txid: 0x1fn, checksum: 0x8000000000000001n, epoch: 1n };
      return Promise.resolve({ position, remainingMs: 10_000 });
    },
    unhalt: (name, id) => {
      asked = { name, id };
      return Promise.resolve();
    },
  };
  const call = (path: string, init?: RequestInit): Promise<Response> =>
    fetch(`http://127.0.0.1:${server.port}${path}`, init);

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'kitefs-app-http-'));
    status = STATUS;
    imported = undefined;
    server = await AdminServer.listen({
      address: { host: '127.0.0.1', port: 0 },
      node,
      metrics: new Metrics(() => status),
      logger: createLogger({ format: 'json', level: 'silent' }),
      importDir: dir,
      maxImportBytes: 1 << 20,
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
    });
    await expect(again).rejects.toMatchObject({ code: 'ERR_DAEMON_PORT' });
  });
});
