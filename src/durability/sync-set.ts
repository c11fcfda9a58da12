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
}

/** The replicas that the set should have; `current` itself when it should stay. */
export function chooseSyncSet(question: SyncSetQuestion): readonly string[] {
  const { current, healthy, eligible, needed, enough } = question;
  const kept = current.filter((nodeId) => healthy.has(nodeId));
  const others = eligible.filter((nodeId) => !current.includes(nodeId));
  const chosen = [...kept, ...others].slice(0, needed);
  // A replica that is away stays a member as long as nothing is won without it: it may be the one that opens next.
  const isBetter = chosen.length >= Math.min(current.length, needed) || chosen.length >= enough;
  const isSame = chosen.length === current.length && chosen.every((nodeId) => current.includes(nodeId));
  return isBetter && !isSame ? chosen : current;
}
