/**
 * What a node says of itself: GET /status, `kitefs status`, `.kitefs/status.json` in the mount. Plain
 * JSON: TXIDs and checksums as in `-pos` files, epochs as decimal strings, times in milliseconds.
 */
export interface NodeStatus {
  readonly version: string;
  readonly nodeId: string;
  readonly clusterId: string;
  readonly role: NodeRole;
  /** The mount serves, and on a replica every database has been caught up once. */
  readonly ready: boolean;
  readonly candidate: boolean;
  readonly region: string;
  /** Decimal. */
  readonly epoch: string;
  /** undefined: no primary is known. */
  readonly primary: PrimaryStatus | undefined;
  /** How long this node may still write without a renewal of the lease; undefined unless it is primary. */
  readonly leaseRemainingMs: number | undefined;
  readonly mount: { readonly dir: string; readonly driver: string };
  readonly dataDir: string;
  readonly databases: readonly DatabaseStatus[];
  /** How commits that wait for replicas stand; undefined when none does here. */
  readonly durability?: DurabilityStatus | undefined;
  /** One for each entry of `backups`, in their order; what is shipped is known on the primary only. */
  readonly backups: readonly BackupStatus[];
  /** The last drill that this node has made; undefined when there was none. */
  readonly drill?: DrillStatus | undefined;
  /** Files in the mount that are no database and stay on this node (`fuse.other-files: local`). */
  readonly otherFiles: readonly string[];
  readonly members: readonly MemberStatus[];
  /** The most recent ones, oldest first. */
  readonly events: readonly NodeEvent[];
}

/**
 * Of a node: `candidate` has won the lease and gets ready, `fenced` holds it and may not write, `draining` hands it over.
 * src/daemon/node-state.ts says what may follow on what.
 */
export type NodeRole = 'starting' | 'replica' | 'candidate' | 'primary' | 'fenced' | 'draining' | 'closed';

/** Whether it is the primary as far as others are concerned, though it may be about to hand that over. */
export const isPrimary = (role: NodeRole): boolean => role === 'primary' || role === 'draining';

export interface PrimaryStatus {
  readonly nodeId: string;
  readonly advertiseUrl: string;
  readonly peerAddress: string;
}

export interface DatabaseStatus {
  readonly name: string;
  /** `<txid>/<checksum>`: end of the log of this node. */
  readonly position: string;
  /** What readers of this node see; on the primary the same as `position`. */
  readonly appliedPosition: string;
  /** Transactions between the primary's position as last heard of and `appliedPosition`. */
  readonly lagTransactions: number;
  /** How old the data can be at most; 0 on the primary; undefined: nothing heard from a primary yet. */
  readonly maxAgeMs: number | undefined;
  readonly sizeBytes: number;
  readonly logFiles: number;
  readonly walBytes: number;
  /** How many of its pages the full check behind the last start has read; undefined: it has not begun, or there is none. */
  readonly check: { readonly checkedPages: number; readonly pages: number } | undefined;
  /** A replica writes it now (HALT); known on that replica and on the primary. */
  readonly halt?: HaltStatus | undefined;
  /** Why this database does not serve, or undefined. */
  readonly error: string | undefined;
}

export interface HaltStatus {
  /** The replica that writes. */
  readonly nodeId: string;
  /** The number that whoever asked for it has chosen. */
  readonly id: number;
  /** When it ends unless it is renewed. */
  readonly remainingMs: number;
}

export interface DurabilityStatus {
  /** On the primary: node ids that may open after a failover, as in the lease record; empty: any candidate. */
  readonly syncSet: readonly string[];
  /** Commits that wait for replicas now. */
  readonly waiting: number;
  /** Databases whose commits return without the replicas that they should wait for (`on-timeout: degrade`). */
  readonly degraded: readonly string[];
}

/** A destination of backups. */
export interface BackupStatus {
  /** Without secrets. */
  readonly url: string;
  readonly type: string;
  /** What is wrong with the destination as a whole; undefined: nothing. */
  readonly error: string | undefined;
  readonly databases: readonly {
    readonly name: string;
    /** The last transaction of the cluster that is there, 16 hex digits; 0: not known yet. */
    readonly txid: string;
    /** The bucket's own number of the last object of level 0. */
    readonly level0: string;
    /** Age of the oldest transaction that is not there; 0: all are. */
    readonly lagMs: number;
    readonly error: string | undefined;
  }[];
}

/** What a drill of the backups has found (kitefs drill, drill.interval). */
export interface DrillStatus {
  /** ISO 8601, UTC. */
  readonly startedAt: string;
  readonly endedAt: string;
  readonly ok: boolean;
  readonly restores: number;
  /** Restoring the latest state of all databases from the slowest destination. */
  readonly restoreSeconds: number;
  readonly problems: readonly string[];
  /** Where the whole report is. */
  readonly report: string;
}

export interface MemberStatus {
  readonly nodeId: string;
  readonly advertiseUrl: string;
  readonly peerAddress: string;
  readonly candidate: boolean;
  readonly region: string;
  readonly priority: number;
  /** Whether its stream is connected to this node now (known on the primary only). */
  readonly connected: boolean;
  /** On the primary: how many of its transactions a connected member has not said to have in its log. */
  readonly lagTransactions?: number | undefined;
}

/** Something that a person may want to know of later: a change of role, a loss, a refusal. */
export interface NodeEvent {
  /** ISO 8601, UTC. */
  readonly time: string;
  /** kebab-case: `primary`, `fenced`, `lost-transactions`… */
  readonly kind: string;
  readonly message: string;
  readonly database?: string;
}
