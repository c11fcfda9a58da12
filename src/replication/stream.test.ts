import { afterEach, expect, test } from 'vitest';

import { pull } from './pull.js';
import { MemoryStore, sameEnds } from '../../test/replication/memory-store.js';
import { Peers, until } from '../../test/replication/peers.js';

// The protocol over real gRPC connections on loopback, with stores in memory.

const peers = new Peers();
afterEach(() => peers.end());

test('a new replica receives every database and then each transaction as it happens', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.commit('a.db');
  primary.commit('a.db', 100_000);
  primary.commit('tenants/42.db', 2_000_000);
  primary.create('empty.db');
  const server = await peers.server(primary);
  peers.client(replica, server.port);
  await until('the first copy', () => sameEnds(primary, replica));
  expect(primary.snapshots).toBe(0);
  for (let i = 0; i < 500; i++) primary.commit(i % 3 === 0 ? 'a.db' : 'b.db', i % 100 === 0 ? 70_000 : 300);
  await until('500 transactions', () => sameEnds(primary, replica));
  expect(replica.openIncoming).toBe(0);
  // Each file arrived once, and in order.
  const names = replica.finished.filter((file) => file.startsWith('b.db'));
  expect(names).toEqual(primary.files('b.db').map((file) => `b.db ${file.minTxid}-${file.maxTxid}`));
});

test('a replica that comes back receives only what it lacks', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  for (let i = 0; i < 5; i++) primary.commit('a.db');
  const server = await peers.server(primary);
  const client = peers.client(replica, server.port);
  await until('the first copy', () => sameEnds(primary, replica));
  await client.stop();
  for (let i = 0; i < 3; i++) primary.commit('a.db');
  replica.finished.length = 0;
  peers.client(replica, server.port);
  await until('the rest', () => sameEnds(primary, replica));
  expect(replica.finished).toEqual(['a.db 6-6', 'a.db 7-7', 'a.db 8-8']);
});

test('who has won the lease takes what a replica has beyond it, and gives nothing up for it', async () => {
  const [winner, other] = [new MemoryStore('w'), new MemoryStore('o')];
  for (let i = 0; i < 3; i++) other.commit('a.db');
  const primary = await peers.server(other);
  const client = peers.client(winner, primary.port);
  await until('the first copy', () => sameEnds(other, winner));
  await client.stop();
  winner.finished.length = 0;
  for (const sizeBytes of [300, 600_000, 300]) other.commit('a.db', sizeBytes);
  other.commit('unknown.db');
  other.commit('wanted.db');
  other.commit('dropped.db');
  for (let i = 0; i < 2; i++) winner.commit('forked.db', 300 + i);
  for (let i = 0; i < 5; i++) other.commit('forked.db', 900 + i);
  const forked = winner.position('forked.db');
  const server = await peers.server(other, { role: () => ({ primary: false, holder: undefined }) });
  const after = new Map(['a.db', 'forked.db', 'wanted.db'].map((name) => [name, winner.position(name)]));
  // Of one that was dropped here the log goes on with that.
  after.set('dropped.db', { txid: 2n, checksum: 1n, epoch: 1n });
  await pull({ address: `127.0.0.1:${server.port}`, store: winner, after });
  expect(winner.position('a.db')).toEqual(other.position('a.db'));
  expect(winner.finished).toEqual(['a.db 4-4', 'a.db 5-5', 'a.db 6-6', 'wanted.db 1-1']);
  expect(winner.position('forked.db')).toEqual(forked);
  expect(winner.setAside).toEqual([]);
  expect(winner.openIncoming).toBe(0);
});

test('a pull ends when nobody answers, and proves the secret like any peer', async () => {
  const store = new MemoryStore('w');
  const gone = pull({ address: '127.0.0.1:1', store, after: new Map() });
  await expect(gone).rejects.toMatchObject({ code: 'ERR_REPLICATION_DISCONNECTED' });
  const guarded = await peers.server(new MemoryStore('o'), { secret: 'a secret of some length' });
  const address = `127.0.0.1:${guarded.port}`;
  const stranger = pull({ address, store, after: new Map(), secret: 'another secret, as long' });
  await expect(stranger).rejects.toMatchObject({ code: expect.stringMatching(/^ERR_REPLICATION_/) });
});

