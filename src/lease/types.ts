/** The lease record (DESIGN §7): changed only by compare-and-set. Stored as JSON, bigints as decimal strings. */
export interface LeaseRecord {
  readonly clusterId: string;
  /** Grows by one with every change of holder. */
  readonly epoch: bigint;
  /** undefined: a clean stop without a successor emptied it. */
  readonly holder: LeaseHolder | undefined;
  /** Raised by the holder every ttl/5. */
  readonly heartbeat: bigint;
  readonly ttlMs: number;
  /** Last positions, coarse: database name to `<epoch>:<txid decimal>`. */
  readonly positions: Readonly<Record<string, string>>;
  /** Node ids whose acknowledgements count (trap 3). */
  readonly syncSet: readonly string[];
  /** The node that a hand-off names, and until when it alone may take the lease. */
  readonly handoffTo: string | undefined;
}

export interface LeaseHolder {
  readonly nodeId: string;
  /** Where applications reach it (LiteFS's advertise-url). */
  readonly advertiseUrl: string;
  /** Where peers reach its gRPC server, host:port. */
  readonly peerAddress: string;
}

/** A record and the adapter's version of it, to compare-and-set against. */
export interface VersionedRecord {
  readonly record: LeaseRecord | undefined;
  readonly version: string;
}

/** Member registered beside the record. */
export interface Member extends LeaseHolder {
  readonly candidate: boolean;
  readonly region: string;
  readonly priority: number;
  /** Raised at each registration, so that a dead member is noticed without comparing clocks. */
  readonly seen: bigint;
  /** Random per process start: two processes with one node id differ here. */
  readonly incarnation: string;
  /** Last positions as in LeaseRecord. */
  readonly positions: Readonly<Record<string, string>>;
}

/** A kind of lease. Every call takes a timeout and rejects with ERR_LEASE_UNREACHABLE when it passes. */
export interface LeaseAdapter {
  read(timeoutMs: number): Promise<VersionedRecord>;
  /** Returns the new version, or undefined when the version was no longer current. */
  compareAndSet(expected: string, record: LeaseRecord, timeoutMs: number): Promise<string | undefined>;
  /** Resolves with the record as soon as it differs from `version`, or after `waitMs` with what it is then. */
  watch(version: string, waitMs: number): Promise<VersionedRecord>;
  register(member: Member, timeoutMs: number): Promise<void>;
  members(timeoutMs: number): Promise<readonly Member[]>;
  unregister(nodeId: string, timeoutMs: number): Promise<void>;
  close(): Promise<void>;
}
