import type { LeaseHolder } from '../lease/types.js';
import type { EpochPosition } from '../store/types.js';
import type { ReplicationStore } from './store.js';

/** What this node is right now. Asked before every message, so it must be cheap. */
export type PrimaryRole =
  | { readonly primary: true; readonly epoch: bigint; readonly leaseValid: boolean }
  | { readonly primary: false; readonly holder: LeaseHolder | undefined };

export interface ReplicationServerOptions {
  /** host:port to listen on; port 0 takes a free one. Not loopback: a secret is needed. */
  readonly address: string;
  readonly store: ReplicationStore;
  readonly role: () => PrimaryRole;
  readonly secret?: string | undefined;
  /** Replicas fsync each file before they acknowledge it. Default false. */
  readonly durable?: boolean;
  /** An authenticated peer knows a higher epoch than this node's: somebody else is primary. */
  readonly onHigherEpoch?: (epoch: bigint) => void;
  readonly onEvent?: (event: ReplicaEvent) => void;
  readonly heartbeatMs?: number;
  /** A stream with no message for this long is dead. */
  readonly silenceMs?: number;
}

export type ReplicaEvent =
  | { readonly kind: 'connected'; readonly nodeId: string }
  | { readonly kind: 'disconnected'; readonly nodeId: string; readonly reason: string }
  | { readonly kind: 'refused'; readonly peer: string; readonly reason: string }
  | {
      readonly kind: 'database-failed';
      readonly nodeId: string;
      readonly name: string;
      readonly reason: string;
    }
  | {
      readonly kind: 'acknowledged';
      readonly nodeId: string;
      readonly name: string;
      readonly acknowledged: Acknowledged;
    };

/** How far a replica has come with one database. */
export interface Acknowledged {
  /** In its log. */
  readonly received: EpochPosition | undefined;
  /** In its log and fsynced. */
  readonly durable: EpochPosition | undefined;
  /** Seen by its readers. */
  readonly applied: EpochPosition | undefined;
}

export interface ReplicaStatus {
  readonly nodeId: string;
  /** Address it connected from. */
  readonly peer: string;
  readonly connectedMs: number;
  readonly roundTripMs: number | undefined;
  readonly databases: ReadonlyMap<string, Acknowledged>;
}

/** Streams the log of the primary to its replicas: one gRPC stream per replica, all databases inside it. */
export class ReplicationServer {
  /** Rejects with ERR_REPLICATION_INSECURE, ERR_REPLICATION_SECRET or ERR_REPLICATION_LISTEN. */
  static start(options: ReplicationServerOptions): Promise<ReplicationServer> {
    throw new Error(`not yet: ${options.address}`);
  }
  /** Port that it listens on. */
  get port(): number {
    throw new Error('not yet');
  }
  replicas(): readonly ReplicaStatus[] {
    throw new Error('not yet');
  }
  /** This node became or ceased to be primary: streams of the former role end at once. */
  roleChanged(): void {
    throw new Error('not yet');
  }
  /** Lets connected replicas catch up for at most `drainMs` (default 1000), says goodbye, then ends by force. */
  stop(options?: { drainMs?: number }): Promise<void> {
    throw new Error(`not yet ${options}`);
  }
}
