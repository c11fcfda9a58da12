import { once } from 'node:events';
import { connect } from 'node:net';
import { networkInterfaces } from 'node:os';
import { Server, ServerCredentials, status } from '@grpc/grpc-js';
import { afterEach, expect, test } from 'vitest';

import { MemoryStore, sameEnds } from '../../test/replication/memory-store.js';
import { Peers, until } from '../../test/replication/peers.js';
import type { ToReplica } from './generated/kitefs/v1/ToReplica.js';
import type { ReplicationHandlers } from './generated/kitefs/v1/Replication.js';
import type { ReplicaEvent } from './server.js';
import { ReplicationClient } from './client.js';
import { ReplicationServer } from './server.js';
import { Replication, decodeToPrimary, encodeToReplica, toWireFile } from './wire.js';

// Who may speak to whom, and what a peer that breaks the rules can do: nothing.

const SECRET = 'a secret of this cluster';
const peers = new Peers();
afterEach(() => peers.end());

/** Codes of the client's disconnects, in order. */
function errorsOf(store: MemoryStore, port: number, secret?: string): string[] {
  const codes: string[] = [];
  peers.client(store, port, {
    secret,
    onEvent: (event) => {
      if (event.kind === 'disconnected') codes.push(event.error.code);
    },
  });
  return codes;
}

/** A server that speaks for itself: it answers hello with a challenge and start with `messages`. */
async function fakePrimary(
  messages: Omit<ToReplica, 'epoch'>[],
  { clusterId = 'c1', epoch = 1n, protocol = 1 } = {},
): Promise<{ port: number; heard: { kind: string | undefined; epoch: string }[] }> {
  const server = new Server({ 'grpc.max_send_message_length': -1 });
  const heard: { kind: string | undefined; epoch: string }[] = [];
  const handlers: ReplicationHandlers = {
    Replicate: (call) => {
      const say = (message: Omit<ToReplica, 'epoch'>) =>
        call.write({ body: encodeToReplica(epoch, message) });
      call.on('error', () => {});
      call.on('data', (envelope) => {
        const message = decodeToPrimary(envelope.body);
        heard.push({ kind: message.message, epoch: message.epoch });
        if (message.hello) {
          say({ challenge: { protocol, clusterId, nodeId: 'p', nonce: Buffer.alloc(32) } });
        }
        if (message.start) for (const next of messages) say(next);
        if (message.goodbye) call.end();
      });
    },
  };
  server.addService(Replication.service, handlers);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    );
  });
  peers.onEnd(() => server.forceShutdown());
  return { port, heard };
}

test('without a secret peers listen on loopback only', async () => {
  const store = new MemoryStore('p');
  const role = () => ({ primary: false, holder: undefined }) as const;
  for (const address of [':0', '0.0.0.0:0', '[::]:0', '192.0.2.1:0', 'example.com:0']) {
    await expect(ReplicationServer.start({ address, store, role })).rejects.toMatchObject({
      code: 'ERR_REPLICATION_INSECURE',
    });
  }
  const server = await ReplicationServer.start({ address: '0.0.0.0:0', store, role, secret: SECRET });
  await server.stop();
});

test('a secret that can be guessed is refused on both sides', async () => {
  const store = new MemoryStore('p');
  const role = () => ({ primary: false, holder: undefined }) as const;
  const weak = { code: 'ERR_REPLICATION_SECRET_WEAK' };
  await expect(
    ReplicationServer.start({ address: '127.0.0.1:0', store, role, secret: 'short' }),
  ).rejects.toMatchObject(weak);
  expect(() => ReplicationClient.start({ primaryAddress: '127.0.0.1:1', store, secret: 'short' })).toThrow(
    expect.objectContaining(weak),
  );
});

test('an address without a host is every address of this machine', async () => {
  const store = new MemoryStore('p');
  const role = () => ({ primary: false, holder: undefined }) as const;
  const server = await ReplicationServer.start({ address: ':0', store, role, secret: SECRET });
  const loopback = networkInterfaces()['lo']?.map(({ address }) => address) ?? ['127.0.0.1'];
  try {
    for (const host of loopback) {
      const socket = connect(server.port, host);
      await once(socket, 'connect');
      socket.destroy();
    }
  } finally {
    await server.stop();
  }
});

