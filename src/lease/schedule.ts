/**
 * What a whole cluster writes a second to a store that lives apart from it, while nothing happens: two are promised, and a member that
 * sees a renewal come late registers out of turn.
 */
const WRITES_PER_SECOND = 1.9;

/**
 * The shortest time between two renewals there. With the shortest ttl two more tries, each with its whole timeout or most of it,
 * fit before the deadline: 0.7 s + (0.4 s timeout + 0.1 s pause) × 2 of 1.8 s.
 */
const RENEW_MS = 700;

/** The shortest ttl for such a store: with less, two writes a second leave a failed renewal no time to be repeated. */
export const REMOTE_TTL_MIN_MS = 2000;

/** When a lease is renewed and members register, for a ttl (decision 033). */
export interface Schedule {
  /** A fifth of the ttl: how long a call may take, and the time between two looks at the members. */
  readonly beatMs: number;
  /** From one renewal to the next. */
  readonly renewMs: number;
  /** In this time all members together register once; 0: each at every look. */
  readonly turnMs: number;
}

/** The schedule of a ttl. `remote`: the store is not on this machine, and each write costs it something. */
export function scheduleOf(ttlMs: number, remote: boolean): Schedule {
  const beatMs = ttlMs / 5;
  if (!remote) return { beatMs, renewMs: beatMs, turnMs: 0 };
  const renewMs = Math.max(beatMs, RENEW_MS);
  // The members have what the renewals leave.
  return { beatMs, renewMs, turnMs: Math.max(beatMs, 1000 / (WRITES_PER_SECOND - 1000 / renewMs)) };
}
