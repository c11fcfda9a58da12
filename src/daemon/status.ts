import { statSync } from 'node:fs';
import type { Config } from '../config/load.js';
import type { DurabilityState } from '../durability/durability.js';
import { MountState, type ControlBlock } from '../fuse/control-block.js';
import type { LeaseHolder, Member } from '../lease/types.js';
import { formatPosition, NO_POSITION } from '../ltx/position.js';
import {
  isPrimary,
  type BackupStatus,
  type DatabaseStatus,
  type DrillStatus,
  type HaltStatus,
  type NodeEvent,
  type NodeRole,
  type NodeStatus,
} from '../observability/node-status.js';
import type { Upstream } from '../follow/bucket-follower.js';
import type { ReplicaStatus } from '../replication/server.js';
import { databasePaths } from '../store/data-directory.js';
import { monotonicNs } from '../util/clock.js';
import { VERSION } from '../util/version.js';
import type { NodeStore } from './node-store.js';

/** What a status is made from. */
export interface StatusSources {
  readonly config: Config;
  readonly control: ControlBlock;
  readonly store: NodeStore;
  readonly clusterId: string;
  readonly role: NodeRole;
  readonly ready: boolean;
  readonly holder: LeaseHolder | undefined;
  readonly members: readonly Member[];
  readonly client: Upstream | undefined;
  readonly replicas: readonly ReplicaStatus[];
  readonly durability: DurabilityState | undefined;
  /** The replica that writes a database now. */
  readonly halt: (name: string) => HaltStatus | undefined;
  readonly backups: readonly BackupStatus[];
  readonly drill: DrillStatus | undefined;
  readonly otherFiles: readonly string[];
  readonly events: readonly NodeEvent[];
}

export function makeStatus(from: StatusSources): NodeStatus {
  const { config, control, store, role, holder, members, replicas } = from;
  const serves = isPrimary(role);
  const connected = new Map(replicas.map((replica) => [replica.nodeId, replica]));
  return {
    version: VERSION,
    nodeId: store.nodeId,
    clusterId: from.clusterId,
    role,
    ready: from.ready,
    candidate: config.lease.candidate,
    region: config.node.region,
    epoch: String(store.epoch()),
    primary: holder && {
      nodeId: holder.nodeId,
      advertiseUrl: holder.advertiseUrl,
      peerAddress: holder.peerAddress,
    },
    leaseRemainingMs: serves ? remainingMs(control) : undefined,
    mount: { dir: config.fuse.dir, driver: config.fuse.driver },
    dataDir: config.data.dir,
    databases: store.databases().flatMap((name) => databaseStatus(name, from) ?? []),
    durability: from.durability,
    backups: from.backups,
    drill: from.drill,
    otherFiles: from.otherFiles,
    members: members.map(({ nodeId, advertiseUrl, peerAddress, candidate, region, priority }) => ({
      nodeId,
      advertiseUrl,
      peerAddress,
      candidate,
      region,
      priority,
      connected: connected.has(nodeId),
      lagTransactions: lagOf(store, connected.get(nodeId)),
    })),
    events: from.events,
  };
}

/** What would be lost at this moment, as far as is known, if nobody but this replica were left. */
function lagOf(store: NodeStore, replica: ReplicaStatus | undefined): number | undefined {
  if (!replica) return undefined;
  let lag = 0n;
  for (const name of store.databases()) {
    const [end = 0n, has = 0n] = [store.position(name)?.txid, replica.databases.get(name)?.received?.txid];
    if (end > has) lag += end - has;
  }
  return Number(lag);
}

/** A database; undefined when it was dropped and only its log is left. */
function databaseStatus(
  name: string,
  { store, client, role, config, halt }: StatusSources,
): DatabaseStatus | undefined {
  const last = store.lastFile(name);
  if (!last || last.commitPages === 0) return undefined;
  const paths = databasePaths(config.data.dir, name);
  const serves = isPrimary(role);
  const freshness = serves ? undefined : client?.freshness(name);
  return {
    name,
    position: formatPosition(store.position(name) ?? NO_POSITION),
    appliedPosition: formatPosition(store.appliedPosition(name) ?? NO_POSITION),
    lagTransactions: freshness?.lagTransactions ?? 0,
    maxAgeMs: serves ? 0 : freshness?.maxAgeMs,
    sizeBytes: last.commitPages * last.pageSize,
    logFiles: store.logFileCount(name),
    walBytes: sizeOf(paths.wal),
    check: store.check(name),
    halt: halt(name),
    error: store.error(name)?.describe(),
  };
}

export function remainingMs(control: ControlBlock): number {
  if (control.state !== MountState.primary) return 0;
  return Math.max(0, Number(control.deadlineNs - monotonicNs()) / 1e6);
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}
