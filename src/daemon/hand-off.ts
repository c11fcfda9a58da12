import { setTimeout as sleep } from 'node:timers/promises';
import type { Applier } from '../applier/applier.js';
import type { Capture } from '../capture/capture.js';
import { KiteError, toKiteError } from '../errors.js';
import type { Lease } from '../lease/lease.js';
import type { Member } from '../lease/types.js';
import { samePosition } from '../ltx/position.js';
import type { ReplicationServer, ReplicaStatus } from '../replication/server.js';
import type { EpochPosition } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import type { EventLog } from './event-log.js';
import type { NodeStore } from './node-store.js';
import type { RoleSwitch } from './role.js';

/** How long writers may take to end their transactions, where nobody says. */
export const HAND_OFF_WAIT_MS = 5000;
/** One attempt at all locks together; between two attempts writers go on. */
const LOCK_ATTEMPT_MS = 250;
/** A write that the proxy has given to the application, and that takes longer, may meet a replica. */
const ANSWERED_LIMIT_MS = 1000;
/** The applier gives up on a lock in time: when it does not, it is stuck. */
const STUCK_MS = 2 * LOCK_ATTEMPT_MS;
/** A successor that takes longer for what was committed when it was asked is not near enough to hold writers up for it. */
const NEAR_MS = 100;
/** Nobody can write from here on: what the successor still lacks is a few transactions, or it does not answer. */
const EXACT_LIMIT_MS = 2000;
const POLL_MS = 2;

export interface HandOffParts {
  readonly nodeId: string;
  readonly lease: Lease;
  readonly applier: Applier;
  readonly capture: Capture;
  readonly store: NodeStore;
  readonly server: ReplicationServer;
  readonly roles: RoleSwitch;
  readonly events: EventLog;
  /** Resolves when the application has answered the writes that the proxy has given it, or after `limitMs`. */
  readonly writesAnswered: (limitMs: number) => Promise<void>;
}

export interface HandOffRequest {
  /** Node id; undefined: whichever candidate has everything first, in the order of priority. */
  readonly target: string | undefined;
  /** How long the successor may take to come near, and after that writers to end their transactions. */
  readonly waitMs: number;
  /** Who wants it, for the event. */
  readonly reason: string;
}

/**
 * Hands the lease of a running primary to another node, and loses nothing (DESIGN §7): SQLite's write lock on every
 * database (writers see BUSY and ride it out), a stop of all writes in the mount, until the successor has applied exactly
 * what is here; then one compare-and-set names it. Until that has succeeded everything can be undone: the hand-off is
 * called off and this node goes on as primary.
 */
export class HandOff {
  readonly #parts: HandOffParts;
  #running = false;

  constructor(parts: HandOffParts) {
    this.#parts = parts;
  }

