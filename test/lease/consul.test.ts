import { once } from 'node:events';
import { createServer } from 'node:http';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { openConsulLease, type ConsulLeaseOptions } from '../../src/lease/consul.js';
import type { LeaseAdapter, LeaseRecord, Member } from '../../src/lease/types.js';
import { run, waitFor } from '../helpers/cluster.js';
import { TestConsul } from '../helpers/consul.js';

/** The adapter on a real Consul: compare-and-set, watching, members, what is refused, and an agent that hangs or dies. */

const LIMIT_MS = 5000;

const adapters: LeaseAdapter[] = [];
let keys = 0;

function open(options: Partial<ConsulLeaseOptions> & { url: string }): LeaseAdapter & { key: string } {
  const key = options.key ?? `app${++keys}/primary`;
  const adapter = openConsulLease({ key, ...options });
  adapters.push(adapter);
  return Object.assign(adapter, { key });
}

afterEach(async () => {
  await Promise.all(adapters.splice(0).map((adapter) => adapter.close()));
});

const record = (heartbeat: bigint): LeaseRecord => ({
  clusterId: 'c',
  epoch: 4n,
  holder: { nodeId: 'a', incarnation: 'a-1', advertiseUrl: 'http://a', peerAddress: 'a:1' },
  heartbeat,
  ttlMs: 5000,
  positions: { 'ü/b.db': '4:18446744073709551615' },
  syncSet: ['a'],
  handoffTo: undefined,
});

const member = (nodeId: string): Member => ({
  nodeId,
  clusterId: 'c',
  incarnation: '1',
  advertiseUrl: '',
  peerAddress: '',
  candidate: true,
  region: '',
  priority: 0,
  epoch: 3n,
  seen: 1n,
  positions: {},
});

const failure = async (promise: Promise<unknown>): Promise<{ code: string; message: string }> => {
  try {
    await promise;
  } catch (error) {
    return { code: (error as { code: string }).code, message: (error as Error).message };
  }
  throw new Error('no error');
};

