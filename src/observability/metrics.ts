import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import { isPrimary, type NodeStatus } from './node-status.js';

/**
 * All metrics of a node. Gauges are read from the status when Prometheus asks; counters and histograms
 * are moved by the part that sees the thing happen.
 */
export class Metrics {
  readonly registry = new Registry();

  readonly commits = this.#counter('kitefs_db_commit_count', 'Transactions captured on this node.', ['db']);
  readonly commitBytes = this.#counter('kitefs_db_commit_bytes', 'Bytes of LTX made from them.', ['db']);
  readonly applied = this.#counter('kitefs_db_apply_count', 'Transactions applied from the primary.', ['db']);
  readonly applySeconds = new Histogram({
    name: 'kitefs_apply_seconds',
    help: 'Time from handing waiting log files to the applier until readers see the last of them.',
    buckets: [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5],
    registers: [this.registry],
  });
  readonly commitWaitSeconds = new Histogram({
    name: 'kitefs_commit_wait_seconds',
    help: 'Time that a COMMIT waited for replicas, after it was in the log.',
    buckets: [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30],
    registers: [this.registry],
  });
  readonly snapshots = this.#counter(
    'kitefs_snapshot_count',
    'Whole databases sent to replicas, or received.',
    ['direction'],
  );
  readonly differences = this.#counter(
    'kitefs_difference_count',
    'Databases brought to the primary’s state by the pages that differed, sent or received.',
    ['direction'],
  );
  readonly streamBytes = this.#counter(
    'kitefs_stream_bytes',
    'Bytes of messages to and from the replicas of this node.',
    ['direction'],
  );
  readonly compensated = this.#counter(
    'kitefs_compensated_count',
    'Transactions that undo what a dead writer had appended and nobody saw.',
    ['db'],
  );
  readonly lostTransactions = this.#counter(
    'kitefs_lost_transaction_count',
    'Transactions of this node that the cluster may not have; kept in lost+found.',
    ['db'],
  );
  readonly refused = this.#counter(
    'kitefs_mount_refused_count',
    'Requests of applications that the mount refused.',
    ['reason'],
  );
  readonly events = this.#counter('kitefs_event_count', 'Events of the node by kind.', ['kind']);
  readonly applierRestarts = this.#counter(
    'kitefs_applier_restart_count',
    'Times the applier was started again.',
    [],
  );

  /** Litestream's name: its dashboards go on. */
  readonly backupOperations = this.#counter(
    'litestream_replica_operation_total',
    'Requests that made an object at a destination of backups.',
    ['replica_type', 'operation'],
  );
  readonly backupBytes = this.#counter(
    'litestream_replica_operation_bytes',
    'Bytes of objects made at a destination of backups.',
    ['replica_type', 'operation', 'db'],
  );
  readonly backupErrors = this.#counter(
    'litestream_replica_operation_errors_total',
    'Failed attempts at a destination of backups.',
    ['replica_type'],
  );
  readonly backupRestarts = this.#counter(
    'kitefs_backup_restart_count',
    'Times the backup process was started again.',
    [],
  );

  readonly proxyRequests = this.#counter(
    'kitefs_proxy_request_count',
    'Requests that the proxy has answered: what they were, who answered (local, primary, replay, proxy itself), the status.',
    ['kind', 'by', 'code'],
  );
  readonly proxyRestarts = this.#counter(
    'kitefs_proxy_restart_count',
    'Times the proxy was started again.',
    [],
  );

  constructor(status: () => NodeStatus) {
    collectDefaultMetrics({ register: this.registry });
    for (const [name, help, read] of [...NODE_GAUGES, ...DURABILITY_GAUGES, ...DRILL_GAUGES]) {
      this.#gauge(name, help, [], (gauge) => gauge.set(read(status())));
    }
    this.#gauge('kitefs_node_state', 'State of the node: 1 for the one it is in.', ['state'], (gauge) => {
      gauge.reset();
      gauge.set({ state: status().role }, 1);
    });
    for (const [name, help, read] of BACKUP_GAUGES) {
      this.#gauge(name, help, ['db', 'destination'], (gauge) => {
        gauge.reset();
        for (const { url, databases } of status().backups) {
          for (const database of databases)
            gauge.set({ db: database.name, destination: url }, read(database));
        }
      });
    }
    for (const [name, help, read] of DATABASE_GAUGES) {
      this.#gauge(name, help, ['db'], (gauge) => {
        // A dropped database must not live on with its last value.
        gauge.reset();
        for (const database of status().databases) gauge.set({ db: database.name }, read(database));
      });
    }
  }

  #counter(name: string, help: string, labelNames: readonly string[]): Counter {
    return new Counter({ name, help, labelNames: [...labelNames], registers: [this.registry] });
  }

  #gauge(name: string, help: string, labelNames: readonly string[], collect: (gauge: Gauge) => void): void {
    const gauge: Gauge = new Gauge({
      name,
      help,
      labelNames: [...labelNames],
      registers: [this.registry],
      collect: () => collect(gauge),
    });
  }
}

