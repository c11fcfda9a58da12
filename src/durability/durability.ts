import type { Acknowledged } from '../replication/server.js';
import type { StoreChange } from '../replication/store.js';
import type { EpochPosition } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import { Overdue, type Waiting } from './overdue.js';
import { policyFor, replicasNeeded, type DurabilityPolicy } from './policy.js';
import { chooseSyncSet } from './sync-set.js';

const EIO = 5;
/** How often waiting commits are looked at. */
const LOOK_MS = 100;
/** A replica for which a commit has waited so long gives its place in the sync set to another one. */
const LATE_MS = 1000;
/** So long it is not taken into the set again. */
const SLOW_FOR_MS = 5000;
/** Ends of log files that are remembered of each database: what an older acknowledgement is worth is not known. */
const FILES_REMEMBERED = 4096;

export interface DurabilityParts {
  readonly nodeId: string;
  readonly region: string;
  readonly policies: readonly DurabilityPolicy[];
  /** Only candidates can open after a failover. false: nobody is elected (lease.type static), so any replica counts. */
  readonly candidatesOnly: boolean;
  readonly lease: {
    setSyncSet(epoch: bigint, members: readonly string[]): void;
    /** Every sync set that the lease record may have now. */
    syncSets(): readonly (readonly string[])[];
    members(): readonly {
      readonly nodeId: string;
      readonly candidate: boolean;
      readonly region: string;
    }[];
  };
  readonly store: {
    databases(): readonly string[];
    position(name: string): EpochPosition | undefined;
  };
  /** Answers a commit that waits: 0, or an errno for the application. */
  readonly answer: (id: number, errno: number) => void;
  readonly onEvent: (event: DurabilityEvent) => void;
  readonly nowMs?: () => number;
}

export type DurabilityEvent =
  /** Written into the lease record: only these may open after a failover. */
  | { readonly kind: 'sync-set'; readonly members: readonly string[] }
  /** A commit has waited for its whole timeout, and goes on waiting. */
  | { readonly kind: 'blocked'; readonly name: string; readonly message: string }
  /** Commits of this database return without the replicas that they should wait for. */
  | { readonly kind: 'degraded'; readonly name: string; readonly message: string }
  | { readonly kind: 'restored'; readonly name: string }
  | { readonly kind: 'waited'; readonly name: string; readonly waitedMs: number };

/** How things stand, for status and metrics. */
export interface DurabilityState {
  /** Who may open after a failover, this node included; empty: any candidate. */
  readonly syncSet: readonly string[];
  /** Commits that wait for replicas now. */
  readonly waiting: number;
  /** Databases whose commits do not wait, though they should. */
  readonly degraded: readonly string[];
}

/** A commit in the log of this node whose answer waits. */
interface Hold extends Waiting {
  readonly id: number;
  readonly position: EpochPosition;
}

/**
 * Durability by choice (DESIGN §7), on the primary: lets a commit return when replicas have it. Which replicas is the
 * sync set of the lease record; it is written there before their word counts, and all of its members must have a commit,
 * so that each of them may open after a failover (trap 3). Acknowledgements are positions of the replica's log: they
 * count only where our own log has the same TXID with the same checksum, which no other lineage has.
 */
export class Durability {
  readonly #parts: DurabilityParts;
  readonly #nowMs: () => number;
  readonly #isAsync: boolean;
  readonly #policies = new Map<string, DurabilityPolicy | undefined>();
  readonly #holds = new Map<string, Hold>();
  readonly #connected = new Set<string>();
  /** By node, then database. Kept when a stream ends: what was in a log once stays there, until the node says hello anew. */
  readonly #acknowledged = new Map<string, Map<string, Acknowledged>>();
  /** Ends of our log's files: database → TXID → checksum. */
  readonly #ends = new Map<string, Map<bigint, bigint>>();
  /** The newest position of each database that was answered as committed, by this primary or those before it. */
  readonly #promised = new Map<string, EpochPosition>();
  readonly #overdue: Overdue;
  /** Replicas that had a commit wait for long, and until when they are left out. */
  readonly #slowUntilMs = new Map<string, number>();
  #epoch = 0n;
  #active = false;
  /** The set that was asked for under this epoch. */
  #wanted: readonly string[] | undefined;
  /** A set of ours is in force: before, the record has the set of the primary before us. */
  #settled: readonly string[] | undefined;
  /** Replicas that commits wait for already, to be taken into the set when they have everything. */
  #joining: readonly string[] = [];
  #timer: NodeJS.Timeout | undefined;

