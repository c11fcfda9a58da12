import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { openLocalLease } from './local.js';
import type { LeaseAdapter, LeaseRecord } from './types.js';

const RECORD: LeaseRecord = {
  clusterId: 'c',
  epoch: 1n,
  holder: { nodeId: 'a', incarnation: 'a-1', advertiseUrl: '', peerAddress: '' },
  heartbeat: 1n,
  ttlMs: 5000,
  positions: {},
  syncSet: [],
  handoffTo: undefined,
};

let dir: string;
let path: string;
const open: LeaseAdapter[] = [];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-lease-'));
  path = join(dir, 'lease.db');
});

afterEach(async () => {
  await Promise.all(open.splice(0).map((lease) => lease.close()));
  rmSync(dir, { recursive: true });
});

function connect(nodeId: string): LeaseAdapter {
  const lease = openLocalLease({ path, nodeId });
  open.push(lease);
  return lease;
}

test('of two swaps against one version one succeeds, and watchers see it', async () => {
  const [a, b] = [connect('a'), connect('b')];
  const { version, record } = await a.read(1000);
  expect(record).toBeUndefined();
  const watched = b.watch(version, 30_000);
  const next = await a.compareAndSet(version, RECORD, 1000);
  expect(next).toBeDefined();
  expect(await b.compareAndSet(version, { ...RECORD, epoch: 2n }, 1000)).toBeUndefined();
  expect(await watched).toEqual({ version: next, record: RECORD });
});

test('a node that is there is not proven ended, one that closed is, an unknown one is not', async () => {
  const [a, b] = [connect('a'), connect('b')];
  expect(await b.ended!({ nodeId: 'a', incarnation: 'a-1' }, 1000)).toBe(false);
  expect(await b.ended!({ nodeId: 'x', incarnation: 'x-1' }, 1000)).toBe(false);
  await a.close();
  expect(await b.ended!({ nodeId: 'a', incarnation: 'a-1' }, 1000)).toBe(true);
});

test('a second process of one node id is refused', () => {
  connect('a');
  expect(() => connect('a')).toThrow(expect.objectContaining({ code: 'ERR_LEASE_DUPLICATE_NODE' }));
});

test('a lease file that was deleted is made again, and no old version fits it', async () => {
  const a = connect('a');
  const { version } = await a.read(1000);
  for (const end of ['', '-wal', '-shm']) rmSync(path + end, { force: true });
  expect(await a.compareAndSet(version, RECORD, 1000)).toBeUndefined();
  expect((await a.read(1000)).record).toBeUndefined();
});

test('a file that is no lease gives a clear error', async () => {
  writeFileSync(path, 'not a database, but long enough to be looked at as one\n'.repeat(100));
  await expect(connect('a').read(200)).rejects.toMatchObject({ code: 'ERR_LEASE_RECORD' });
});