describe('on one agent', () => {
  let consul: TestConsul;

  beforeAll(async () => {
    consul = await TestConsul.start();
  });
  afterAll(() => consul.stop());

  it('changes the record only against the version that was read, also after it was deleted and made again', async () => {
    const adapter = open({ url: consul.url });
    expect(await adapter.read(LIMIT_MS)).toEqual({ record: undefined, version: '0' });
    const first = await adapter.compareAndSet('0', record(1n), LIMIT_MS);
    expect(await adapter.compareAndSet('0', record(1n), LIMIT_MS)).toBeUndefined();
    expect(await adapter.read(LIMIT_MS)).toEqual({ record: record(1n), version: first });
    const second = await adapter.compareAndSet(first!, record(2n), LIMIT_MS);
    expect(await adapter.compareAndSet(first!, record(3n), LIMIT_MS)).toBeUndefined();

    await consul.delete(adapter.key);
    expect(await adapter.compareAndSet(second!, record(3n), LIMIT_MS)).toBeUndefined();
    const again = await adapter.compareAndSet('0', record(2n), LIMIT_MS);
    expect(again).not.toBe(second);
    expect(await adapter.compareAndSet(second!, record(3n), LIMIT_MS)).toBeUndefined();
    expect((await adapter.read(LIMIT_MS)).version).toBe(again);
  });

  it('lets one of several racing processes win each time', async () => {
    const adapter = open({ url: consul.url });
    await adapter.compareAndSet('0', record(0n), LIMIT_MS);
    const racer = join(import.meta.dirname, 'consul-racer.mjs');
    const outputs = await Promise.all(
      Array.from({ length: 4 }, () =>
        run(process.execPath, [racer, resolve('dist'), consul.url, adapter.key, '12']),
      ),
    );
    const won = outputs.flatMap((output) => output.split('\n').map(Number)).toSorted((a, b) => a - b);
    expect(won).toEqual(Array.from({ length: 48 }, (_, index) => index + 1));
    expect((await adapter.read(LIMIT_MS)).record?.heartbeat).toBe(48n);
  });

  it('says a change at once, an absence that ends too, and what is there when nothing changes', async () => {
    const [adapter, other] = [
      open({ url: consul.url }),
      open({ url: consul.url, key: `app${keys}/primary` }),
    ];
    await adapter.read(LIMIT_MS);
    const appears = adapter.watch('0', 60_000);
    const version = (await other.compareAndSet('0', record(1n), LIMIT_MS))!;
    expect((await appears).version).toBe(version);
    const changes = adapter.watch(version, 60_000);
    const next = (await other.compareAndSet(version, record(2n), LIMIT_MS))!;
    expect((await changes).version).toBe(next);
    expect((await adapter.watch(next, 300)).version).toBe(next);
    const goes = adapter.watch(next, 60_000);
    await consul.delete(adapter.key);
    expect((await goes).record).toBeUndefined();

    const closed = failure(adapter.watch('0', 60_000));
    await adapter.close();
    expect((await closed).code).toBe('ERR_LEASE_UNREACHABLE');
  });

  it('keeps members beside the record, whatever their names, and does not take a stray key for one', async () => {
    const adapter = open({ url: consul.url });
    expect(await adapter.members(LIMIT_MS)).toEqual([]);
    for (const name of ['b', 'a/ü b', 'b']) await adapter.register(member(name), LIMIT_MS);
    await consul.put(`${adapter.key}/members/stray`, 'nothing');
    expect(await adapter.members(LIMIT_MS)).toEqual([member('a/ü b'), member('b')]);
    await adapter.unregister('a/ü b', LIMIT_MS);
    expect(await adapter.members(LIMIT_MS)).toEqual([member('b')]);
    expect((await adapter.read(LIMIT_MS)).record).toBeUndefined();
  });

  it('puts the path of the address before the key', async () => {
    const adapter = open({ url: `${consul.url}/tenant-1/`, key: '/app/primary' });
    await adapter.compareAndSet('0', record(1n), LIMIT_MS);
    await adapter.register(member('a'), LIMIT_MS);
    expect(await consul.get('tenant-1/app/primary')).toContain('"epoch":"4"');
    expect(await consul.get('tenant-1/app/primary/members/a')).toContain('"nodeId":"a"');
  });

  it('refuses a key that holds something else, by name', async () => {
    const adapter = open({ url: consul.url });
    await consul.put(adapter.key, '{"hostname":"litefs-1","advertise-url":"http://litefs-1:20202"}');
    const { code, message } = await failure(adapter.read(LIMIT_MS));
    expect(code).toBe('ERR_LEASE_RECORD');
    expect(message).toContain(`the key ${adapter.key}`);
    expect(message).toContain('is no lease record');
  });

  it('does not take another server’s "not found" for an absent key', async () => {
    const server = createServer((_, answer) => answer.writeHead(404).end()).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const adapter = open({ url: `http://127.0.0.1:${port}` });
    expect(await failure(adapter.read(LIMIT_MS))).toEqual({
      code: 'ERR_LEASE_UNREACHABLE',
      message: `what answers at http://127.0.0.1:${port} is not Consul`,
    });
    server.close();
  });

  it('ends every call to an agent that hangs at its timeout, and goes on when it answers again', async () => {
    const adapter = open({ url: consul.url });
    const version = (await adapter.compareAndSet('0', record(1n), LIMIT_MS))!;
    consul.signal('SIGSTOP');
    const calls = [
      adapter.read(200),
      adapter.compareAndSet(version, record(2n), 200),
      adapter.watch(version, 200),
      adapter.members(200),
      adapter.register(member('a'), 200),
      adapter.unregister('a', 200),
    ].map(failure);
    try {
      for (const call of calls) expect((await call).code).toBe('ERR_LEASE_UNREACHABLE');
    } finally {
      consul.signal('SIGCONT');
    }
    // The write that timed out may be carried out now, at any moment: hence a read before each further one.
    await waitFor('a write', async () => {
      const seen = await adapter.read(LIMIT_MS);
      return (await adapter.compareAndSet(seen.version, record(3n), LIMIT_MS)) !== undefined;
    });
  });

  it('finds the same record and version in an agent that was killed and started again', async () => {
    const adapter = open({ url: consul.url });
    const version = await adapter.compareAndSet('0', record(1n), LIMIT_MS);
    await consul.kill();
    expect((await failure(adapter.read(LIMIT_MS))).message).toMatch(/ECONNREFUSED|socket hang up/);
    await consul.up();
    expect(await adapter.read(LIMIT_MS)).toEqual({ record: record(1n), version });
  });
});