  constructor(parts: DurabilityParts) {
    this.#parts = parts;
    this.#nowMs = parts.nowMs ?? monotonicMs;
    this.#overdue = new Overdue(parts.onEvent, this.#nowMs);
    this.#isAsync = parts.policies.every(({ waitFor }) => waitFor === 'async');
  }

  /** Whether replicas fsync this database's files before they acknowledge them. */
  fsyncs(name: string): boolean {
    return this.#policy(name)?.acknowledge === 'fsync';
  }

  /** Whether commits in this database wait for replicas. */
  waits(name: string): boolean {
    return this.#policy(name) !== undefined;
  }

  get state(): DurabilityState | undefined {
    if (this.#isAsync) return undefined;
    return {
      syncSet: this.#active ? (this.#settled ?? []) : [],
      waiting: this.#holds.size,
      degraded: [...this.#overdue.degraded],
    };
  }

  /** This node may write under this epoch: before its first write, and again after it was fenced. */
  primary(epoch: bigint): void {
    this.#active = true;
    if (this.#epoch !== epoch) {
      this.#epoch = epoch;
      this.#wanted = undefined;
      this.#settled = undefined;
      this.#joining = [];
      this.#ends.clear();
      this.#acknowledged.clear();
      this.#overdue.degraded.clear();
      this.#promised.clear();
      // What the primaries before this one have promised is in what this one has.
      for (const name of this.#parts.store.databases()) {
        const position = this.#policy(name) && this.#parts.store.position(name);
        if (position) this.#promised.set(name, position);
      }
    }
    this.#look();
  }

  /** This node may not write any more: whatever waits is in doubt (trap 13). */
  stop(): void {
    this.#active = false;
    for (const { id } of this.#holds.values()) this.#parts.answer(id, EIO);
    this.#holds.clear();
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** The record was renewed: a new set may be in force. */
  renewed(): void {
    if (this.#active) this.#look();
  }

  /** A commit waits; `position` undefined: it does not any more. */
  commit(id: number, name: string, position: EpochPosition | undefined): void {
    if (!position) {
      if (this.#holds.get(name)?.id === id) this.#holds.delete(name);
      return;
    }
    const policy = this.#policy(name);
    if (!this.#active) return this.#parts.answer(id, EIO);
    // The same content as was promised last: a dead writer's transaction was rolled back, and nobody waits for that.
    if (!policy || this.#promised.get(name)?.checksum === position.checksum) return this.#parts.answer(id, 0);
    this.#holds.set(name, { id, position, policy, sinceMs: this.#nowMs(), told: false });
    if (!this.#release(name)) this.#lookLater();
  }

  logged(change: StoreChange): void {
    if (!this.#active || change.kind !== 'transaction' || !this.#policy(change.name)) return;
    const { name, file } = change;
    // Dropped: nothing of it can be lost any more.
    if (file.commitPages === 0) this.#promised.delete(name);
    const ends = this.#ends.get(name) ?? new Map<bigint, bigint>();
    this.#ends.set(name, ends);
    ends.set(file.maxTxid, file.postApplyChecksum);
    const oldest = ends.keys().next();
    if (ends.size > FILES_REMEMBERED && oldest.done !== true) ends.delete(oldest.value);
  }

  connected(nodeId: string): void {
    this.#connected.add(nodeId);
    // It may have lost the end of its log with its disk, or have been made anew under the same id.
    this.#acknowledged.set(nodeId, new Map());
  }

  disconnected(nodeId: string): void {
    this.#connected.delete(nodeId);
    if (this.#active) this.#look();
  }

  acknowledged(nodeId: string, name: string, acknowledged: Acknowledged): void {
    if (!this.#active || !this.#policy(name)) return;
    this.#acknowledged.get(nodeId)?.set(name, acknowledged);
    const joins = this.#joining.length > 0 || this.#replicas.length < this.#needed;
    if (joins) this.#look();
    else this.#release(name);
  }

  // Deciding

  /** Looks at everything: who should be in the set, and what may return. */
  #look(): void {
    const { lease } = this.#parts;
    const sets = lease.syncSets();
    const [set] = sets;
    if (sets.length === 1 && set && this.#wanted && isSame(set, this.#wanted)) this.#inForce(this.#wanted);
    // One change at a time: until it is answered, both sets count.
    if (sets.length === 1 && (!this.#wanted || this.#settled === this.#wanted)) this.#choose();
    for (const name of this.#holds.keys()) this.#release(name);
    if (this.#holds.size > 0) this.#lookLater();
  }

  #lookLater(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      if (this.#holds.size === 0) return;
      this.#findTheLate();
      this.#look();
    }, LOOK_MS);
  }

  #inForce(set: readonly string[]): void {
    if (this.#settled === set) return;
    this.#settled = set;
    this.#parts.onEvent({ kind: 'sync-set', members: set });
    for (const name of this.#overdue.degraded) {
      const policy = this.#policy(name);
      if (!policy || !this.#isEnough(this.#replicas, policy)) continue;
      this.#overdue.degraded.delete(name);
      this.#parts.onEvent({ kind: 'restored', name });
    }
  }

  #choose(): void {
    if (this.#isAsync) {
      // Nothing is promised any more: any candidate may open.
      const given = this.#parts.lease.syncSets()[0] ?? [];
      if (given.length > 0) this.#want([]);
      return;
    }
    const current = this.#replicas;
    const near = this.#near();
    const eligible = near.filter((nodeId) => this.#hasAllPromised(nodeId));
    const chosen = chooseSyncSet({
      current,
      healthy: new Set(current.filter((nodeId) => this.#isHealthy(nodeId))),
      eligible: [...eligible, ...near.filter((nodeId) => !eligible.includes(nodeId))],
      needed: this.#needed,
      enough: this.#enough(),
      spread: this.#parts.policies.find(({ waitFor }) => waitFor !== 'async')?.spread ?? 'any',
      isElsewhere: this.#elsewhere(),
    });
    // Who has not everything yet: commits wait for it from now on, so that it soon has.
    this.#joining = chosen.filter((nodeId) => !current.includes(nodeId) && !eligible.includes(nodeId));
    if (this.#joining.length > 0) return;
    if (this.#wanted === undefined || chosen !== current) this.#want([this.#parts.nodeId, ...chosen]);
  }

  /** Before any acknowledgement counts, and before a commit returns with fewer, the record says so (trap 3). */
  #want(set: readonly string[]): void {
    this.#wanted = set;
    this.#parts.lease.setSyncSet(this.#epoch, set);
  }

  /** Lets a commit return if it may; whether it did. */
  #release(name: string): boolean {
    const hold = this.#holds.get(name);
    if (!hold) return true;
    const { id, position, policy, sinceMs } = hold;
    if (!this.#settled) return false;
    const sets = this.#parts.lease
      .syncSets()
      .map((set) => set.filter((nodeId) => nodeId !== this.#parts.nodeId));
    const missing = (): string => this.#missing(name, hold);
    // With the replicas that are in the set: only when the smaller set is the only one that the record can have.
    const degrades = (): boolean =>
      this.#overdue.degraded.has(name) || (sets.length === 1 && this.#overdue.degrades(name, hold, missing));
    const enough = sets.every((set) => this.#isEnough(set, policy)) || degrades();
    const all = [...sets.flat(), ...this.#joining];
    if (sets.length === 0 || !enough || !all.every((nodeId) => this.#has(nodeId, name, position))) {
      this.#overdue.complain(name, hold, missing);
      return false;
    }
    this.#holds.delete(name);
    this.#promised.set(name, position);
    this.#parts.onEvent({ kind: 'waited', name, waitedMs: this.#nowMs() - sinceMs });
    this.#parts.answer(id, 0);
    return true;
  }

  #missing(name: string, { policy, sinceMs }: Hold): string {
    const replicas = this.#replicas.length === 0 ? 'none' : this.#replicas.join(', ');
    const waitedMs = Math.round(this.#nowMs() - sinceMs);
    const where = policy.spread === 'require' ? ', one of them outside of this region' : '';
    return `a commit in ${name} has waited ${waitedMs} ms for ${this.#neededFor(policy)} replicas${where}; in the sync set: ${replicas}`;
  }

  // What is known of replicas

  get #replicas(): readonly string[] {
    return this.#wanted?.filter((nodeId) => nodeId !== this.#parts.nodeId) ?? [];
  }

  /** As many as the most demanding policy asks for. */
  get #needed(): number {
    return Math.max(0, ...this.#parts.policies.map((policy) => this.#neededFor(policy)));
  }

  #neededFor(policy: DurabilityPolicy): number {
    return replicasNeeded(
      policy,
      this.#parts.lease.members().filter((member) => this.#mayCount(member)).length,
    );
  }

  #isEnough(set: readonly string[], policy: DurabilityPolicy): boolean {
    if (set.length < this.#neededFor(policy)) return false;
    return policy.spread !== 'require' || set.some(this.#elsewhere());
  }

  /** Says of a replica whether it is in another region than this node. */
  #elsewhere(): (nodeId: string) => boolean {
    const members = new Map(this.#parts.lease.members().map(({ nodeId, region }) => [nodeId, region]));
    return (nodeId) => (members.get(nodeId) ?? this.#parts.region) !== this.#parts.region;
  }

  #mayCount({ candidate }: { readonly candidate: boolean }): boolean {
    return candidate || !this.#parts.candidatesOnly;
  }

  /** Connected replicas of which we know exactly where in our history they are. */
  #near(): string[] {
    const { lease, candidatesOnly } = this.#parts;
    const candidates = new Set(
      lease.members().flatMap((member) => (member.candidate ? [member.nodeId] : [])),
    );
    const nowMs = this.#nowMs();
    return [...this.#connected].filter(
      (nodeId) =>
        (!candidatesOnly || candidates.has(nodeId)) &&
        nowMs >= (this.#slowUntilMs.get(nodeId) ?? 0) &&
        [...this.#promised.keys()].every(
          (name) => !this.#parts.store.position(name) || this.#knownPosition(nodeId, name) !== undefined,
        ),
    );
  }

  #hasAllPromised(nodeId: string): boolean {
    return [...this.#promised].every(
      ([name, position]) => !this.#parts.store.position(name) || this.#has(nodeId, name, position),
    );
  }

  #has(nodeId: string, name: string, { txid }: EpochPosition): boolean {
    const known = this.#knownPosition(nodeId, name);
    return known !== undefined && known >= txid;
  }

  /** The TXID up to which a replica has what we have; undefined: nothing, or another lineage, or not known. */
  #knownPosition(nodeId: string, name: string): bigint | undefined {
    const acknowledged = this.#acknowledged.get(nodeId)?.get(name);
    const at = this.fsyncs(name) ? acknowledged?.durable : acknowledged?.received;
    if (!at) return undefined;
    const end = this.#parts.store.position(name);
    const checksum = at.txid === end?.txid ? end.checksum : this.#ends.get(name)?.get(at.txid);
    return checksum === at.checksum ? at.txid : undefined;
  }

  #isHealthy(nodeId: string): boolean {
    return this.#connected.has(nodeId) && this.#nowMs() >= (this.#slowUntilMs.get(nodeId) ?? 0);
  }

  #findTheLate(): void {
    const nowMs = this.#nowMs();
    for (const [name, { position, policy, sinceMs }] of this.#holds) {
      if (nowMs - sinceMs < Math.min(LATE_MS, policy.timeoutMs / 2)) continue;
      for (const nodeId of new Set([...this.#replicas, ...this.#joining])) {
        if (!this.#has(nodeId, name, position)) this.#slowUntilMs.set(nodeId, nowMs + SLOW_FOR_MS);
      }
    }
  }

  /** The fewest replicas with which one of the waiting commits could return. */
  #enough(): number {
    const counts = [...this.#holds].map(([name, hold]) => {
      const degrades =
        hold.policy.onTimeout === 'degrade' &&
        (this.#overdue.degraded.has(name) || this.#overdue.isLate(hold));
      return degrades ? 0 : this.#neededFor(hold.policy);
    });
    return Math.min(Infinity, ...counts);
  }

  #policy(name: string): DurabilityPolicy | undefined {
    if (this.#isAsync) return undefined;
    if (!this.#policies.has(name)) this.#policies.set(name, policyFor(this.#parts.policies, name));
    return this.#policies.get(name);
  }
}

const isSame = (a: readonly string[], b: readonly string[]): boolean =>
  a.length === b.length && a.every((item) => b.includes(item));
