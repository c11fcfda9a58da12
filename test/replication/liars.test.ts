import { Server, ServerCredentials } from '@grpc/grpc-js';
import { afterEach, expect, it } from 'vitest';
import type { ReplicationHandlers } from '../../src/replication/generated/kitefs/v1/Replication.js';
import type { ToReplica } from '../../src/replication/generated/kitefs/v1/ToReplica.js';
import { EnvelopeMac } from '../../src/replication/peer-secret.js';
import {
  Replication,
  decodeToPrimary,
  encodeToReplica,
  fromWireFile,
  toWireFile,
} from '../../src/replication/wire.js';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { Peers, until } from './peers.js';

/** Peers that know the secret and claim what cannot be, against real nodes: said on both sides, no data touched, others unaffected. */

const SECRET = 'the secret of this cluster';
const NAME = 'app.db';
const HUGE = 18_446_744_073_709_551_615n;

const peers = new Peers();
let cluster: TestCluster | undefined;
afterEach(async () => {
  await peers.end();
  await cluster?.stop();
});

/** A primary that answers each start with `lies`, under `epoch`; to say others it ends the stream, which comes again. */
async function lyingPrimary(): Promise<{
  port: number;
  say(lies: Omit<ToReplica, 'epoch'>[], epoch: bigint): void;
  heard: string[];
}> {
  const server = new Server();
  const heard: string[] = [];
  let now: { lies: Omit<ToReplica, 'epoch'>[]; epoch: bigint } = { lies: [], epoch: 1n };
  let hangUp = (): void => undefined;
  const handlers: ReplicationHandlers = {
    Replicate: (call) => {
      hangUp = () => call.end();
      let down: EnvelopeMac | undefined;
      const { lies, epoch } = now;
      const say = (message: Omit<ToReplica, 'epoch'>): void => {
        const body = encodeToReplica(epoch, message);
        call.write({ body, mac: down!.next(body) });
      };
      call.on('error', () => undefined);
      call.on('data', (envelope) => {
        const { hello, start, failed, probe, goodbye } = decodeToPrimary(envelope.body);
        if (hello) {
          const primaryNonce = Buffer.alloc(32, 2);
          const about = { protocol: 1, clusterId: hello.clusterId, primaryId: 'liar' };
          const both = { ...about, replicaId: hello.nodeId, replicaNonce: hello.nonce, primaryNonce };
          down = new EnvelopeMac(SECRET, both, 'down');
          say({
            challenge: { protocol: 1, clusterId: hello.clusterId, nodeId: 'liar', nonce: primaryNonce },
          });
        }
        if (start) for (const lie of lies) say(lie);
        if (probe) say({ probeAnswer: { id: probe.id, leaseValid: true, positions: [] } });
        if (failed) heard.push(`${failed.code}: ${failed.text}`);
        if (goodbye) call.end();
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
  const say = (lies: Omit<ToReplica, 'epoch'>[], epoch: bigint): void => {
    now = { lies, epoch };
    heard.length = 0;
    hangUp();
  };
  return { port, heard, say };
}

it('believes no peer that claims an impossible position, as a replica or as the primary', async () => {
  cluster = await TestCluster.start({ nodes: 0 });
  const first = await cluster.prepare();
  const second = await cluster.prepare();
  const follow = (node: TestNode, primaryPort: number): void => {
    node.configure('', '2s', {
      config: {
        cluster: { id: 'liars' },
        lease: { type: 'static', candidate: node === first, primary: `127.0.0.1:${primaryPort}` },
        peer: { secret: SECRET },
      },
    });
  };
  for (const node of [first, second]) {
    follow(node, first.peerPort);
    await node.start();
  }
  await first.sql(NAME, 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)', 'INSERT INTO t VALUES (1), (2)');
  await cluster.caughtUp(NAME);
  const epoch = BigInt((await first.status()).epoch);
  const { position: before = '' } = (await first.database(NAME)) ?? {};
  const [txid = 0n, checksum = 0n] = before.split('/').map((hex) => BigInt(`0x${hex}`));
  const at = { database: NAME, txid: String(txid), checksum: String(checksum), epoch: String(epoch) };

  // As a replica.
  const liar = async (nodeId: string) => {
    const raw = peers.raw(first.peerPort, SECRET);
    raw.hello(nodeId, { clusterId: 'liars' });
    await until('the challenge', () => raw.find('challenge') !== undefined);
    return raw;
  };
  const later = await liar('later');
  later.send({ start: { positions: [{ ...at, epoch: String(epoch + 3n) }] } }, epoch);
  expect(await later.refusal()).toMatch(/ERR_REPLICATION_MESSAGE: later claims a transaction of epoch/);
  const never = await liar('never');
  never.send({ start: { positions: [] } }, HUGE);
  expect(await never.refusal()).toMatch(/ERR_REPLICATION_MESSAGE: never claims epoch 18446744073709551615/);
  const ahead = await liar('ahead');
  ahead.send({ start: { positions: [at] } }, epoch);
  ahead.send({ ack: { database: NAME, received: { ...at, txid: String(txid + 1n) } } }, epoch);
  expect(await ahead.refusal()).toMatch(/ERR_REPLICATION_MESSAGE: ahead claims TXID \d+ of app\.db/);
  // Another history is no error: it gets what is here, and what it says of its pages changes nothing.
  const stray = await liar('stray');
  stray.send({ start: { positions: [{ ...at, txid: String(HUGE), checksum: '1' }] } }, epoch);
  await until('the question', () => stray.find('checksumsWanted') !== undefined);
  const { attempt } = stray.find('checksumsWanted')!.checksumsWanted!;
  const pages = { database: NAME, attempt, txid: String(HUGE), checksum: String(HUGE), pages: 4_294_967_295 };
  stray.send({ pageChecksums: { ...pages, checksums: Buffer.alloc(21, 255), last: true } }, epoch);
  await until('pages', () => stray.find('files') !== undefined || stray.find('failed') !== undefined);
  expect(stray.find('failed')).toBeUndefined();
  expect(fromWireFile(stray.find('files')!.files!.files[0]!).maxTxid).toBe(txid);

  const said = (await first.status()).events.map(({ message }) => message).join('\n');
  for (const nodeId of ['later', 'never', 'ahead'])
    expect(said).toMatch(new RegExp(`${nodeId} claims .*cannot be`));
  expect(await first.status()).toMatchObject({ role: 'primary', epoch: String(epoch) });
  expect((await first.database(NAME))?.position).toBe(before);
  await first.sql(NAME, 'INSERT INTO t VALUES (3)');
  await cluster.assertSame(NAME);

  // As the primary.
  const fake = await lyingPrimary();
  await second.stop();
  follow(second, fake.port);
  const position = (await first.database(NAME))!.position;
  const [end = 0n, sum = 0n] = position.split('/').map((hex) => BigInt(`0x${hex}`));
  const next = {
    minTxid: end + 1n,
    maxTxid: end + 1n,
    sizeBytes: 300,
    epoch,
    preApplyChecksum: sum,
    postApplyChecksum: HUGE,
    pageSize: 4096,
    commitPages: 2,
  };
  const send = (file: Partial<typeof next>): Omit<ToReplica, 'epoch'>[] => {
    const wire = toWireFile(NAME, { ...next, ...file });
    return [{ files: { files: [{ ...wire, data: Buffer.alloc(300, 7), last: true }] } }];
  };
  fake.say([], epoch);
  await second.start();
  const refused = async (what: RegExp, lies: Omit<ToReplica, 'epoch'>[], under = epoch): Promise<void> => {
    fake.say(lies, under);
    await waitFor(
      () => `${what}: heard ${fake.heard.join('; ')}; log ${second.logTail(5)}`,
      async () => what.test(fake.heard.join('\n')) || what.test(second.logTail(10)),
    );
    expect((await second.database(NAME))?.position).toBe(position);
  };
  await refused(/ERR_LTX_FOREIGN/, send({}));
  await refused(/does not follow what the log holds/, send({ minTxid: end + 7n, maxTxid: end + 7n }));
  await refused(/ERR_REPLICATION_ORDER: .*TXIDs 9 to 3/, send({ minTxid: 9n, maxTxid: 3n }));
  await refused(/ERR_LTX_FOREIGN/, send({ minTxid: 1n, maxTxid: HUGE, preApplyChecksum: 0n }));
  await refused(/claims epoch 18446744073709551615, which cannot be/, [], HUGE);
  expect(await second.sql(NAME, 'SELECT group_concat(n) FROM t')).toBe('1,2,3');

  await second.stop();
  follow(second, first.peerPort);
  await second.start();
  await first.sql(NAME, 'INSERT INTO t VALUES (4)');
  await cluster.assertSame(NAME);
  expect(await second.status()).toMatchObject({ role: 'replica', epoch: String(epoch) });
});
