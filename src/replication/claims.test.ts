import { afterEach, beforeEach, expect, test } from 'vitest';

import { MemoryStore, sameEnds } from '../../test/replication/memory-store.js';
import { Peers, type RawReplica, until } from '../../test/replication/peers.js';
import { checkEpochClaim, checkPositionClaim } from './claims.js';
import type { ReplicaEvent } from './server.js';

// A replica that knows the secret and says what cannot be: it is refused and told so, and nobody else notices.

const SECRET = 'a secret of this cluster';
const HUGE = '18446744073709551615';
const peers = new Peers();
let primary: MemoryStore;
let honest: MemoryStore;
let told: bigint[];
let events: ReplicaEvent[];
let port: number;

beforeEach(async () => {
  [primary, honest, told, events] = [new MemoryStore('p'), new MemoryStore('r'), [], []];
  for (let i = 0; i < 5; i++) primary.commit('a.db');
  const server = await peers.server(primary, {
    secret: SECRET,
    onHigherEpoch: (epoch) => told.push(epoch),
    onEvent: (event) => events.push(event),
  });
  port = server.port;
  peers.client(honest, port, { secret: SECRET });
  await until('the honest copy', () => sameEnds(primary, honest));
});
afterEach(() => peers.end());

async function liar(): Promise<RawReplica> {
  const raw = peers.raw(port, SECRET);
  raw.hello('liar');
  await until('the challenge', () => raw.find('challenge') !== undefined);
  return raw;
}

const at = (txid: bigint | string, more: { checksum?: string; epoch?: string } = {}) => ({
  database: 'a.db',
  txid: String(txid),
  checksum: '77',
  epoch: '1',
  ...more,
});

test.each<[string, RegExp, (raw: RawReplica) => void]>([
  [
    'a transaction of an epoch to come',
    /^ERR_REPLICATION_MESSAGE: liar claims a transaction of epoch 9 in a\.db, .* at epoch 1$/,
    (raw) => raw.send({ start: { positions: [at(5n, { epoch: '9' })] } }),
  ],
  [
    'an epoch that nobody will ever reach',
    /^ERR_REPLICATION_MESSAGE: liar claims epoch 18446744073709551615, .* at epoch 1$/,
    (raw) => raw.send({ start: { positions: [] } }, BigInt(HUGE)),
  ],
  [
    'the same to a node that it pulls from',
    /^ERR_REPLICATION_MESSAGE: liar claims epoch 18446744073709551615/,
    (raw) => raw.send({ pull: { positions: [at(5n)] } }, BigInt(HUGE)),
  ],
  [
    'that it has what was never sent',
    /^ERR_REPLICATION_MESSAGE: liar claims TXID 6 of a\.db, .* 5 at most$/,
    (raw) => {
      raw.send({ start: { positions: [] } });
      raw.send({ ack: { database: 'a.db', consumedBytes: '0', received: at(6n) } });
    },
  ],
  [
    'that it has applied the largest number there is',
    /^ERR_REPLICATION_MESSAGE: liar claims TXID 18446744073709551615 of a\.db/,
    (raw) => {
      raw.send({ start: { positions: [at(2n)] } });
      raw.send({ ack: { database: 'a.db', consumedBytes: HUGE, applied: at(HUGE) } });
    },
  ],
  [
    'a database with a name that leads elsewhere',
    /^ERR_REPLICATION_MESSAGE: /,
    (raw) => raw.send({ start: { positions: [{ ...at(1n), database: '../a.db' }] } }),
  ],
])('a replica that claims %s is refused', async (_, refusal, lie) => {
  const raw = await liar();
  lie(raw);
  expect(await raw.refusal()).toMatch(refusal);
  // The primary says it too, and goes on as if nothing had been.
  await until('the end of the stream', () =>
    events.some((event) => /(cannot be|name)/.test('reason' in event ? event.reason : '')),
  );
  expect(told).toEqual([]);
  primary.commit('a.db');
  await until('the honest copy', () => sameEnds(primary, honest));
});

test.each([
  ['from the future', at(HUGE)],
  ['of another lineage', at(3n, { checksum: HUGE })],
])('a replica %s gets all pages, whatever it answers about its own', async (_, position) => {
  const raw = await liar();
  raw.acknowledges = true;
  raw.send({ start: { positions: [position] } });
  await until('the question', () => raw.find('checksumsWanted') !== undefined);
  const { attempt } = raw.find('checksumsWanted')!.checksumsWanted!;
  const answer = { database: 'a.db', attempt, txid: HUGE, checksum: HUGE, pages: 4_294_967_295 };
  raw.send({ pageChecksums: { ...answer, checksums: Buffer.alloc(13, 255), last: false } });
  raw.send({ pageChecksums: { ...answer, checksums: Buffer.alloc(100_000, 255), last: true } });
  await until('the snapshot', () => primary.snapshots === 1 && raw.find('files') !== undefined);
  expect(raw.find('refusal')).toBeUndefined();
  primary.commit('a.db');
  await until('the honest copy', () => sameEnds(primary, honest));
});

test('what a healthy peer can say is not refused', () => {
  const limits = { who: 'r', name: 'a.db', epoch: 5n, end: 9n };
  checkPositionClaim(undefined, limits);
  checkPositionClaim({ txid: 9n, checksum: 1n, epoch: 5n }, limits);
  // A former primary's own transactions.
  checkPositionClaim({ txid: 90n, checksum: 1n, epoch: 4n }, limits);
  checkEpochClaim(1000n, 5n, 'r');
});