test('a port in use is one clear error', async () => {
  const server = await peers.server(new MemoryStore('p'));
  await expect(
    peers.server(new MemoryStore('q'), { address: `127.0.0.1:${server.port}` }),
  ).rejects.toMatchObject({ code: 'ERR_REPLICATION_LISTEN' });
});

test('with the same secret on both sides data flows', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.commit('a.db', 2_000_000);
  const server = await peers.server(primary, { secret: SECRET });
  peers.client(replica, server.port, { secret: SECRET });
  await until('the copy', () => sameEnds(primary, replica));
});

test.each([
  ['another secret', SECRET, 'a secret of some other one'],
  ['no secret on the replica', SECRET, undefined],
  ['no secret on the primary', undefined, SECRET],
])('%s: both sides refuse and no data moves', async (_, ours, theirs) => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.commit('a.db');
  replica.commit('b.db');
  const events: ReplicaEvent[] = [];
  const server = await peers.server(primary, { secret: ours, onEvent: (event) => events.push(event) });
  const codes = errorsOf(replica, server.port, theirs);
  await until('refusals', () => codes.length >= 2);
  expect(new Set(codes)).toEqual(new Set(['ERR_REPLICATION_SECRET']));
  expect(events.some((event) => event.kind === 'connected')).toBe(false);
  expect(replica.databases()).toEqual(['b.db']);
});

test('nobody who lacks the secret makes a primary step down', async () => {
  let told: bigint | undefined;
  const server = await peers.server(new MemoryStore('p'), {
    secret: SECRET,
    onHigherEpoch: (epoch) => (told = epoch),
  });
  const raw = peers.raw(server.port);
  raw.hello('r');
  await until('the challenge', () => raw.find('challenge') !== undefined);
  raw.send({ start: { positions: [] } }, 99n);
  await until('the refusal', () => raw.find('refusal') !== undefined);
  expect(raw.find('refusal')?.refusal?.code).toBe('ERR_REPLICATION_SECRET');
  expect(told).toBeUndefined();
});

test('another cluster, another protocol version and the same node id are refused by the primary', async () => {
  const server = await peers.server(new MemoryStore('p'));
  const refusalOf = async (nodeId: string, options: { protocol?: number; clusterId?: string }) => {
    const raw = peers.raw(server.port);
    raw.hello(nodeId, options);
    await until('the refusal', () => raw.find('refusal') !== undefined);
    return raw.find('refusal')?.refusal?.code;
  };
  expect(await refusalOf('r', { clusterId: 'c2' })).toBe('ERR_REPLICATION_CLUSTER');
  expect(await refusalOf('r', { protocol: 2 })).toBe('ERR_REPLICATION_VERSION');
  expect(await refusalOf('p', {})).toBe('ERR_REPLICATION_NODE_ID');
});