type DatabaseStatus = NodeStatus['databases'][number];

const NODE_GAUGES: readonly (readonly [string, string, (status: NodeStatus) => number])[] = [
  ['kitefs_is_primary', '1 on the primary.', ({ role }) => Number(isPrimary(role))],
  [
    'kitefs_ready',
    '1 when the mount serves and the databases have been caught up.',
    ({ ready }) => Number(ready),
  ],
  ['kitefs_epoch', 'Grows with every change of primary.', ({ epoch }) => Number(epoch)],
  [
    'kitefs_lease_remaining_seconds',
    'How long the primary may write without a renewal; 0 elsewhere.',
    ({ leaseRemainingMs }) => (leaseRemainingMs ?? 0) / 1000,
  ],
  ['kitefs_db_count', 'Databases on this node.', ({ databases }) => databases.length],
  [
    'kitefs_subscriber_count',
    'Replicas whose stream is connected to this node.',
    ({ members }) => members.filter(({ connected }) => connected).length,
  ],
];

const DURABILITY_GAUGES: typeof NODE_GAUGES = [
  [
    'kitefs_commit_waiting_count',
    'Commits that wait for replicas now.',
    ({ durability }) => durability?.waiting ?? 0,
  ],
  [
    'kitefs_durability_degraded',
    'Databases whose commits return without the replicas that they should wait for.',
    ({ durability }) => durability?.degraded.length ?? 0,
  ],
  [
    'kitefs_sync_set_size',
    'Nodes that may open after a failover, the primary included; 0: any candidate.',
    ({ durability }) => durability?.syncSet.length ?? 0,
  ],
];

const secondsOf = (time: string | undefined): number => (time === undefined ? 0 : Date.parse(time) / 1000);

const DRILL_GAUGES: typeof NODE_GAUGES = [
  [
    'kitefs_drill_ok',
    'Whether the last drill of this node found its backups right; -1 when there was none.',
    ({ drill }) => (drill ? Number(drill.ok) : -1),
  ],
  [
    'kitefs_drill_timestamp_seconds',
    'When the last drill of this node ended; 0 when there was none.',
    ({ drill }) => secondsOf(drill?.endedAt),
  ],
  [
    'kitefs_drill_restore_seconds',
    'How long restoring the latest state of all databases from the slowest destination took in the last drill.',
    ({ drill }) => drill?.restoreSeconds ?? 0,
  ],
];

type BackedUp = NodeStatus['backups'][number]['databases'][number];

const BACKUP_GAUGES: readonly (readonly [string, string, (database: BackedUp) => number])[] = [
  [
    'kitefs_backup_lag_seconds',
    'Age of the oldest transaction that a destination of backups does not have.',
    ({ lagMs }) => lagMs / 1000,
  ],
  [
    'kitefs_backup_txid',
    'Last transaction of the cluster at a destination of backups.',
    ({ txid }) => Number.parseInt(txid, 16),
  ],
];

const txidOf = (position: string): number => Number.parseInt(position.slice(0, 16), 16);

const DATABASE_GAUGES: readonly (readonly [string, string, (database: DatabaseStatus) => number])[] = [
  ['kitefs_db_txid', 'Last transaction in the log of this node.', ({ position }) => txidOf(position)],
  [
    'kitefs_db_applied_txid',
    'Last transaction that readers see.',
    (database) => txidOf(database.appliedPosition),
  ],
  ['kitefs_db_lag_transactions', 'Transactions behind the primary.', (database) => database.lagTransactions],
  [
    'kitefs_db_lag_seconds',
    'How old the data can be at most; -1 before anything was heard from a primary.',
    ({ maxAgeMs }) => (maxAgeMs === undefined ? -1 : maxAgeMs / 1000),
  ],
  ['kitefs_db_size_bytes', 'Size of the database.', ({ sizeBytes }) => sizeBytes],
  ['kitefs_db_wal_bytes', 'Size of its write-ahead log.', ({ walBytes }) => walBytes],
  ['kitefs_db_ltx_count', 'Files in its transaction log.', ({ logFiles }) => logFiles],
  [
    'kitefs_db_check_ratio',
    'How much of it the full check behind the last start has read; 1 when all of it.',
    ({ check }) => (check ? check.checkedPages / Math.max(1, check.pages) : 0),
  ],
  ['kitefs_db_error', '1 when the database does not serve.', ({ error }) => Number(error !== undefined)],
];
