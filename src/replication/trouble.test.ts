import { afterEach, expect, test } from 'vitest';

import { MemoryStore, sameEnds } from '../../test/replication/memory-store.js';
import { Peers, until } from '../../test/replication/peers.js';
import type { ReplicationClientEvent } from './client.js';

// Slow, damaged, cut and crowded streams: each stops only what it must and leaves no trace.

const MIB = 1024 * 1024;
const peers = new Peers();
afterEach(() => peers.end());

test('one huge file does not hold up the transactions of other databases', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.commit('huge.db', 24 * MIB);
  const receive = replica.receive.bind(replica);
  replica.receive = async (name, header) => {
    if (name === 'huge.db') for (let i = 0; i < 20; i++) primary.commit(`small${i % 4}.db`, 1000);
    return receive(name, header);
  };
  const server = await peers.server(primary);
  peers.client(replica, server.port);
  await until('everything', () => replica.finished.length === 21 && sameEnds(primary, replica));
  expect(replica.finished.indexOf('huge.db 1-1')).toBe(20);
});

test('a database whose disk hangs on the replica does not hold up another', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  let open = (): void => {};
  replica.writeGate.set('stuck.db', new Promise((resolve) => (open = resolve)));
  const server = await peers.server(primary);
  peers.client(replica, server.port);
  primary.commit('stuck.db', 12 * MIB);
  await until('it began', () => replica.begun.length > 0);
  for (let i = 0; i < 40; i++) primary.commit('a.db', 200_000);
  await until('the other one', () => replica.position('a.db')?.txid === 40n);
  // What the primary gave away for the stuck one is bounded by its window.
  expect(primary.bytesRead).toBeLessThan(40 * 200_100 + 5 * MIB);
  open();
  await until('everything', () => sameEnds(primary, replica));
});

test('a replica that does not read costs bounded memory and reads the log when it goes on', async () => {
  const primary = new MemoryStore('p');
  for (let i = 0; i < 20; i++) primary.commit(`d${i}.db`, 2 * MIB);
  const server = await peers.server(primary);
  const raw = peers.raw(server.port);
  raw.acknowledges = true;
  raw.hello('r');
  await until('the challenge', () => raw.find('challenge') !== undefined);
  raw.stopReading();
  raw.send({ start: { positions: [] } });
  await until('the stream started', () => server.replicas().length === 1);
  for (let i = 0; i < 3000; i++) primary.commit('busy.db');
  // Nothing more moves: what is read stays the same over many answers of the server.
  let [before, since] = [-1, Date.now()];
  await until('it stands still', () => {
    if (primary.bytesRead !== before) [before, since] = [primary.bytesRead, Date.now()];
    return Date.now() - since > 300;
  });
  // 2 MiB of messages, and what the kernel and HTTP/2 hold.
  expect(primary.bytesRead).toBeLessThan(12 * MIB);
  raw.readAgain();
  const messages = () => raw.received.flatMap((message) => message.files?.files ?? []);
  await until('the busy database', () => messages().some((file) => file.maxTxid === '3000'));
  const busy = messages().filter((file) => file.database === 'busy.db');
  expect(busy.map((file) => Number(file.minTxid))).toEqual(Array.from({ length: 3000 }, (_, i) => i + 1));
});

test('many databases of many bytes stay within the window of the stream until they are taken', async () => {
  const primary = new MemoryStore('p');
  for (let i = 0; i < 15; i++) primary.commit(`d${i}.db`, 3 * MIB);
  const server = await peers.server(primary);
  // It reads all and takes nothing: no acknowledgement ever.
  const raw = peers.raw(server.port);
  raw.hello('r');
  await until('the challenge', () => raw.find('challenge') !== undefined);
  raw.send({ start: { positions: [] } });
  const taken = () =>
    raw.received.reduce(
      (sum, { files, chunk }) => sum + (chunk?.data.length ?? 0) + (files?.files[0]?.data.length ?? 0),
      0,
    );
  await until('the window is full', () => taken() >= 32 * MIB);
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(taken()).toBeLessThan(36 * MIB);
});

test('a connection killed in the middle of a file leaves no trace, and the stream resumes', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.commit('a.db');
  let open = (): void => {};
  const server = await peers.server(primary);
  const relay = await peers.relay(server.port);
  const events: ReplicationClientEvent[] = [];
  peers.client(replica, relay.port, { onEvent: (event) => events.push(event) });
  await until('the first file', () => replica.finished.length === 1);
  replica.writeGate.set('a.db', new Promise((resolve) => (open = resolve)));
  primary.commit('a.db', 10 * MIB);
  await until('the second began', () => replica.begun.length === 2);
  relay.cut();
  open();
  await until('the end of the stream', () => events.some((event) => event.kind === 'disconnected'));
  expect(replica.openIncoming).toBe(0);
  expect(replica.position('a.db')?.txid).toBe(1n);
  await until('everything', () => sameEnds(primary, replica));
  expect(replica.begun).toEqual(['a.db 1-1', 'a.db 2-2', 'a.db 2-2']);
});

