import { createHash, randomUUID } from 'node:crypto';
import { describeDestination } from '../backup/open.js';
import type { Config } from '../config/load.js';
import { formatAddress } from '../config/values.js';
import { KiteError } from '../errors.js';
import type { LeaseAdapter } from '../lease/types.js';
import type { DataDirectory } from '../store/data-directory.js';
import { monotonicMs } from '../util/clock.js';

const TIMEOUT_MS = 5000;

/**
 * The cluster that this node belongs to: what its data directory or its configuration says, else what the lease's
 * record says, else a new one, which is put into the record by compare-and-set so that nodes which
 * start together agree. `found`: the cluster whose backups this node starts from, which it goes on with. Joins it for good. Throws ERR_STORE_OTHER_CLUSTER, ERR_LEASE_OTHER_CLUSTER.
 */
export async function joinCluster(
  data: DataDirectory,
  config: Config,
  adapter: LeaseAdapter,
  found?: FoundCluster,
): Promise<JoinedCluster> {
  const named = config.cluster.id ?? data.clusterId;
  if (found && named !== undefined && named !== found.clusterId) throw otherCluster(found, named);
  const joined =
    named === undefined || (found && data.clusterId === undefined)
      ? await choose(adapter, config, found)
      : { clusterId: named };
  // A name that was mistyped must not mark a new data directory for good.
  if (data.clusterId === undefined && named !== undefined) await checkRecord(adapter, named);
  data.joinCluster(joined.clusterId);
  return joined;
}

export interface JoinedCluster {
  readonly clusterId: string;
  /** The version of the record, when this node has founded the cluster with it. */
  readonly foundedWith?: string;
}

/** A cluster that is known from its backups. */
export interface FoundCluster {
  readonly clusterId: string;
  /** The highest that wrote there. */
  readonly epoch: bigint;
}

async function choose(
  adapter: LeaseAdapter,
  config: Config,
  found: FoundCluster | undefined,
): Promise<JoinedCluster> {
  const joined =
    config.lease.type === 'static'
      ? { clusterId: config.cluster.id ?? staticClusterId(config) }
      : await agree(adapter, config.lease.ttlMs, found);
  if (found && found.clusterId !== joined.clusterId) throw otherCluster(found, joined.clusterId);
  return joined;
}

const otherCluster = ({ clusterId }: FoundCluster, ours: string): KiteError =>
  new KiteError(
    'ERR_BACKUP_OTHER_CLUSTER',
    `the backups are those of cluster ${clusterId}, and this node belongs to ${ours}: set cluster.id to go on with them`,
  );

async function checkRecord(adapter: LeaseAdapter, clusterId: string): Promise<void> {
  const { record } = await adapter.read(TIMEOUT_MS);
  if (!record || record.clusterId === clusterId) return;
  throw new KiteError(
    'ERR_LEASE_OTHER_CLUSTER',
    `the lease belongs to cluster ${record.clusterId}, not ${clusterId}`,
  );
}

/** With a static lease there is nothing to agree in: nodes that name the same primary are one cluster. */
export function staticClusterId(config: Config): string {
  // What follows a bucket is a cluster of its own: its data directory belongs to that bucket.
  if (config.follow) return idOf(describeDestination(config.follow));
  const primary = config.lease.primary ? formatAddress(config.lease.primary) : config.lease.advertiseUrl;
  return idOf(primary);
}

const idOf = (text: string): string =>
  `static-${createHash('sha256').update(text).digest('hex').slice(0, 16)}`;

const WAIT_MS_MIN = 1000;

async function agree(
  adapter: LeaseAdapter,
  ttlMs: number,
  found: FoundCluster | undefined,
): Promise<JoinedCluster> {
  // An empty store may be one that was wiped under a living cluster, whose nodes put themselves back within a heartbeat
  // or two. A cluster founded there meanwhile would stop them all.
  const patientUntilMs = monotonicMs() + (adapter.remote ? (2 * ttlMs) / 5 : 0);
  for (;;) {
    const { record, version } = await adapter.read(TIMEOUT_MS);
    if (record) return { clusterId: record.clusterId };
    const [member] = await adapter.members(TIMEOUT_MS);
    if (member) return { clusterId: member.clusterId };
    const waitMs = patientUntilMs - monotonicMs();
    if (waitMs > 0) {
      // How long it may take to answer goes by how long it shall wait: a rest of milliseconds would be taken for an outage.
      await adapter.watch(version, Math.max(waitMs, WAIT_MS_MIN));
      continue;
    }
    // The epoch too: a store without a record of it would look like one that has lost it.
    const { clusterId, epoch } = found ?? { clusterId: randomUUID(), epoch: 0n };
    const first = {
      clusterId,
      epoch,
      holder: undefined,
      heartbeat: 0n,
      ttlMs,
      positions: {},
      syncSet: [],
      handoffTo: undefined,
    };
    const foundedWith = await adapter.compareAndSet(version, first, TIMEOUT_MS);
    if (foundedWith !== undefined) return { clusterId, foundedWith };
  }
}
