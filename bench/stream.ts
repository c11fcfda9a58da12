/**
 * What the stream alone costs, from a primary's log to a replica's in another process on loopback, with
 * logs in memory: `npm run bench stream`. Prints commit-to-received latency at 500 transactions/s, small transactions/s
 * and MB/s of large ones, without and with a cluster secret.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { ReplicationClient } from '../src/replication/client.js';
import { ReplicationServer } from '../src/replication/server.js';
import { monotonicMs } from '../src/util/clock.js';
import { MemoryStore } from '../test/replication/memory-store.js';

const SECRET = 'the secret of a benchmark';
const LATENCY_COMMITS = 2000;
const SMALL_COMMITS = 20_000;
const LARGE_COMMITS = 24;
const LARGE_BYTES = 16 * 1024 * 1024;

/** The replica's process: tells when each TXID of `name` was in its log. */
function replica(port: number, name: string, lastTxid: bigint, secret: string | undefined): void {
  const store = new MemoryStore('replica');
  const times: number[] = [];
  store.subscribe((change) => {
    if (change.kind !== 'applied' || change.name !== name) return;
    const txid = store.position(name)!.txid;
    times[Number(txid)] = monotonicMs();
    if (txid === lastTxid) process.send!(times);
  });
  ReplicationClient.start({ primaryAddress: `127.0.0.1:${port}`, store, secret });
}

/** Commits `count` times and returns commit-to-received times in ms, and the seconds it took in all. */
async function measure(
  count: number,
  sizeBytes: number,
  gapMs: number,
  secret: string | undefined,
): Promise<{ latencies: number[]; seconds: number }> {
  const store = new MemoryStore('primary');
  const server = await ReplicationServer.start({
    address: '127.0.0.1:0',
    store,
    secret,
    role: () => ({ primary: true, epoch: 1n, leaseValid: true }),
  });
  const args = ['replica', String(server.port), 'a.db', String(count), secret ?? ''];
  const child = fork(process.argv[1]!, args, { serialization: 'advanced' });
  while (server.replicas().length === 0) await sleep(5);
  const arrived = once(child, 'message');
  const committed: number[] = [];
  const begun = monotonicMs();
  for (let txid = 1; txid <= count; txid++) {
    const due = begun + txid * gapMs;
    if (txid % 50 === 0) await turn();
    // Turns of the event loop, no timer: timers are too coarse for an even rate.
    while (monotonicMs() < due) await turn();
    committed[txid] = monotonicMs();
    store.commit('a.db', sizeBytes);
  }
  const [times] = (await arrived) as [number[]];
  child.kill();
  await server.stop({ drainMs: 0 });
  const latencies = committed.slice(1).map((at, index) => times[index + 1]! - at);
  return { latencies, seconds: (times[count]! - begun) / 1000 };
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const quantile = (values: readonly number[], q: number): number =>
  values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * q)]!;

async function main(): Promise<void> {
  const rows = [];
  for (const secret of [undefined, SECRET]) {
    const paced = await measure(LATENCY_COMMITS, 600, 2, secret);
    const small = await measure(SMALL_COMMITS, 600, 0, secret);
    const large = await measure(LARGE_COMMITS, LARGE_BYTES, 0, secret);
    rows.push({
      secret: secret === undefined ? 'no' : 'yes',
      'p50 ms at 500/s': quantile(paced.latencies, 0.5).toFixed(2),
      'p99 ms at 500/s': quantile(paced.latencies, 0.99).toFixed(2),
      'small transactions/s': Math.round(SMALL_COMMITS / small.seconds),
      'large MB/s': Math.round((LARGE_COMMITS * LARGE_BYTES) / 1e6 / large.seconds),
    });
  }
  console.table(rows);
}

const [role, port, name, lastTxid, secret] = process.argv.slice(2);
if (role === 'replica') replica(Number(port), name!, BigInt(lastTxid!), secret === '' ? undefined : secret);
else await main();
