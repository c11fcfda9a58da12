/**
 * Which replicas belong to the sync set beside the primary. Every member has every commit that was promised, because a
 * commit waits for all of them; so any member may open after a failover, and nobody else (trap 3).
 */

export interface SyncSetQuestion {
  /** Replicas of the set as it is. */
  readonly current: readonly string[];
  /** Those of them that keep up: connected, and no commit has waited long for them. */
  readonly healthy: ReadonlySet<string>;
  /** Replicas that have everything promised so far, the best first. */
  readonly eligible: readonly string[];
  /** As many as the most demanding database asks for. */
  readonly needed: number;
  /** The fewest replicas with which a commit that waits now may return; Infinity: none waits. */
  readonly enough: number;
  /** See DurabilityPolicy. */
  readonly spread: 'any' | 'prefer' | 'require';
  /** Whether a replica is in another region than the primary. */
  readonly isElsewhere: (nodeId: string) => boolean;
}

/** The replicas that the set should have; `current` itself when it should stay. */
export function chooseSyncSet(question: SyncSetQuestion): readonly string[] {
  const { current, healthy, eligible, needed, enough, spread, isElsewhere } = question;
  const kept = current.filter((nodeId) => healthy.has(nodeId));
  const others = eligible.filter((nodeId) => !current.includes(nodeId));
  const pool = [...kept, ...others];
  const chosen = pool.slice(0, needed);
  const covers = (set: readonly string[]): boolean => spread === 'any' || set.some(isElsewhere);
  // One is enough: what takes this region with it leaves that one, and it has everything.
  const elsewhere = pool.find(isElsewhere);
  if (needed > 0 && elsewhere !== undefined && !covers(chosen)) chosen.splice(-1, 1, elsewhere);
  // Without it no commit returns, unless it degrades: then the set stays with the one that may open next.
  const isUseless = spread === 'require' && enough > 0 && covers(current) && !covers(chosen);
  // A replica that is away stays a member as long as nothing is won without it: it may be the one that opens next.
  const isBetter = chosen.length >= Math.min(current.length, needed) || chosen.length >= enough;
  const isSame = chosen.length === current.length && chosen.every((nodeId) => current.includes(nodeId));
  return isBetter && !isUseless && !isSame ? chosen : current;
}
