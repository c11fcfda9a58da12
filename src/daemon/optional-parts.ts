import { join } from 'node:path';
import { Backups } from '../backup/backups.js';
import type { Config } from '../config/load.js';
import { Drills } from '../drill/drills.js';
import type { Logger } from '../observability/log.js';
import type { Metrics } from '../observability/metrics.js';
import { Proxy } from '../proxy/proxy.js';
import type { DataDirectory } from '../store/data-directory.js';
import type { EventLog } from './event-log.js';
import { databaseView, nodeFacts, proxySettings, type FactSources, type Freshness } from './node-proxy.js';
import type { ChangeMark } from '../util/change-mark.js';
import type { NodeStore } from './node-store.js';

/** What parts that only some configurations have are made from. */
export interface PartsOptions {
  readonly config: Config;
  readonly data: DataDirectory;
  readonly tmpDir: string;
  readonly store: NodeStore;
  readonly logger: Logger;
  readonly events: EventLog;
  readonly metrics: Metrics;
}

/** Backups, when there is a destination; `onShipped` is told of each database that has more in all of them. */
export function startBackups(of: PartsOptions, onShipped: (name: string) => void): Backups | undefined {
  const { config, tmpDir, store, logger, events, metrics } = of;
  if (config.backups.length === 0) return undefined;
  const started = Backups.start({
    backups: config.backups,
    dataDir: config.data.dir,
    tmpDir,
    logs: {
      filesAfter: (name, position) => Promise.resolve(store.rangesAfter(name, position)),
      contains: (name, position) => Promise.resolve(store.contains(name, position)),
      copy: (name) => store.copyToFile(name),
      logEnds: () => store.logEnds(),
      hold: (name, afterTxid) => store.hold(name, afterTxid),
    },
    logger,
    onEvent: ({ kind, message, name, level }) => {
      events.add(kind, message, { level, ...(name !== undefined && { database: name }) });
    },
    onPut: (type, name, sizeBytes) => {
      metrics.backupOperations.inc({ replica_type: type, operation: 'PUT' });
      metrics.backupBytes.inc({ replica_type: type, operation: 'PUT', db: name }, sizeBytes);
    },
    onError: (type) => metrics.backupErrors.inc({ replica_type: type }),
    onRestart: () => metrics.backupRestarts.inc(),
    onShipped,
  });
  store.subscribe((change) => {
    if (change.kind === 'transaction') started.logged(change.name, change.file.maxTxid);
  });
  return started;
}

/** Drills, when they are scheduled. */
export function startDrills(of: PartsOptions): Drills | undefined {
  const { config, data, tmpDir, store, logger, events } = of;
  const { drill, backups } = config;
  if (drill.intervalMs === 0) return undefined;
  return new Drills({
    settings: drill,
    backups,
    dataDir: config.data.dir,
    scratchDir: join(drill.dir ?? tmpDir, `kitefs-drill-${data.node.nodeId}`),
    hasDatabases: () => store.databases().length > 0,
    logger,
    onEvent: (kind, message, level) => events.add(kind, message, { level }),
  });
}

/**
 * The HTTP proxy, when it has an address and a target. `facts` and `freshness` are asked whenever it wants to know; `mark` is touched
 * before readers here can see anything new.
 */
export async function startProxy(
  of: PartsOptions,
  node: {
    readonly facts: () => FactSources;
    readonly freshness: Freshness;
    readonly mark: ChangeMark | undefined;
  },
): Promise<Proxy | undefined> {
  const { config, store, logger, metrics } = of;
  const settings = proxySettings(config);
  if (!settings) return undefined;
  const proxy = await Proxy.start({
    settings,
    mark: node.mark,
    logger,
    facts: () => nodeFacts(node.facts()),
    databases: () => store.databases(),
    database: (name) => databaseView(name, store, node.facts().role, node.freshness),
    seen: async (names) => {
      const seen = await Promise.all(names.map(async (name) => [name, await store.seen(name)] as const));
      return new Map(seen.flatMap(([name, position]) => (position ? [[name, position]] : [])));
    },
    onRestart: () => metrics.proxyRestarts.inc(),
    onCounted: (counted) => {
      for (const { kind, by, status, count } of counted)
        metrics.proxyRequests.inc({ kind, by, code: String(status) }, count);
    },
  });
  store.subscribe(({ name }) => proxy.databaseChanged(name));
  return proxy;
}