  /** Whether there is anybody who could succeed. */
  get possible(): boolean {
    const { lease } = this.#parts;
    return lease.members.some(({ candidate, nodeId }) => candidate && this.#replica(nodeId) !== undefined);
  }

  /** Resolves with the successor's node id. Rejects with ERR_LEASE_HANDOFF when it was called off, and with what it met. */
  async run(request: HandOffRequest): Promise<string> {
    const { events, roles, applier } = this.#parts;
    if (this.#running) throw new KiteError('ERR_LEASE_HANDOFF', 'another hand-off is under way');
    this.#running = true;
    const beganMs = monotonicMs();
    try {
      const heard = await this.#heard(this.#eligible(request.target), request.waitMs);
      const target = await this.#near(heard, request.waitMs);
      // Everything but the last moment's: the change of role fsyncs the log, and writers then wait for it.
      await this.#parts.store.syncAll();
      // The proxy holds new ones since this node is draining; these would find a replica in the middle of their work.
      await this.#parts.writesAnswered(Math.min(request.waitMs, ANSWERED_LIMIT_MS));
      await this.#lockAll(request.waitMs);
      const heldMs = monotonicMs();
      await this.#finish(target);
      const [tookMs, pauseMs] = [monotonicMs() - beganMs, monotonicMs() - heldMs].map(Math.round);
      events.add(
        'handed-off',
        `the lease was handed to ${target} (${request.reason}); it took ${tookMs} ms, writers waited ${pauseMs} ms here`,
      );
      return target;
    } catch (thrown) {
      const error = toKiteError(thrown);
      events.add(
        'hand-off-failed',
        `${request.reason}: not handed over, this node stays primary: ${error.message}`,
        { level: 'warn' },
      );
      throw error;
    } finally {
      this.#running = false;
      // After the change of role: a writer that gets the lock must find a replica, or the primary that this node still is.
      roles.resumeWrites();
      await applier.unlock().catch(() => undefined);
    }
  }

  /** Those who may succeed, best first. */
  #eligible(target: string | undefined): readonly Member[] {
    const { nodeId, lease } = this.#parts;
    const others = lease.members.filter((member) => member.nodeId !== nodeId);
    if (target === undefined) {
      const candidates = others.filter((member) => member.candidate);
      if (this.possible) return candidates.toSorted((a, b) => b.priority - a.priority);
      throw new KiteError('ERR_LEASE_HANDOFF', 'no other candidate is connected to this node');
    }
    if (target === nodeId) throw new KiteError('ERR_LEASE_HANDOFF', `${target} is the primary already`);
    const member = others.find((one) => one.nodeId === target);
    if (!member) throw new KiteError('ERR_LEASE_HANDOFF', `${target} is not registered with the lease`);
    if (!member.candidate) {
      throw new KiteError(
        'ERR_LEASE_NOT_CANDIDATE',
        `${target} can never be primary: lease.candidate is false`,
      );
    }
    if (!this.#replica(target)) throw new KiteError('ERR_LEASE_HANDOFF', `${target} is not connected`);
    return [member];
  }

  #replica(nodeId: string): ReplicaStatus | undefined {
    return this.#parts.server.replicas().find((replica) => replica.nodeId === nodeId);
  }

  /**
   * Those whose registration is being renewed; waits for one. A node that was started again a moment ago is connected, but may
   * register only when its last process has been silent for long enough, and before that it could not take the lease.
   */
  async #heard(members: readonly Member[], waitMs: number): Promise<readonly Member[]> {
    const { lease } = this.#parts;
    for (const limitMs = monotonicMs() + waitMs; ; await sleep(POLL_MS)) {
      const living = new Set(lease.living.map(({ nodeId }) => nodeId));
      const heard = members.filter(({ nodeId }) => living.has(nodeId));
      if (heard.length > 0) return heard;
      if (monotonicMs() < limitMs) continue;
      const names = members.map(({ nodeId }) => nodeId).join(', ');
      throw new KiteError(
        'ERR_LEASE_HANDOFF',
        `${names} is not heard of in the lease: a node whose machine was just started is after lease.ttl and some seconds; ask again then, or with a longer --wait`,
      );
    }
  }

