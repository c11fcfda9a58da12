import { KiteError } from '../errors.js';
import { monotonicMs } from '../util/clock.js';
import { type DatabaseFreshness, Freshness } from './freshness.js';
import { checkSecret } from './peer-secret.js';
import { type HaltAnswer, PrimarySession } from './primary-session.js';
import type { LogFile } from '../store/types.js';
import type { PrimaryHint, ReplicationStore } from './store.js';

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
  /** The primary has answered a probe: what is said of the age of databases may have changed. */
  | { readonly kind: 'fresher' }
  /** `primary`: who the refusing node says is primary. */
  | {
      readonly kind: 'disconnected';
      readonly error: KiteError;
      readonly retryMs: number;
      readonly primary: PrimaryHint | undefined;
    }
  | {
      readonly kind: 'database-failed';
      readonly name: string;
      readonly error: KiteError;
      readonly retryMs: number;
    };

export interface ReplicationClientStatus {
  readonly connected: boolean;
  /** What the primary had when it first answered has been seen by readers here. */
  readonly caughtUp: boolean;
  readonly primaryNodeId: string | undefined;
  readonly lastError: KiteError | undefined;
}

const FIRST_RETRY_MS = 50;
const RETRY_MS_MAX = 2000;
/** A stream that lasted this long was a good one: the next pause is the shortest again. */
const GOOD_STREAM_MS = 1000;

/** Follows the primary: connects, again and again, until stopped. */
export class ReplicationClient {
  readonly #options: ReplicationClientOptions;
  readonly #freshness = new Freshness();
  readonly #unsubscribe: () => void;
  #session: PrimarySession | undefined;
  #primaryNodeId: string | undefined;
  #lastError: KiteError | undefined;
  #connectedAtMs: number | undefined;
  #failures = 0;
  #retry: NodeJS.Timeout | undefined;
  #stopped = false;
  #onSessionEnd: (() => void) | undefined;

  /** Begins to connect and returns at once. Throws ERR_REPLICATION_SECRET_WEAK for a weak secret. */
  static start(options: ReplicationClientOptions): ReplicationClient {
    checkSecret(options.secret);
    return new ReplicationClient(options);
  }

  private constructor(options: ReplicationClientOptions) {
    this.#options = options;
    const { store } = options;
    this.#unsubscribe = store.subscribe((change) => {
      if (change.kind === 'applied') this.#applied(change.name);
    });
    for (const name of store.databases()) this.#applied(name);
    this.#connect();
  }

  status(): ReplicationClientStatus {
    const connected = this.#session?.streaming ?? false;
    const { caughtUp } = this.#freshness;
    return { connected, caughtUp, primaryNodeId: this.#primaryNodeId, lastError: this.#lastError };
  }

  /** Asks the primary to hand over to this node; `refused` is called when it will not (see PrimarySession). */
  requestHandOff(waitMs: number, refused: (why: KiteError) => void): void {
    if (!this.#session) {
      return refused(
        new KiteError('ERR_REPLICATION_DISCONNECTED', 'This node is not connected to the primary'),
      );
    }
    this.#session.requestHandOff(waitMs, refused);
  }

  /** See PrimarySession.halt; rejects when there is no stream. */
  async halt(name: string, id: number, how: { waitMs: number } | 'renew'): Promise<HaltAnswer> {
    return await this.#connected.halt(name, id, how);
  }

  async haltWrite(name: string, id: number, file: LogFile): Promise<HaltAnswer> {
    return await this.#connected.haltWrite(name, id, file);
  }

  async haltEnd(name: string, id: number): Promise<HaltAnswer> {
    return await this.#connected.haltEnd(name, id);
  }

  get #connected(): PrimarySession {
    if (this.#session) return this.#session;
    throw new KiteError('ERR_REPLICATION_DISCONNECTED', 'This node is not connected to the primary');
  }

  /** A database of this replica is no longer what its log says: the primary is asked for what differs. */
  resync(name: string): void {
    // Not connected: the next stream begins with it.
    this.#session?.resync(name);
  }

  /** Freshness of one database of this replica; undefined when it is not here. Kept while disconnected: the age grows. */
  freshness(name: string): DatabaseFreshness | undefined {
    return this.#freshness.report(name, monotonicMs());
  }

  /** Ends the stream; files on their way in are given up without a trace. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#retry);
    this.#unsubscribe();
    const session = this.#session;
    if (session === undefined) return;
    await new Promise<void>((resolve) => {
      this.#onSessionEnd = resolve;
      session.end(new KiteError('ERR_REPLICATION_DISCONNECTED', 'This node stops following'));
    });
  }

  #applied(name: string): void {
    const position = this.#options.store.appliedPosition(name);
    if (position !== undefined) this.#freshness.applied(name, position);
  }

  #connect(): void {
    this.#connectedAtMs = undefined;
    this.#session = new PrimarySession({
      options: this.#options,
      freshness: this.#freshness,
      connected: (primaryNodeId, epoch) => {
        this.#primaryNodeId = primaryNodeId;
        this.#connectedAtMs = monotonicMs();
        this.#options.onEvent?.({ kind: 'connected', primaryNodeId, epoch });
      },
      ended: (error, primary) => this.#ended(error, primary),
    });
  }

  #ended(error: KiteError, primary: PrimaryHint | undefined): void {
    this.#session = undefined;
    this.#onSessionEnd?.();
    if (this.#stopped) return;
    this.#lastError = error;
    const lastedMs = this.#connectedAtMs === undefined ? 0 : monotonicMs() - this.#connectedAtMs;
    if (lastedMs > GOOD_STREAM_MS) this.#failures = 0;
    const pauseMs = Math.min(RETRY_MS_MAX, FIRST_RETRY_MS * 1.6 ** this.#failures++);
    // Jitter, so that the replicas of a primary that comes back do not all knock at once.
    const retryMs = pauseMs * (0.8 + 0.4 * Math.random());
    this.#retry = setTimeout(() => this.#connect(), retryMs);
    this.#options.onEvent?.({ kind: 'disconnected', error, retryMs, primary });
  }
}
