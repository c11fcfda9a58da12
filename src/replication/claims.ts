import { KiteError } from '../errors.js';
import type { EpochPosition } from '../store/types.js';

/** What no healthy peer of a cluster can say of itself; pure. A peer that does is refused, and nothing of what it said is kept. */

/** By how much a peer may be ahead: an epoch is one change of primary, and one taken over from a liar could never be taken back. */
const EPOCH_LEAP_MAX = 1_000_000n;

/** Throws ERR_REPLICATION_MESSAGE when a peer's epoch cannot be true, `ours` being the highest that this node knows. */
export function checkEpochClaim(theirs: bigint, ours: bigint, who: string): void {
  if (theirs <= ours + EPOCH_LEAP_MAX) return;
  throw new KiteError(
    'ERR_REPLICATION_MESSAGE',
    `${who} claims epoch ${theirs}, which cannot be: this node is at epoch ${ours}`,
  );
}

/**
 * Throws ERR_REPLICATION_MESSAGE when a replica cannot be at `claimed`: at a later epoch than the stream's, or, with `end`, further
 * in this epoch than that.
 */
export function checkPositionClaim(
  claimed: EpochPosition | undefined,
  limits: { who: string; name: string; epoch: bigint; end: bigint | undefined },
): void {
  if (claimed === undefined) return;
  const { who, name, epoch, end } = limits;
  if (claimed.epoch > epoch) {
    throw new KiteError(
      'ERR_REPLICATION_MESSAGE',
      `${who} claims a transaction of epoch ${claimed.epoch} in ${name}, which cannot be: the primary is at epoch ${epoch}`,
    );
  }
  // Of an older epoch it may have any number: a former primary's own.
  if (end !== undefined && claimed.epoch === epoch && claimed.txid > end) {
    throw new KiteError(
      'ERR_REPLICATION_MESSAGE',
      `${who} claims TXID ${claimed.txid} of ${name}, which cannot be: it can have ${end} at most`,
    );
  }
}
