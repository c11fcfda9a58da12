import type { LeaseNode, LeasePositions, Member } from './types.js';

/** Takes `<epoch>:<txid>`; anything else counts as nothing at all. */
function parse(text: string | undefined): readonly [bigint, bigint] {
  const match = /^(\d+):(\d+)$/.exec(text ?? '');
  return match ? [BigInt(match[1]!), BigInt(match[2]!)] : [0n, 0n];
}

/**
 * Databases of which `theirs` has more than `ours`, as `<name> <theirs> > <ours>`. Positions are
 * compared as (epoch of the last transaction, TXID): a fenced primary's longer log of an older epoch is
 * less, not more (trap 3).
 */
export function behind(ours: LeasePositions, theirs: LeasePositions): string[] {
  return Object.keys(theirs)
    .filter((name) => {
      const [theirEpoch, theirTxid] = parse(theirs[name]);
      const [ourEpoch, ourTxid] = parse(ours[name]);
      return theirEpoch > ourEpoch || (theirEpoch === ourEpoch && theirTxid > ourTxid);
    })
    .toSorted()
    .map((name) => `${name} ${theirs[name]} > ${ours[name] ?? 'nothing'}`);
}

/** Of each database the position of whoever is furthest. */
export function furthest(all: readonly LeasePositions[]): LeasePositions {
  const result: Record<string, string> = {};
  for (const positions of all) {
    for (const [name, at] of Object.entries(positions)) {
      if (behind(result, { [name]: at }).length > 0) result[name] = at;
    }
  }
  return result;
}

/** Why a node should let others go first: `data` is worth the whole election wait, `taste` a moment. */
export interface Deference {
  readonly kind: 'data' | 'taste';
  readonly reason: string;
}

/**
 * Whether this node should wait for a better one before it takes a free lease. `rivals` are the live
 * candidates apart from this node and the holder that is gone.
 */
export function deference(options: {
  node: LeaseNode;
  ours: LeasePositions;
  /** Of the record that the previous primary left. */
  recorded: LeasePositions;
  rivals: readonly Member[];
  /** Where the previous primary was: applications are near it. */
  formerRegion: string | undefined;
}): Deference | undefined {
  const { node, ours, rivals, formerRegion } = options;
  const missing = behind(ours, options.recorded);
  if (missing.length > 0) {
    return { kind: 'data', reason: `the previous primary had more: ${missing.join(', ')}` };
  }
  for (const rival of rivals) {
    const more = behind(ours, rival.positions);
    if (more.length > 0) {
      return { kind: 'data', reason: `${rival.nodeId} has more: ${more.join(', ')}` };
    }
  }
  for (const rival of rivals) {
    if (behind(rival.positions, ours).length > 0) continue;
    if (rival.priority !== node.priority) {
      if (rival.priority < node.priority) continue;
      return { kind: 'taste', reason: `${rival.nodeId} has a higher priority` };
    }
    if (rival.region === formerRegion && node.region !== formerRegion) {
      return { kind: 'taste', reason: `${rival.nodeId} is in the previous primary's region` };
    }
  }
  return undefined;
}