test('a replica of another cluster drops and receives nothing', async () => {
  const primary = new MemoryStore('p', { clusterId: 'c2' });
  const replica = new MemoryStore('r');
  replica.commit('a.db');
  const server = await peers.server(primary);
  const codes = errorsOf(replica, server.port);
  await until('the refusal', () => codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_CLUSTER');
  expect(replica.databases()).toEqual(['a.db']);
});

test.each([
  ['ERR_REPLICATION_CLUSTER', { clusterId: 'c2' }],
  ['ERR_REPLICATION_VERSION', { protocol: 7 }],
])('a replica refuses a primary by itself too: %s', async (code, options) => {
  const replica = new MemoryStore('r');
  replica.commit('a.db');
  const { port } = await fakePrimary([{ databases: { names: [] } }], options);
  const codes = errorsOf(replica, port);
  await until('the refusal', () => codes.length > 0);
  expect(codes[0]).toBe(code);
  expect(replica.databases()).toEqual(['a.db']);
});

test('a node that is not primary refuses and says who is', async () => {
  const holder = { nodeId: 'q', advertiseUrl: 'http://q', peerAddress: 'q:1' };
  const server = await peers.server(new MemoryStore('p'), { role: () => ({ primary: false, holder }) });
  let hint: unknown;
  const replica = new MemoryStore('r');
  peers.client(replica, server.port, {
    onEvent: (event) => {
      if (event.kind === 'disconnected') hint = { code: event.error.code, primary: event.primary };
    },
  });
  await until('the refusal', () => hint !== undefined);
  expect(hint).toEqual({ code: 'ERR_REPLICATION_NOT_PRIMARY', primary: holder });
});

test('a replica that knows a higher epoch refuses the primary and tells it', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r', { epoch: 5n })];
  replica.commit('a.db');
  let told: bigint | undefined;
  const server = await peers.server(primary, { onHigherEpoch: (epoch) => (told = epoch) });
  const codes = errorsOf(replica, server.port);
  await until('both know', () => told === 5n && codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_EPOCH');
  expect(replica.databases()).toEqual(['a.db']);
});

test('a primary of a lower epoch that sends on regardless changes nothing', async () => {
  const replica = new MemoryStore('r', { epoch: 5n });
  replica.commit('a.db');
  const file = new MemoryStore('x').commit('b.db');
  const { port, heard } = await fakePrimary([
    { databases: { names: [] } },
    { files: { files: [{ ...toWireFile('b.db', file), data: Buffer.alloc(10), last: true }] } },
  ]);
  const codes = errorsOf(replica, port);
  await until('the refusal', () => codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_EPOCH');
  expect(heard.find((message) => message.kind === 'goodbye')?.epoch).toBe('5');
  expect(replica.begun).toEqual([]);
  expect(replica.databases()).toEqual(['a.db']);
});

test('a primary that is replaced sends nothing more in its open streams', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  let isPrimary = true;
  const server = await peers.server(primary, {
    role: () =>
      isPrimary ? { primary: true, epoch: 1n, leaseValid: true } : { primary: false, holder: undefined },
  });
  const codes = errorsOf(replica, server.port);
  primary.commit('a.db');
  await until('the copy', () => sameEnds(primary, replica));
  isPrimary = false;
  primary.commit('a.db');
  await until('the end of the stream', () => codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_NOT_PRIMARY');
  expect(replica.position('a.db')?.txid).toBe(1n);
});

test('a node that learns of a higher epoch while a file comes in does not take it', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  let open = (): void => {};
  replica.writeGate.set('a.db', new Promise((resolve) => (open = resolve)));
  const server = await peers.server(primary);
  const codes = errorsOf(replica, server.port);
  primary.commit('a.db');
  await until('the file began', () => replica.openIncoming === 1);
  replica.setEpoch(2n);
  open();
  await until('the refusal', () => codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_EPOCH');
  expect(replica.finished).toEqual([]);
  expect(replica.openIncoming).toBe(0);
});

test('a message that is too large ends the stream on either side', async () => {
  const server = await peers.server(new MemoryStore('p'));
  const raw = peers.raw(server.port);
  raw.send({ hello: { protocol: 1, clusterId: 'c1', nodeId: 'r', nonce: Buffer.alloc(5_000_000) } });
  await until('the status', () => raw.status !== undefined);
  expect(raw.status).toBe(status.RESOURCE_EXHAUSTED);
  const replica = new MemoryStore('r');
  const { port } = await fakePrimary([{ chunk: { database: 'a.db', data: Buffer.alloc(5_000_000) } }]);
  const codes = errorsOf(replica, port);
  await until('the end', () => codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_MESSAGE_SIZE');
});

test.each(['../etc/passwd', '/a.db', 'a//b', '.', ''])('a database named %j is refused', async (name) => {
  const replica = new MemoryStore('r');
  const file = new MemoryStore('x').commit('x');
  const { port } = await fakePrimary([
    { files: { files: [{ ...toWireFile(name, file), data: Buffer.alloc(1), last: true }] } },
  ]);
  const codes = errorsOf(replica, port);
  await until('the end', () => codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_MESSAGE');
  expect(replica.begun).toEqual([]);
});

test('messages out of turn and bytes that are no message end the stream only', async () => {
  const server = await peers.server(new MemoryStore('p'));
  const early = peers.raw(server.port);
  early.send({ ack: { database: 'a.db' } });
  await until('the refusal', () => early.find('refusal') !== undefined);
  expect(early.find('refusal')?.refusal?.code).toBe('ERR_REPLICATION_MESSAGE');
  const replica = new MemoryStore('r');
  const { port } = await fakePrimary([{}]);
  const codes = errorsOf(replica, port);
  await until('the end', () => codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_MESSAGE');
});