test('a position past retention is answered with a snapshot and what follows it', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  for (let i = 0; i < 9; i++) primary.commit('a.db');
  primary.forget('a.db', 2);
  const server = await peers.server(primary);
  peers.client(replica, server.port);
  await until('the snapshot', () => sameEnds(primary, replica));
  expect(replica.finished).toEqual(['a.db 1-9']);
  primary.commit('a.db');
  await until('the next transaction', () => sameEnds(primary, replica));
  expect(replica.finished).toEqual(['a.db 1-9', 'a.db 10-10']);
});

test('a replica of another history gets a snapshot under the current epoch, and only in that database', async () => {
  const [primary, replica] = [new MemoryStore('p', { epoch: 2n }), new MemoryStore('r')];
  for (let i = 0; i < 3; i++) primary.commit('a.db');
  primary.commit('b.db');
  for (let i = 0; i < 7; i++) replica.commit('a.db');
  const server = await peers.server(primary);
  peers.client(replica, server.port);
  await until('the snapshot', () => sameEnds(primary, replica));
  expect(replica.setAside).toEqual(['a.db 7']);
  expect(replica.finished.toSorted()).toEqual(['a.db 1-3', 'b.db 1-1']);
  expect(replica.epoch()).toBe(2n);
});

test('a database that the primary dropped goes, and one made again at once arrives', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.commit('a.db');
  primary.commit('gone.db');
  const server = await peers.server(primary);
  const client = peers.client(replica, server.port);
  await until('the first copy', () => sameEnds(primary, replica));
  primary.remove('a.db');
  primary.commit('a.db');
  primary.commit('a.db');
  await until('the new one', () => sameEnds(primary, replica));
  await client.stop();
  primary.remove('gone.db');
  peers.client(replica, server.port);
  await until('the drop while away', () => !replica.databases().includes('gone.db'));
  expect(sameEnds(primary, replica)).toBe(true);
});

test('a database without a transaction is no reason to drop what the replica has', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  primary.create('a.db');
  primary.commit('b.db');
  for (let i = 0; i < 4; i++) replica.commit('a.db');
  const server = await peers.server(primary);
  peers.client(replica, server.port);
  await until('the other database', () => replica.position('b.db') !== undefined);
  expect(replica.position('a.db')?.txid).toBe(4n);
  primary.commit('a.db');
  await until('its first transaction', () => sameEnds(primary, replica));
});

test('acknowledgements tell what was received, made durable and applied', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  replica.appliesAtOnce = false;
  // An fsync says nothing while the database was not found to stand in the log.
  replica.grounded = false;
  const server = await peers.server(primary, { durable: () => true });
  peers.client(replica, server.port);
  const at = primary.commit('a.db');
  const acknowledged = () => server.replicas()[0]?.databases.get('a.db');
  await until('the acknowledgement', () => acknowledged()?.received?.txid === 1n);
  expect(acknowledged()).toMatchObject({ durable: undefined, applied: undefined });
  replica.grounded = true;
  replica.apply('a.db');
  await until('the applied position', () => acknowledged()?.applied?.txid === 1n);
  expect(acknowledged()?.durable).toMatchObject({ txid: 1n, checksum: at.postApplyChecksum });
});

test('a replica says how fresh it is only by answers of a primary whose lease is valid', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  let leaseValid = false;
  primary.commit('a.db');
  replica.appliesAtOnce = false;
  const role = () => ({ primary: true, epoch: 1n, leaseValid }) as const;
  const server = await peers.server(primary, { role });
  const client = peers.client(replica, server.port, { heartbeatMs: 20 });
  await until('the copy', () => sameEnds(primary, replica));
  replica.apply('a.db');
  await until('an answer', () => client.freshness('a.db')?.lagTransactions === 0);
  expect(client.freshness('a.db')?.maxAgeMs).toBeUndefined();
  leaseValid = true;
  await until('a valid answer', () => client.freshness('a.db')?.maxAgeMs !== undefined);
  primary.commit('a.db');
  await until('the lag', () => client.freshness('a.db')?.lagTransactions === 1);
  await until('the age grows', () => client.freshness('a.db')!.maxAgeMs! > 200);
  replica.apply('a.db');
  await until('fresh again', () => client.freshness('a.db')!.maxAgeMs! < 200);
});

test('a stopping primary lets its replicas catch up first', async () => {
  const [primary, replica] = [new MemoryStore('p'), new MemoryStore('r')];
  const server = await peers.server(primary);
  peers.client(replica, server.port);
  await until('connected', () => server.replicas().length === 1);
  for (let i = 0; i < 50; i++) primary.commit('a.db', 100_000);
  await server.stop({ drainMs: 20_000 });
  await until('everything', () => sameEnds(primary, replica));
});
