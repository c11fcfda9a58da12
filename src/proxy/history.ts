import type { TokenEntry } from './token.js';

/**
 * What a node knows of one database's history: where it is, and where earlier epochs ended in it. Only that tells a client's transaction
 * that is still to come from one that a failover has lost. Plain data, so that it crosses to another thread.
 */
export interface History {
  /** What readers here see at least. */
  readonly position: TokenEntry;
  /** Ends of epochs before that of `position`, oldest first; earlier ones than the first are not known. */
  readonly ends: readonly TokenEntry[];
}

/** Of a transaction that a client has seen, in the history of a node. */
export type Relation =
  /** Readers here see it (or, where the history does not reach back, something later in any case). */
  | 'reached'
  /** It may come. */
  | 'behind'
  /** It never comes: a later epoch has gone on without it. */
  | 'lost';

const ENDS_MAX = 16;

/**
 * How `entry` stands to a history. One epoch has one writer, and a later epoch goes on where the part of the earlier ones that
 * survives has ended:
 * - an epoch later than ours: this node has not heard of it yet, whatever its own TXID is (it may be on the branch that loses);
 * - our epoch: TXIDs decide;
 * - an earlier one: it has ended here. Beyond its end nothing of it survives.
 */
export function relate(entry: TokenEntry, history: History | undefined): Relation {
  if (entry.txid === 0n) return 'reached';
  if (!history) return 'behind';
  const { position, ends } = history;
  if (entry.epoch > position.epoch) return 'behind';
  if (entry.epoch === position.epoch) return entry.txid <= position.txid ? 'reached' : 'behind';
  if (entry.txid > position.txid) return 'lost';
  const end = ends.findLast(({ epoch }) => epoch <= entry.epoch);
  return end && entry.txid > end.txid ? 'lost' : 'reached';
}

/**
 * The history after a node has come to `position`. `exact`: what was added is of its epoch alone. A snapshot or a difference is not: it
 * holds transactions of other epochs under one, so where those ended is not known any more.
 */
export function proceed(before: History | undefined, position: TokenEntry, exact: boolean): History {
  if (!before || position.epoch === before.position.epoch) {
    return { position, ends: before && exact ? before.ends : [] };
  }
  if (!exact || position.epoch < before.position.epoch) return { position, ends: [] };
  return { position, ends: [...before.ends, before.position].slice(-ENDS_MAX) };
}
