import type { Log } from './log.js';
import type { EpochPosition } from './types.js';

/**
 * The TXID after which a log is none of the primary's history, which leaves ours at `fork` (the end of what it has of the
 * epoch of our last transaction and of earlier ones; undefined when it cannot say). In each epoch there was one writer, so
 * up to the shorter end of the last epoch that both have the histories are the same. 0: that cannot be said. Undefined: all of
 * the log is in it.
 */
export function lostAfter(
  log: Pick<Log, 'lastPosition' | 'endOfEpoch'>,
  fork: EpochPosition | undefined,
): bigint | undefined {
  const last = log.lastPosition;
  if (!last) return undefined;
  // Of the same writer, and not more than it wrote: no file but the last has to be looked at.
  if (fork && last.epoch === fork.epoch && last.txid <= fork.txid) return undefined;
  const ours = fork && log.endOfEpoch(fork.epoch);
  // With nothing of that epoch in ours the two may part anywhere before it: where earlier epochs end there was not said.
  if (!ours || ours.epoch !== fork.epoch) return 0n;
  const common = ours.txid < fork.txid ? ours.txid : fork.txid;
  return common < last.txid ? common : undefined;
}
