import type {
  LeaseEvent,
  LeaseNode,
  LeasePositions,
  LeaseRecord,
  Member,
  NodeProcess,
  VersionedRecord,
} from './types.js';

/** What goes into the lease machine and what comes out. */

export type LeaseCall =
  | { readonly op: 'read' }
  | { readonly op: 'watch'; readonly version: string; readonly waitMs: number }
  | { readonly op: 'compareAndSet'; readonly expected: string; readonly record: LeaseRecord }
  | { readonly op: 'members' }
  | { readonly op: 'register'; readonly member: Member }
  | { readonly op: 'unregister' }
  | { readonly op: 'ended'; readonly process: NodeProcess };

export type LeaseAnswer =
  | { readonly op: 'record'; readonly seen: VersionedRecord }
  | { readonly op: 'compareAndSet'; readonly version: string | undefined }
  | { readonly op: 'members'; readonly members: readonly Member[] }
  | { readonly op: 'ended'; readonly ended: boolean }
  | { readonly op: 'done' };

export type LeaseInput =
  | { readonly kind: 'tick' }
  | { readonly kind: 'answer'; readonly id: number; readonly answer: LeaseAnswer }
  /** Failed or timed out: it may have been carried out, or may be still. */
  | { readonly kind: 'failed'; readonly id: number; readonly why: string }
  | { readonly kind: 'ready'; readonly epoch: bigint }
  /** Under this epoch the record's sync set shall be this one. */
  | { readonly kind: 'syncSet'; readonly epoch: bigint; readonly members: readonly string[] }
  | { readonly kind: 'leave'; readonly leave: Leave }
  /** A person lets this node take a free lease although it may lack something, for so long. */
  | { readonly kind: 'acceptLoss'; readonly forMs: number }
  /** This machine's clocks ran apart: how long it really was away cannot be known. */
  | { readonly kind: 'clockGap'; readonly why: string }
  | { readonly kind: 'stop' };

/** Giving the lease up: to a target, for a pause (the daemon is not able), or for good. */
export type Leave =
  | { readonly kind: 'handOff'; readonly target: string }
  | { readonly kind: 'giveUp'; readonly why: string }
  | { readonly kind: 'release' };

export type LeaseEffect =
  | { readonly kind: 'call'; readonly id: number; readonly call: LeaseCall }
  | { readonly kind: 'event'; readonly event: LeaseEvent }
  /** A `leave` input has ended; `failure` says why it did not happen. */
  | { readonly kind: 'left'; readonly leave: Leave; readonly failure: string | undefined };

export interface LeaseMachineOptions {
  readonly clusterId: string;
  readonly node: LeaseNode;
  readonly incarnation: string;
  /** The process of this node that surely has ended, so that its registration need not fall silent first. */
  readonly formerIncarnation?: string | undefined;
  readonly highestEpoch: bigint;
  readonly ttlMs: number;
  readonly marginMs: number;
  readonly lockDelayMs: number;
  readonly electionWaitMs: number;
  /** Whether the adapter has `ended`. */
  readonly provesEnd: boolean;
  /** See LeaseAdapter. */
  readonly remote?: boolean;
  /** The version of the record with which this node founded the cluster: nobody can have held it before. */
  readonly foundedWith?: string | undefined;
  positions(): LeasePositions;
  /** What this node could fetch from elsewhere than members: from backups. Left out: nothing. */
  elsewhere?: (() => LeasePositions) | undefined;
  /**
   * Whether this process was connected to the primary of `epoch` at `atMs` (monotonic): what it lacks is then what was under
   * way, and not what was written while it was away.
   */
  followed(epoch: bigint, atMs: number): boolean;
  /** This machine has gone down since this node was primary last: it may have lost what SQLite had not fsynced. */
  readonly powerWasCut: boolean;
}
