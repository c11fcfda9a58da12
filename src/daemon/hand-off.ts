import { setTimeout as sleep } from 'node:timers/promises';
import type { Applier } from '../applier/applier.js';
import type { Capture } from '../capture/capture.js';
import { toKiteError } from '../errors.js';
import type { Lease } from '../lease/lease.js';
import type { Member } from '../lease/types.js';
import type { ReplicationServer, ReplicaStatus } from '../replication/server.js';
import { monotonicMs } from '../util/clock.js';
import type { EventLog } from './event-log.js';
import type { NodeStore } from './node-store.js';

const LOCK_LIMIT_MS = 5000;
const CATCH_UP_LIMIT_MS = 5000;

export interface HandOffParts {
  readonly lease: Lease;
  readonly applier: Applier;
  readonly capture: Capture;
  readonly store: NodeStore;
  readonly server: ReplicationServer;
  readonly events: EventLog;
  readonly candidates: () => readonly Member[];
}

/**
 * Before a primary stops: takes SQLite's write lock on every database (writers see BUSY and ride it out), waits
 * until one connected candidate has everything, and names it in the lease. Returns false, with nothing
 * changed, when there is no such candidate or writers keep their locks: the lease is then simply released.
 */
export async function handOff(parts: HandOffParts): Promise<boolean> {
  const { lease, applier, capture, store, server, events } = parts;
  const ids = new Set(parts.candidates().flatMap((member) => (member.candidate ? [member.nodeId] : [])));
  if (!server.replicas().some((replica) => ids.has(replica.nodeId))) return false;
  try {
    const names = store.databases().filter((name) => store.lastFile(name)?.commitPages !== 0);
    await applier.lockForHandOff(names, LOCK_LIMIT_MS);
    // Nobody commits any more; what was committed a moment ago is captured before anything is compared.
    for (const name of names) await capture.position(name);
    const target = await caughtUp(parts, ids);
    if (target === undefined) return false;
    await lease.handOff(target);
    events.add('handed-off', `the lease was handed to ${target}`);
    return true;
  } catch (error) {
    events.add('hand-off-failed', toKiteError(error).message, { level: 'warn' });
    return false;
  } finally {
    await applier.unlock().catch(() => undefined);
  }
}

/** A connected candidate that has everything in its log, as soon as there is one. */
async function caughtUp(
  { store, server }: HandOffParts,
  ids: ReadonlySet<string>,
): Promise<string | undefined> {
  const hasAll = (replica: ReplicaStatus): boolean =>
    store.databases().every((name) => {
      const ours = store.position(name);
      const theirs = replica.databases.get(name)?.received;
      return theirs !== undefined && theirs.txid === ours?.txid && theirs.checksum === ours.checksum;
    });
  const limit = monotonicMs() + CATCH_UP_LIMIT_MS;
  while (monotonicMs() < limit) {
    const connected = server.replicas().filter((replica) => ids.has(replica.nodeId));
    // They may all be stopping as well: then there is nobody to wait for.
    if (connected.length === 0) return undefined;
    const target = connected.find(hasAll);
    if (target) return target.nodeId;
    await sleep(5);
  }
  return undefined;
}
