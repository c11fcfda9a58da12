import type { Clock } from '../util/clock.js';
import type { LeaseAdapter, LeaseEvent, LeaseNode, LeasePositions, LeaseRecord, Member } from './types.js';

export interface LeaseOptions {
  readonly adapter: LeaseAdapter;
  readonly clusterId: string;
  readonly node: LeaseNode;
  /** Highest epoch this node knows (node.json). */
  readonly highestEpoch: bigint;
  /** Log ends of this node now, database name to `<epoch>:<txid>`. Must be cheap: asked at every heartbeat. */
  positions(): LeasePositions;
  /** Default 5000. */
  readonly ttlMs?: number;
  /** How much clock rates may differ over one ttl. Default ttl/10. */
  readonly marginMs?: number;
  /** Added to the wait before a silent holder's lease is taken (LiteFS's key). Default 0. */
  readonly lockDelayMs?: number;
  /** How long a node that is behind waits for a better one. Default 1000. */
  readonly electionWaitMs?: number;
  /** Called in order, never from within a call of this class. */
  onEvent(event: LeaseEvent): void;
  readonly clock?: Clock;
}

/** Runs the lease machine over an adapter: real timers, a timeout on every call, clocks watched for jumps. */
export class Lease {
  constructor(options: LeaseOptions) {
    void options;
  }

  /** Registers, reads the record and goes on until `release` or `stop`. */
  start(): void {
    throw new Error('not yet');
  }

  /** The daemon has recovered and caught up under this epoch: applications may write (`primary` follows). */
  ready(epoch: bigint): void {
    void epoch;
  }

  /** The daemon cannot become primary now: empties the holder, and does not try again for two ttl. */
  giveUp(why: string): void {
    void why;
  }

  /**
   * Fences this node at once, then names the target as the only one who may take the lease for a ttl.
   * Rejects with ERR_LEASE_HANDOFF when that did not happen; then `primary` follows again.
   */
  handOff(targetNodeId: string): Promise<void> {
    return Promise.reject(new Error(targetNodeId));
  }

  /** Clean stop: fences, empties the holder (the epoch stays), unregisters, stops. Takes at most one ttl. */
  release(): Promise<void> {
    return Promise.resolve();
  }

  /** Stops at once and changes nothing in the record, as a crash would; others take over after the ttl. */
  stop(): void {
    return;
  }

  /** The last record read, undefined when there is none or nothing was read yet. */
  get record(): LeaseRecord | undefined {
    return undefined;
  }

  /** Members as last read, this node included. */
  get members(): readonly Member[] {
    return [];
  }
}