  /**
   * Waits, while everybody writes on, until one of them follows closely. Where more is written than a successor can apply
   * none ever does: then the best one is taken if it moves, and has all writers' waiting to catch up in.
   */
  async #near(members: readonly Member[], waitMs: number): Promise<string> {
    const limitMs = monotonicMs() + waitMs;
    const applied = (nodeId: string): bigint =>
      [...(this.#replica(nodeId)?.databases.values() ?? [])].reduce(
        (sum, at) => sum + (at.applied?.txid ?? 0n),
        0n,
      );
    let before: ReadonlyMap<string, bigint> = new Map();
    for (;;) {
      const goals = this.#logEnds();
      for (const roundMs = monotonicMs(); monotonicMs() - roundMs < NEAR_MS; await sleep(POLL_MS)) {
        const near = members.find(({ nodeId }) => this.#replica(nodeId) && !this.#lacks(nodeId, goals));
        if (near) return near.nodeId;
      }
      const connected = members.filter(({ nodeId }) => this.#replica(nodeId));
      const [best] = connected;
      if (!best) {
        const names = members.map(({ nodeId }) => nodeId).join(', ');
        throw new KiteError('ERR_LEASE_HANDOFF', `${names} is not connected any more`);
      }
      if (monotonicMs() > limitMs) {
        const moving = connected.find(({ nodeId }) => applied(nodeId) > (before.get(nodeId) ?? 0n));
        if (moving) return moving.nodeId;
        const lacks = this.#lacks(best.nodeId, goals);
        throw new KiteError('ERR_LEASE_HANDOFF', `${best.nodeId} does not catch up: ${lacks}`);
      }
      before = new Map(connected.map(({ nodeId }) => [nodeId, applied(nodeId)]));
    }
  }

  /** SQLite's write locks on all databases; one that cannot be had in time is left out: its writer gets an error. */
  async #lockAll(waitMs: number): Promise<void> {
    const { roles, events } = this.#parts;
    // A commit that waits for replicas by its journal's unlink holds the kernel's lock on that folder, in which the applier then
    // opens nothing. It is waited for as any writer; the pause ends it with an error, and the applier goes on.
    const stuck = setTimeout(() => {
      const message = 'commits that wait for replicas get an error: their databases cannot be locked';
      events.add('hand-off-cuts-off', message, { level: 'warn' });
      // Nothing can be done about a mount that answers no more.
      roles.pauseWrites().catch(() => undefined);
    }, waitMs + STUCK_MS);
    try {
      await this.#takeLocks(waitMs);
    } finally {
      clearTimeout(stuck);
    }
  }

  async #takeLocks(waitMs: number): Promise<void> {
    const { applier, store, events } = this.#parts;
    const limitMs = monotonicMs() + waitMs;
    for (;;) {
      const unlocked = await applier.lockForHandOff(store.databases(), LOCK_ATTEMPT_MS);
      if (unlocked.length === 0) return;
      const leftMs = limitMs - monotonicMs();
      if (leftMs <= 0) {
        for (const { name, reason } of unlocked) {
          const message = `handing off without the write lock of ${name}, whose writer gets an error: ${reason}`;
          events.add('hand-off-cuts-off', message, { database: name, level: 'warn' });
        }
        return;
      }
      // One long transaction must not keep the writers of all other databases waiting.
      await applier.unlock();
      await applier.lockForHandOff(
        unlocked.map(({ name }) => name),
        leftMs,
      );
      await applier.unlock();
    }
  }

  async #finish(target: string): Promise<void> {
    const { lease, roles, applier } = this.#parts;
    // The locks are SQLite's courtesy; this is what makes the position final, also for databases that have no lock.
    await roles.pauseWrites();
    const limitMs = monotonicMs() + EXACT_LIMIT_MS;
    for (let ends = await this.#finalEnds(); ;) {
      for (let lacks; (lacks = this.#lacks(target, ends)) !== undefined; await sleep(POLL_MS)) {
        if (!this.#replica(target)) throw new KiteError('ERR_LEASE_HANDOFF', `${target} is gone`);
        if (monotonicMs() < limitMs) continue;
        throw new KiteError('ERR_LEASE_HANDOFF', `${target} did not take the last transactions: ${lacks}`);
      }
      // A database that was made at the last moment may have been on its way to capture.
      const now = await this.#finalEnds();
      if (now.size === ends.size && [...now].every(([name, end]) => samePosition(end, ends.get(name)!)))
        break;
      ends = now;
    }
    await lease.handOff(target);
    // From here on the mount refuses every write of an application: one that waits for its lock may learn that.
    await applier.unlock().catch(() => undefined);
    await roles.settled();
  }

  #logEnds(): ReadonlyMap<string, EpochPosition> {
    return this.#parts.store.logEnds();
  }

  /** The log's ends after everything that the mount has let pass is captured. */
  async #finalEnds(): Promise<ReadonlyMap<string, EpochPosition>> {
    const { capture, store } = this.#parts;
    for (const name of new Set([...store.databases(), ...store.logEnds().keys()]))
      await capture.position(name);
    return this.#logEnds();
  }

  /** What a replica does not show to its readers yet, in words; undefined: nothing. */
  #lacks(nodeId: string, ends: ReadonlyMap<string, EpochPosition>): string | undefined {
    const databases = this.#replica(nodeId)?.databases;
    const existing = new Set(this.#parts.store.databases());
    for (const [name, end] of ends) {
      const theirs = databases?.get(name);
      // Of one that was dropped they need to know that; one that they never had is nothing to them.
      if (!existing.has(name) && theirs?.received === undefined) continue;
      const at = existing.has(name) ? theirs?.applied : theirs?.received;
      if (at && samePosition(at, end)) continue;
      return `${name} is at TXID ${at?.txid ?? 0n} of ${end.txid}`;
    }
    return undefined;
  }
}
