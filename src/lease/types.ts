/** The lease record (DESIGN §7): changed only by compare-and-set. Stored as JSON, bigints as decimal strings. */
export interface LeaseRecord {
  readonly clusterId: string;
  /** Grows with every change of holder. */
  readonly epoch: bigint;
  /** undefined: a clean stop or a hand-off emptied it. */
  readonly holder: LeaseHolder | undefined;
  /** Raised by the holder at each renewal (schedule.ts). */
  readonly heartbeat: bigint;
  /** What the holder's deadline was computed with, so what others must wait. */
  readonly ttlMs: number;
  /** Last positions, coarse: database name to `<epoch>:<txid decimal>`. */
  readonly positions: LeasePositions;
  /** Node ids whose acknowledgements count (trap 3). Empty: asynchronous, any candidate may win. */
  readonly syncSet: readonly string[];
  /** Only with an empty holder: the node that a hand-off names. It alone may take the lease for one ttl. */
  readonly handoffTo: string | undefined;
}

/** Database name to `<epoch of the last transaction>:<txid>`, both decimal. */
export type LeasePositions = Readonly<Record<string, string>>;

/** One process of a node: a restarted node is another process, told apart by its incarnation. */
export interface NodeProcess {
  readonly nodeId: string;
  /** Random per process start: two processes with one node id differ here. */
  readonly incarnation: string;
}

export interface LeaseHolder extends NodeProcess {
  /** Where applications reach it (LiteFS's advertise-url). */
  readonly advertiseUrl: string;
  /** Where peers reach its gRPC server, host:port. */
  readonly peerAddress: string;
  /** Where peers reach its HTTP proxy, host:port; undefined: it has none, or is of a version without. */
  readonly proxyAddress?: string | undefined;
  /** Its Fly.io Machine. */
  readonly instance?: string | undefined;
}

/** A record and the adapter's version of it, to compare-and-set against. */
export interface VersionedRecord {
  /** undefined: nothing was ever stored, or it was deleted. */
  readonly record: LeaseRecord | undefined;
  /** Never the same for two different contents of the record. */
  readonly version: string;
}

/** Member registered beside the record. */
export interface Member extends LeaseHolder {
  readonly clusterId: string;
  readonly candidate: boolean;
  readonly region: string;
  readonly priority: number;
  /** Highest epoch it knows: a lost record must not start again below it. */
  readonly epoch: bigint;
  /** Raised at each registration, so that a dead member is noticed without comparing clocks. */
  readonly seen: bigint;
  /** Last positions as in LeaseRecord. */
  readonly positions: LeasePositions;
}

/**
 * A kind of lease. Every call takes a timeout and rejects with ERR_LEASE_UNREACHABLE when it passes;
 * a call that timed out may still be carried out later.
 */
export interface LeaseAdapter {
  /**
   * The store lives apart from the nodes, as Consul does: it may be wiped or put back to an older state while
   * they run, and each write costs it something.
   */
  readonly remote?: boolean;
  /** A read that sees every compare-and-set answered before it (consistent, not from a follower). */
  read(timeoutMs: number): Promise<VersionedRecord>;
  /** Returns the new version, or undefined when the version was no longer current. */
  compareAndSet(expected: string, record: LeaseRecord, timeoutMs: number): Promise<string | undefined>;
  /** Resolves with the record as soon as it differs from `version`, or after `waitMs` with what it is then. */
  watch(version: string, waitMs: number): Promise<VersionedRecord>;
  register(member: Member, timeoutMs: number): Promise<void>;
  members(timeoutMs: number): Promise<readonly Member[]>;
  unregister(nodeId: string, timeoutMs: number): Promise<void>;
  /**
   * Whether it is proven that this process has ended (an operating system's lock that it kept is free),
   * so that nobody need wait for its ttl. Absent or false: nothing is known.
   */
  ended?(process: NodeProcess, timeoutMs: number): Promise<boolean>;
  close(): Promise<void>;
}

/** What this node is, as the configuration says. */
export interface LeaseNode {
  readonly nodeId: string;
  readonly advertiseUrl: string;
  readonly peerAddress: string;
  readonly proxyAddress?: string | undefined;
  readonly instance?: string | undefined;
  /** false: never becomes primary. */
  readonly candidate: boolean;
  readonly region: string;
  /** Among candidates with equal positions the higher one goes first. */
  readonly priority: number;
}

/** What the lease decided, each with the reason in words, in the order in which it holds. */
export type LeaseEvent =
  /**
   * This node holds the lease under a new epoch and must make itself ready: keep the epoch in node.json,
   * recover, pull what it lacks, then call `ready(epoch)` or `giveUp(why)`. It may not write yet.
   * `recorded` is how far the previous primary was, as far as the record says. `complete`: it saw that this node has everything.
   * `mustFetch`: this node may open only when it has got that from others.
   */
  | {
      readonly kind: 'won';
      readonly epoch: bigint;
      readonly recorded: LeasePositions;
      readonly complete: boolean;
      readonly mustFetch: boolean;
      readonly reason: string;
    }
  /** Applications may write until the deadline (monotonic ns). Also after `fenced`, under the same epoch. */
  | { readonly kind: 'primary'; readonly epoch: bigint; readonly deadlineNs: bigint; readonly reason: string }
  | { readonly kind: 'renewed'; readonly epoch: bigint; readonly deadlineNs: bigint; readonly reason: string }
  /** Applications may not write from now on; `primary` or `replica` follows. */
  | { readonly kind: 'fenced'; readonly epoch: bigint; readonly reason: string }
  /** Not holder. `of` undefined: no primary is known (yet). */
  | {
      readonly kind: 'replica';
      readonly epoch: bigint;
      readonly of: LeaseHolder | undefined;
      readonly reason: string;
    }
  /** The lease is free or its holder silent, and this node does not take it, or not yet. */
  | { readonly kind: 'waiting'; readonly reason: string }
  | { readonly kind: 'unreachable'; readonly reason: string }
  | { readonly kind: 'reachable'; readonly reason: string }
  /** The clocks of this machine ran apart: nothing that was measured before counts. `fenced` follows on a primary. */
  | { readonly kind: 'clockGap'; readonly reason: string }
  /**
   * The record or a member contradicts what this node is. `fatal`: the lease has stopped for good, the
   * node must not serve; else it goes on watching without following that record.
   */
  | {
      readonly kind: 'refused';
      readonly code: 'ERR_LEASE_OTHER_CLUSTER' | 'ERR_LEASE_DUPLICATE_NODE' | 'ERR_LEASE_EPOCH_BACK';
      readonly fatal: boolean;
      readonly reason: string;
    };
