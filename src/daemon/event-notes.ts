import type { DurabilityEvent } from '../durability/durability.js';
import type { ReplicationClientEvent } from '../replication/client.js';
import type { ReplicaEvent } from '../replication/server.js';
import type { EventLog } from './event-log.js';

/** What the parts of a node tell it, in words for people; what nobody would want to read is left out. */
type Notes = Pick<EventLog, 'add'>;

/** From a replica's side of the stream. */
export function noteClientEvent(event: ReplicationClientEvent, notes: Notes): void {
  switch (event.kind) {
    case 'connected':
      notes.add('connected', `following ${event.primaryNodeId}, epoch ${event.epoch}`);
      break;
    case 'database-failed':
      notes.add('stream-failed', event.error.describe(), { database: event.name, level: 'warn' });
      break;
    case 'disconnected':
    case 'fresher':
      break;
  }
}

/** From the primary's side of it. */
export function noteReplicaEvent(event: ReplicaEvent, notes: Notes): void {
  switch (event.kind) {
    case 'connected':
      notes.add('replica-connected', `${event.nodeId} follows this node`);
      break;
    case 'disconnected':
      notes.add('replica-disconnected', `${event.nodeId}: ${event.reason}`);
      break;
    case 'refused':
      notes.add('peer-refused', `${event.peer}: ${event.reason}`, { level: 'warn' });
      break;
    case 'database-failed': {
      const more = { database: event.name, level: 'warn' } as const;
      notes.add('replica-failed', `${event.nodeId}: ${event.reason}`, more);
      break;
    }
    case 'replaced': {
      const what = event.replacement === 'difference' ? 'the pages that differ' : 'a snapshot';
      notes.add('resync', `${event.nodeId} gets ${what}: ${event.reason}`, { database: event.name });
      break;
    }
    case 'acknowledged':
      break;
  }
}

/** From commits that wait for replicas or backups. */
export function noteDurabilityEvent(event: DurabilityEvent, notes: Notes): void {
  switch (event.kind) {
    case 'sync-set': {
      const members = event.members.length === 0 ? 'empty: any candidate may win' : event.members.join(', ');
      notes.add('sync-set', `the sync set in the lease is ${members}`);
      break;
    }
    case 'blocked': {
      const more = { database: event.name, level: 'warn' } as const;
      notes.add('durability-blocked', `${event.message}; it goes on waiting`, more);
      break;
    }
    case 'degraded': {
      const more = { database: event.name, level: 'error' } as const;
      notes.add('durability-degraded', `${event.message}; commits do not wait any more`, more);
      break;
    }
    case 'restored':
      notes.add('durability-restored', `commits in ${event.name} wait again as durability says`, {
        database: event.name,
      });
      break;
    case 'waited':
      break;
  }
}
