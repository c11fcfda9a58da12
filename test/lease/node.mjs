// One node of local-processes.test.ts: writes whenever its lease allows, checked before and after as the
// mount does, and notes each write that it would have answered: `<epoch> <from ns> <to ns>`.
import { appendFileSync } from 'node:fs';
import { join } from 'node:path';

const [dist, dir, nodeId, ttl] = process.argv.slice(2);
const { Lease } = await import(join(dist, 'lease/lease.js'));
const { openLocalLease } = await import(join(dist, 'lease/local.js'));

let epoch = 0n;
let deadlineNs = 0n;
const note = (kind, line) => appendFileSync(join(dir, `${nodeId}.${kind}`), `${line}\n`);

const lease = new Lease({
  adapter: openLocalLease({ path: join(dir, 'lease.db'), nodeId }),
  clusterId: 'test',
  node: { nodeId, advertiseUrl: '', peerAddress: '', candidate: true, region: '', priority: 0 },
  highestEpoch: 0n,
  ttlMs: Number(ttl),
  positions: () => ({}),
  onEvent(event) {
    note('events', `${event.kind} ${event.epoch ?? ''} ${event.reason}`);
    if (event.kind === 'won') lease.ready(event.epoch);
    if (event.kind === 'primary') epoch = event.epoch;
    if (event.kind === 'primary' || event.kind === 'renewed') deadlineNs = event.deadlineNs;
    if (event.kind === 'fenced') deadlineNs = 0n;
  },
});
lease.start();

setInterval(() => {
  const from = process.hrtime.bigint();
  if (from >= deadlineNs) return;
  note('attempts', epoch);
  const to = process.hrtime.bigint();
  if (to < deadlineNs) note('writes', `${epoch} ${from} ${to}`);
}, 5);

process.on('SIGTERM', () => {
  void lease.release().then(() => process.exit(0));
});
