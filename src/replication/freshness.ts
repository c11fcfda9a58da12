import { type Position, samePosition } from '../ltx/position.js';

/** How fresh one database of this replica is. */
export interface DatabaseFreshness {
  /** What readers see here. */
  readonly position: Position;
  /** Transactions that the primary had at its last answer and readers here don't see yet; undefined: no answer yet. */
  readonly lagTransactions: number | undefined;
  /** The data is at most this old; undefined: not known yet. */
  readonly maxAgeMs: number | undefined;
}

interface DatabaseState {
  applied: Position | undefined;
  /** The primary's, of its last answer of this stream. */
  primary: Position | undefined;
  /** Everything that the primary had committed at this time is visible here. */
  freshAtMs: number | undefined;
  /** Answers whose position is not applied yet, oldest first. */
  waiting: { sentAtMs: number; position: Position }[];
}

const WAITING_MAX = 256;
const PROBES_MAX = 64;

/**
 * How old a replica's data may be, without comparing clocks (DESIGN §8): a probe goes out at our
 * monotonic time t, the answer says where the primary stood after t, and once that is applied nothing
 * committed before t is missing here. Answers without a valid lease prove nothing: another node may have
 * been primary by then. Pure: the caller brings the time.
 */
export class Freshness {
  readonly #databases = new Map<string, DatabaseState>();
  readonly #probes = new Map<number, number>();
  #heard = false;

  /** A new stream: answers of the former one may tell of transactions that the new primary never had. */
  streamStarted(): void {
    this.#probes.clear();
    for (const database of this.#databases.values()) {
      database.waiting = [];
      database.primary = undefined;
    }
  }

  probeSent(id: number, nowMs: number): void {
    this.#probes.set(id, nowMs);
    const oldest = this.#probes.keys().next();
    if (this.#probes.size > PROBES_MAX && oldest.done !== true) this.#probes.delete(oldest.value);
  }

  /** `changed` holds the positions that differ from the previous answer of this stream. */
  answered(id: number, leaseValid: boolean, changed: Iterable<readonly [string, Position]>): void {
    for (const [name, position] of changed) this.#state(name).primary = position;
    const sentAtMs = this.#probes.get(id);
    this.#probes.delete(id);
    if (!leaseValid || sentAtMs === undefined) return;
    this.#heard = true;
    for (const database of this.#databases.values()) this.#await(database, sentAtMs);
  }

  /** Whether a valid primary has answered and everything it then had was once visible here. */
  get caughtUp(): boolean {
    const databases = [...this.#databases.values()];
    return this.#heard && databases.every(({ primary, freshAtMs }) => !primary || freshAtMs !== undefined);
  }

  /** Readers of this node see `position` now. */
  applied(name: string, position: Position): void {
    const database = this.#state(name);
    database.applied = position;
    for (let next = database.waiting[0]; next !== undefined; next = database.waiting[0]) {
      if (next.position.txid > position.txid) break;
      database.waiting.shift();
      // The same TXID with another checksum is another history: it proves nothing.
      if (next.position.txid < position.txid || samePosition(next.position, position)) {
        database.freshAtMs = next.sentAtMs;
      }
    }
  }

  dropped(name: string): void {
    const database = this.#state(name);
    database.applied = undefined;
    database.freshAtMs = undefined;
    database.waiting = [];
  }

  /** undefined: this replica has no such database. */
  report(name: string, nowMs: number): DatabaseFreshness | undefined {
    const database = this.#databases.get(name);
    if (database?.applied === undefined) return undefined;
    const { applied, primary, freshAtMs } = database;
    const lag = primary === undefined ? undefined : Number(primary.txid - applied.txid);
    return {
      position: applied,
      lagTransactions: lag === undefined ? undefined : Math.max(0, lag),
      maxAgeMs: freshAtMs === undefined ? undefined : nowMs - freshAtMs,
    };
  }

  #await(database: DatabaseState, sentAtMs: number): void {
    const { primary, applied } = database;
    if (primary === undefined) return;
    const ahead = applied !== undefined && applied.txid >= primary.txid;
    if (ahead) {
      // Equal: fresh. Anything else is another history that a snapshot will replace: it proves nothing.
      if (samePosition(applied, primary)) database.freshAtMs = sentAtMs;
      return;
    }
    database.waiting.push({ sentAtMs, position: primary });
    // Far behind: half of the answers say it less exactly, never too favourably.
    if (database.waiting.length > WAITING_MAX) {
      database.waiting = database.waiting.filter((_, index) => index % 2 === 0);
    }
  }

  #state(name: string): DatabaseState {
    let database = this.#databases.get(name);
    if (database === undefined) {
      database = { applied: undefined, primary: undefined, freshAtMs: undefined, waiting: [] };
      this.#databases.set(name, database);
    }
    return database;
  }
}
