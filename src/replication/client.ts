import type { KiteError } from '../errors.js';
import type { LeaseHolder } from '../lease/types.js';
import type { DatabaseFreshness } from './freshness.js';
import type { ReplicationStore } from './store.js';

export interface ReplicationClientOptions {
  /** host:port of the primary's peer server. */
  readonly primaryAddress: string;
  readonly store: ReplicationStore;
  readonly secret?: string | undefined;
  /** The primary's stream carries a higher epoch than `store.epoch()`: note it (node.json) before returning. */
  readonly onHigherEpoch?: (epoch: bigint) => void;
  readonly onEvent?: (event: ReplicationClientEvent) => void;
  readonly heartbeatMs?: number;
  readonly silenceMs?: number;
}

export type ReplicationClientEvent =
  | { readonly kind: 'connected'; readonly primaryNodeId: string; readonly epoch: bigint }
  /** `primary`: who the refusing node says is primary. */
  | {
      readonly kind: 'disconnected';
      readonly error: KiteError;
      readonly retryMs: number;
      readonly primary: LeaseHolder | undefined;
    }
  | {
      readonly kind: 'database-failed';
      readonly name: string;
      readonly error: KiteError;
      readonly retryMs: number;
    };

export interface ReplicationClientStatus {
  readonly connected: boolean;
  readonly primaryNodeId: string | undefined;
  readonly lastError: KiteError | undefined;
}

/** Follows the primary: connects, again and again, until stopped. */
export class ReplicationClient {
  /** Begins to connect and returns at once. Throws ERR_REPLICATION_SECRET for a weak secret. */
  static start(options: ReplicationClientOptions): ReplicationClient {
    throw new Error(`not yet: ${options.primaryAddress}`);
  }
  status(): ReplicationClientStatus {
    throw new Error('not yet');
  }
  /** Freshness of one database of this replica; undefined when it is not here. Kept while disconnected: the age grows. */
  freshness(name: string): DatabaseFreshness | undefined {
    throw new Error(`not yet ${name}`);
  }
  /** Ends the stream; files on their way in are given up without a trace. */
  stop(): Promise<void> {
    throw new Error('not yet');
  }
}
