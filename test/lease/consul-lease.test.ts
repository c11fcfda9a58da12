import { afterAll, beforeAll, expect, it } from 'vitest';
import { openConsulLease } from '../../src/lease/consul.js';
import { Lease } from '../../src/lease/lease.js';
import { decodeRecord } from '../../src/lease/record.js';
import type { LeaseEvent, LeaseRecord } from '../../src/lease/types.js';
import { waitFor } from '../helpers/cluster.js';
import { TestConsul } from '../helpers/consul.js';

/**
 * The lease of three nodes in a Consul that is killed and started, loses the record, is put back to a snapshot, and
 * loses everything, each for less than the deadline: the primary stays primary under its epoch. The ttl is long enough for a
 * Consul that starts on a busy machine. At no moment may two nodes write.
 */

const TTL_MS = 10_000;
const KEY = 'app/primary';

let consul: TestConsul;
const nodes = new Map<string, { lease: Lease; events: LeaseEvent[]; deadlineNs: bigint }>();
const overlaps: string[] = [];

beforeAll(async () => {
  consul = await TestConsul.start();
});
afterAll(async () => {
  await Promise.all([...nodes.values()].map(({ lease }) => lease.stop()));
  await consul.stop();
});

function start(nodeId: string, foundedWith?: string): void {
  const events: LeaseEvent[] = [];
  const lease = new Lease({
    adapter: openConsulLease({ url: consul.url, key: KEY }),
    clusterId: 'c',
    node: { nodeId, advertiseUrl: '', peerAddress: '', candidate: true, region: '', priority: 0 },
    highestEpoch: 0n,
    foundedWith,
    ttlMs: TTL_MS,
    positions: () => ({}),
    followed: () => true,
    onEvent(event) {
      events.push(event);
      if (event.kind === 'won') lease.ready(event.epoch);
      if (event.kind === 'fenced') node.deadlineNs = 0n;
      if (event.kind !== 'primary' && event.kind !== 'renewed') return;
      node.deadlineNs = event.deadlineNs;
      for (const [other, { deadlineNs }] of nodes) {
        if (other !== nodeId && deadlineNs > process.hrtime.bigint()) overlaps.push(`${nodeId} and ${other}`);
      }
    },
  });
  const node = { lease, events, deadlineNs: 0n };
  nodes.set(nodeId, node);
  lease.start();
}

const kinds = (nodeId: string): string[] => nodes.get(nodeId)!.events.map((event) => event.kind);

const stored = async (): Promise<LeaseRecord | undefined> =>
  await consul.get(KEY).then(decodeRecord, () => undefined);

/** Waits until the record is this node's, of this epoch, and its heartbeat goes on. */
async function beats(nodeId: string, epoch: bigint): Promise<void> {
  let first: bigint | undefined;
  await waitFor(
    () =>
      `a heartbeat of ${nodeId}:\n${JSON.stringify(nodes.get(nodeId)!.events.slice(-5), (_, v: unknown) => (typeof v === 'bigint' ? String(v) : v))}`,
    async () => {
      const record = await stored();
      if (record?.holder?.nodeId !== nodeId || record.epoch !== epoch) return false;
      first ??= record.heartbeat;
      return record.heartbeat > first;
    },
  );
}

it('keeps its primary through a Consul that is killed, forgets, or goes back, for less than the deadline', async () => {
  const founding = openConsulLease({ url: consul.url, key: KEY });
  const blank = { heartbeat: 0n, ttlMs: TTL_MS, positions: {}, syncSet: [], handoffTo: undefined };
  const first = { ...blank, clusterId: 'c', epoch: 0n, holder: undefined };
  start('a', await founding.compareAndSet('0', first, 5000));
  await founding.close();
  await beats('a', 1n);
  start('b');
  start('c');
  await waitFor('three members', () => nodes.get('a')!.lease.members.length === 3);
  const snapshot = await consul.saveSnapshot();

  await consul.kill();
  await consul.up();
  await beats('a', 1n);

  await consul.delete(KEY);
  await beats('a', 1n);
  expect(kinds('a')).not.toContain('fenced');

  await nodes.get('a')!.lease.handOff('b');
  await beats('b', 2n);
  await consul.restoreSnapshot(snapshot);
  await beats('b', 2n);

  await consul.wipe();
  await consul.up();
  await beats('b', 2n);
  expect(kinds('b')).not.toContain('fenced');
  expect(kinds('c')).not.toContain('won');
  expect(kinds('a').filter((kind) => kind === 'won')).toHaveLength(1);
  expect(overlaps).toEqual([]);
  await waitFor('the members to be there again', () => nodes.get('c')!.lease.members.length === 3);
});
