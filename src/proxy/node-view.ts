import type { NodeRole } from '../observability/node-status.js';
import type { History } from './history.js';

/**
 * What the proxy knows of its node. The proxy is a process of its own (docs/decisions/029): the daemon pushes what changes,
 * so that a decision about a request asks nobody; only `captured` and a position that is not here yet are asked for.
 */
export interface NodeView {
  /** As last heard. A new object at each change. */
  readonly now: NodeSnapshot;
  /** Calls back after each change of role, epoch, deadline or primary (not of positions); returns what ends that. */
  onChange(listener: () => void): () => void;
  /**
   * Resolves with true when this position of the database is not `behind` any more (see history.ts), with false when `timeoutMs` have
   * passed or the signal aborts first. Woken by the event, nothing is polled.
   */
  waitForPosition(
    database: string,
    position: TimelinePosition,
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<boolean>;
  /**
   * The last transactions of these databases that readers here can have seen before this call: on the primary what is committed, once
   * capture has passed the ends of the WALs as of this call; on a replica the end of what is being applied. What was pushed
   * would not do: the application may see a transaction before the daemon's message of it is here. At once where nothing can have become
   * visible since that was last asked. A database that does not exist is left out. (The daemon's side: NodeStore.seen; of
   * DatabaseView: NodeStore.history.)
   */
  seen(
    databases: readonly string[],
  ): ReadonlyMap<string, TimelinePosition> | Promise<ReadonlyMap<string, TimelinePosition>>;
}

/** Compared as (epoch, txid): a TXID alone may be reached by other data on another timeline. */
export interface TimelinePosition {
  /** Of the last transaction. */
  readonly epoch: bigint;
  readonly txid: bigint;
}

export interface NodeSnapshot {
  readonly nodeId: string;
  readonly clusterId: string;
  readonly region: string;
  readonly role: NodeRole;
  readonly ready: boolean;
  /** The highest that this node knows. */
  readonly epoch: bigint;
  /** Monotonic: applications here may write until then; 0 unless this node is the primary. */
  readonly writableUntilMs: number;
  /** Another node that is the primary as far as is known; undefined on the primary itself. */
  readonly primary: PrimaryView | undefined;
  readonly databases: ReadonlyMap<string, DatabaseView>;
}

export interface PrimaryView {
  readonly nodeId: string;
  /** host:port of its proxy. */
  readonly proxyAddress: string | undefined;
  /** Its Fly.io Machine. */
  readonly instance: string | undefined;
  readonly region: string;
  /** What `.primary` shows and applications may name it by. */
  readonly hostname: string;
}

export interface DatabaseView extends History {
  /** What readers here see at least. */
  readonly position: TimelinePosition;
  /**
   * Monotonic: everything that the primary had committed at this moment is visible here. Infinity on the primary;
   * undefined: nothing is known yet.
   */
  readonly freshAtMs: number | undefined;
}