describe('on an agent with access control and certificates', () => {
  const master = '9a2bd3c1-0000-4000-8000-0123456789ab';
  let consul: TestConsul;
  let dir: string;
  let writer: string;
  let reader: string;

  beforeAll(async () => {
    dir = mkdtempSync(join(tmpdir(), 'kitefs-certs-'));
    const openssl = (...args: string[]): Promise<string> => run('openssl', args, { cwd: dir });
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    await openssl(
      'req',
      '-x509',
      ...key,
      '-keyout',
      'ca.key',
      '-out',
      'ca.pem',
      '-days',
      '2',
      '-subj',
      '/CN=ca',
    );
    writeFileSync(join(dir, 'san'), 'subjectAltName=IP:127.0.0.1');
    for (const name of ['server', 'client']) {
      await openssl('req', ...key, '-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', `/CN=${name}`);
      const sign = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', 'san', '-days', '2'];
      await openssl('x509', '-req', '-in', `${name}.csr`, ...sign, '-out', `${name}.pem`);
    }
    consul = await TestConsul.start({
      tls: true,
      token: master,
      config: {
        acl: { enabled: true, default_policy: 'deny', tokens: { master } },
        ca_file: join(dir, 'ca.pem'),
        cert_file: join(dir, 'server.pem'),
        key_file: join(dir, 'server.key'),
        verify_incoming_https: true,
      },
    });
    const token = async (name: string, rule: string): Promise<string> => {
      const policy = { Name: name, Rules: `key_prefix "app" { policy = "${rule}" }` };
      await consul.request('PUT', '/v1/acl/policy', JSON.stringify(policy));
      const made = await consul.request(
        'PUT',
        '/v1/acl/token',
        JSON.stringify({ Policies: [{ Name: name }] }),
      );
      return (JSON.parse(made) as { SecretID: string }).SecretID;
    };
    writer = await token('writer', 'write');
    reader = await token('reader', 'read');
  });
  afterAll(async () => {
    await consul.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  const secure = (token: string, more: Partial<ConsulLeaseOptions> = {}): LeaseAdapter & { key: string } =>
    open({
      url: `https://:${token}@127.0.0.1:${consul.httpsPort}`,
      caFile: join(dir, 'ca.pem'),
      clientCert: join(dir, 'client.pem'),
      clientKey: join(dir, 'client.key'),
      ...more,
    });

  it('takes a token in the address or beside it', async () => {
    const adapter = secure(writer);
    const version = await adapter.compareAndSet('0', record(1n), LIMIT_MS);
    await adapter.register(member('a'), LIMIT_MS);
    const beside = secure('', { token: writer, key: adapter.key, tlsSkipVerify: true, caFile: undefined });
    expect((await beside.read(LIMIT_MS)).version).toBe(version);
    expect(await beside.members(LIMIT_MS)).toEqual([member('a')]);
  });

  it('says which key a token may not read or write, and does not show the token', async () => {
    const wrong = 'd5d4d3d2-1111-4111-8111-111111111111';
    const outsider = secure(wrong);
    const denied = await failure(outsider.read(LIMIT_MS));
    expect(denied.code).toBe('ERR_LEASE_DENIED');
    expect(denied.message).toContain(`lets this node not read ${outsider.key}`);
    const onlyReads = secure(reader);
    await onlyReads.read(LIMIT_MS);
    const refused = [
      await failure(onlyReads.compareAndSet('0', record(1n), LIMIT_MS)),
      await failure(onlyReads.register(member('a'), LIMIT_MS)),
    ];
    for (const { code, message } of refused) {
      expect(code).toBe('ERR_LEASE_DENIED');
      expect(message).toContain(`lets this node not write ${onlyReads.key}`);
    }
    for (const { message } of [denied, ...refused]) {
      expect(message).not.toContain(wrong);
      expect(message).not.toContain(reader);
    }
  });

  it('trusts only the authority that it was given, and shows its own certificate', async () => {
    const strict = await failure(secure(writer, { caFile: undefined }).read(LIMIT_MS));
    expect(strict).toMatchObject({ code: 'ERR_LEASE_UNREACHABLE' });
    expect(strict.message).toMatch(/certificate/);
    const plain = await failure(secure('', { url: `http://127.0.0.1:${consul.httpsPort}` }).read(LIMIT_MS));
    expect(plain).toMatchObject({ code: 'ERR_LEASE_UNREACHABLE' });
    expect(plain.message).toMatch(/HTTP request to an HTTPS server/);
    const bare = secure(writer, { clientCert: undefined, clientKey: undefined });
    expect((await failure(bare.read(LIMIT_MS))).code).toBe('ERR_LEASE_UNREACHABLE');
    expect(() => secure(writer, { caFile: join(dir, 'none.pem') })).toThrow(/lease\.consul\.ca-file: ENOENT/);
  });
});