test('the first retry after a lost connection is fast, and later ones wait longer', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.commit('a.db');
  const server = await peers.server(primary);
  const relay = await peers.relay(server.port);
  relay.setUp(false);
  const pauses: number[] = [];
  peers.client(replica, relay.port, {
    onEvent: (event) => {
      if (event.kind === 'disconnected') pauses.push(event.retryMs);
    },
  });
  await until('five attempts', () => pauses.length >= 5);
  expect(pauses[0]).toBeLessThanOrEqual(60);
  expect(pauses[4]).toBeGreaterThan(pauses[0]! * 3);
  relay.setUp(true);
  await until('the copy', () => sameEnds(primary, replica));
});

test('a file that comes damaged is refused, and what the database holds is sent in its place', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.damage = (name, bytes) => {
    if (name === 'a.db') bytes[7]! ^= 1;
    return bytes;
  };
  const server = await peers.server(primary);
  const codes: string[] = [];
  peers.client(replica, server.port, {
    onEvent: (event) => {
      if (event.kind === 'database-failed') codes.push(`${event.name} ${event.error.code}`);
      if (event.kind === 'disconnected') codes.push(event.error.code);
    },
  });
  for (let i = 0; i < 3; i++) primary.commit('a.db', 300_000);
  for (let i = 0; i < 3; i++) primary.commit('b.db');
  await until('everything', () => sameEnds(primary, replica));
  expect(codes).toEqual(['a.db ERR_LTX_DAMAGED']);
  expect(primary.snapshots).toBe(1);
  expect(replica.openIncoming).toBe(0);
});

test('a log file that the primary cannot read stops that database only', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.damage = (name, bytes) => {
    if (name === 'a.db') throw new Error('EIO');
    return bytes;
  };
  primary.commit('a.db');
  primary.commit('b.db');
  const server = await peers.server(primary);
  const errors: string[] = [];
  peers.client(replica, server.port, {
    onEvent: (event) => {
      if (event.kind === 'database-failed') errors.push(event.error.message);
    },
  });
  await until('the failure', () => errors.length > 0 && replica.position('b.db') !== undefined);
  expect(errors[0]).toContain('The primary cannot send a.db: EIO');
  primary.damage = undefined;
  await until('everything', () => sameEnds(primary, replica));
});

test('a file out of order is refused before a byte is written, and the database begins anew', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  for (let i = 0; i < 4; i++) primary.commit('a.db');
  const whole = primary.filesAfter.bind(primary);
  let skips = true;
  primary.filesAfter = (name, position) => {
    const files = whole(name, position);
    if (!skips) return files;
    skips = false;
    return files?.slice(1);
  };
  const server = await peers.server(primary);
  const codes: string[] = [];
  peers.client(replica, server.port, {
    onEvent: (event) => {
      if (event.kind === 'database-failed') codes.push(event.error.code);
    },
  });
  await until('everything', () => sameEnds(primary, replica));
  expect(codes).toEqual(['ERR_REPLICATION_ORDER']);
  expect(replica.begun[0]).toBe('a.db 1-1');
});

test('a peer that falls silent is given up on either side', async () => {
  const primary = new MemoryStore('p');
  const reasons: string[] = [];
  const server = await peers.server(primary, {
    heartbeatMs: 100,
    silenceMs: 1000,
    onEvent: (event) => {
      if (event.kind === 'disconnected') reasons.push(event.reason);
    },
  });
  const raw = peers.raw(server.port);
  raw.hello('r');
  await until('the challenge', () => raw.find('challenge') !== undefined);
  raw.send({ start: { positions: [] } });
  await until('the primary gives up', () => reasons.length === 1);
  // A primary whose heartbeat is slower than the replica's patience answers each probe all the same.
  const codes: string[] = [];
  const calm = await peers.server(primary, { heartbeatMs: 10_000 });
  peers.client(new MemoryStore('s'), calm.port, {
    heartbeatMs: 50,
    silenceMs: 5000,
    onEvent: ({ kind }) => {
      if (kind !== 'fresher') codes.push(kind);
    },
  });
  await until('connected', () => codes.length === 1);
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(codes).toEqual(['connected']);
});

test('a listener that never answers is given up after the silence limit', async () => {
  const { createServer } = await import('node:net');
  const mute = createServer((socket) => socket.on('error', () => {}));
  await new Promise<void>((resolve) => mute.listen(0, '127.0.0.1', resolve));
  peers.onEnd(() => mute.close());
  const codes: string[] = [];
  peers.client(new MemoryStore('r'), (mute.address() as { port: number }).port, {
    heartbeatMs: 20,
    silenceMs: 200,
    onEvent: (event) => {
      if (event.kind === 'disconnected') codes.push(event.error.code);
    },
  });
  await until('the client gives up', () => codes.length > 0);
  expect(codes[0]).toBe('ERR_REPLICATION_SILENT');
});

test('a stopped client leaves no file open and takes nothing more', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.commit('a.db', 20 * MIB);
  const server = await peers.server(primary);
  const client = peers.client(replica, server.port);
  await until('the file began', () => replica.openIncoming === 1);
  await client.stop();
  expect(replica.openIncoming).toBe(0);
  const seen = replica.begun.length;
  primary.commit('b.db');
  await until('the primary noticed', () => server.replicas().length === 0);
  expect(replica.begun.length).toBe(seen);
});
