import { isIPv4 } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

import { Server, ServerCredentials } from '@grpc/grpc-js';

import { KiteError } from '../errors.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import type { ReplicationHandlers } from './generated/kitefs/v1/Replication.js';
import { checkSecret } from './peer-secret.js';
import { ReplicaSession } from './replica-session.js';
import type { PrimaryHint, ReplicationStore } from './store.js';
import { CHANNEL_OPTIONS, Replication } from './wire.js';

/** What this node is right now. Asked before every message, so it must be cheap. */
export type PrimaryRole =
  | { readonly primary: true; readonly epoch: bigint; readonly leaseValid: boolean }
  | { readonly primary: false; readonly holder: PrimaryHint | undefined };

export interface ReplicationServerOptions {
  /** host:port to listen on; port 0 takes a free one. Not loopback: a secret is needed. */
  readonly address: string;
  readonly store: ReplicationStore;
  readonly role: () => PrimaryRole;
  readonly secret?: string | undefined;
  /** Whether replicas fsync each file of this database before they acknowledge it. Default: of none. */
  readonly durable?: (name: string) => boolean;
  /** Whether commits in this database wait for acknowledgements. Default: in none. */
  readonly awaited?: (name: string) => boolean;
  /** An authenticated peer knows a higher epoch than this node's: somebody else is primary. */
  readonly onHigherEpoch?: (epoch: bigint) => void;
  /** A replica asks for the primary's role; rejects when it stays here, and why is told to the replica. */
  readonly onHandOff?: (nodeId: string, waitMs: number) => Promise<void>;
  /** Replicas that write databases of this primary; left out: none may. */
  readonly halts?: HaltHost | undefined;
  readonly onEvent?: (event: ReplicaEvent) => void;
  /** Bytes of a message of any stream. */
  readonly onBytes?: (direction: 'sent' | 'received', bytes: number) => void;
  readonly heartbeatMs?: number;
  /** A stream with no message for this long is dead. */
  readonly silenceMs?: number;
}

/** Who asks for HALT, on what. */
export interface HaltOf {
  readonly nodeId: string;
  readonly name: string;
  readonly id: number;
}

/** A transaction of a replica on its way in. */
export interface IncomingTransaction {
  write(data: Buffer): void;
  /** Commits it here; resolves with where the database then is. */
  commit(): Promise<EpochPosition>;
  /** Leaves no trace of it. */
  abort(): void;
}

/** HALT, as the primary grants it (src/halt/grants.ts). All reject with why not, and HALT is over then. */
export interface HaltHost {
  readonly ttlMs: number;
  /** Resolves with where the database is. */
  acquire(of: HaltOf, waitMs: number): Promise<EpochPosition>;
  /** Holds on what is held. */
  renew(of: HaltOf): Promise<EpochPosition>;
  receive(of: HaltOf, file: Omit<LogFile, 'path'>): IncomingTransaction;
  release(of: HaltOf): Promise<void>;
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
  /** The log is of no use to a replica: it gets the pages that differ, or all of them. */
  | {
      readonly kind: 'replaced';
      readonly nodeId: string;
      readonly name: string;
      readonly replacement: 'difference' | 'snapshot';
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
  readonly #options: ReplicationServerOptions;
  readonly #server = new Server(CHANNEL_OPTIONS);
  /** Every open stream, proved or not. */
  readonly #sessions = new Set<ReplicaSession>();
  #port = 0;
  #stopped: Promise<void> | undefined;

  /** Rejects with ERR_REPLICATION_INSECURE, ERR_REPLICATION_SECRET_WEAK or ERR_REPLICATION_LISTEN. */
  static async start(options: ReplicationServerOptions): Promise<ReplicationServer> {
    checkSecret(options.secret);
    if (options.secret === undefined && !isLoopback(options.address)) {
      throw new KiteError(
        'ERR_REPLICATION_INSECURE',
        `Without a secret peers listen on loopback only, and ${options.address} is not`,
      );
    }
    const server = new ReplicationServer(options);
    await server.#listen();
    return server;
  }

  private constructor(options: ReplicationServerOptions) {
    this.#options = options;
    const host = {
      options,
      started: (session: ReplicaSession) => this.#started(session),
      ended: (session: ReplicaSession, error: KiteError | undefined) => this.#ended(session, error),
    };
    const handlers: ReplicationHandlers = {
      Replicate: (call) => {
        const session = new ReplicaSession(call, host);
        if (this.#stopped === undefined) this.#sessions.add(session);
        else session.end();
      },
    };
    this.#server.addService(Replication.service, handlers);
  }

  /** Port that it listens on. */
  get port(): number {
    return this.#port;
  }

  /** Replicas that are connected now. */
  replicas(): readonly ReplicaStatus[] {
    return [...this.#sessions].filter((session) => session.streaming).map((session) => session.status());
  }

  /** This node became or ceased to be primary: streams of the former role end at once. */
  roleChanged(): void {
    for (const session of this.#sessions) {
      session.end(new KiteError('ERR_REPLICATION_NOT_PRIMARY', 'The primary has changed'));
    }
  }

  /** Lets connected replicas catch up for at most `drainMs` (default 1000), says goodbye, then ends by force. */
  stop({ drainMs = 1000 }: { drainMs?: number } = {}): Promise<void> {
    this.#stopped ??= this.#stop(drainMs);
    return this.#stopped;
  }

  async #stop(drainMs: number): Promise<void> {
    const deadlineMs = monotonicMs() + drainMs;
    while ([...this.#sessions].some((session) => !session.caughtUp) && monotonicMs() < deadlineMs) {
      await sleep(10);
    }
    for (const session of this.#sessions) session.end();
    // tryShutdown waits for streams for ever, and one of a peer that does not read never ends.
    await Promise.race([new Promise((resolve) => this.#server.tryShutdown(resolve)), sleep(200)]);
    this.#server.forceShutdown();
  }

  async #listen(): Promise<void> {
    const { address } = this.#options;
    // Without a host every address is meant, as in HTTP: by IPv6, which takes IPv4 too, or where there is none by that.
    const addresses = address.startsWith(':') ? [`[::]${address}`, `0.0.0.0${address}`] : [address];
    let cause: Error | undefined;
    for (const each of addresses) {
      try {
        this.#port = await this.#bind(each);
        return;
      } catch (error) {
        cause ??= error as Error;
      }
    }
    const text = `Cannot listen for peers on ${address}: ${cause?.message}`;
    throw new KiteError('ERR_REPLICATION_LISTEN', text, { cause });
  }

  #bind(address: string): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#server.bindAsync(address, ServerCredentials.createInsecure(), (error, port) =>
        error === null ? resolve(port) : reject(error),
      );
    });
  }

  #started(session: ReplicaSession): void {
    for (const other of this.#sessions) {
      // The replica knows better than our heartbeat that its former stream is dead.
      if (other !== session && other.streaming && other.nodeId === session.nodeId) {
        other.end(new KiteError('ERR_REPLICATION_DISCONNECTED', 'The replica has connected anew'));
      }
    }
    this.#options.onEvent?.({ kind: 'connected', nodeId: session.nodeId });
  }

  #ended(session: ReplicaSession, error: KiteError | undefined): void {
    const wasStreaming = this.#sessions.delete(session) && session.wasStreaming;
    const reason = error?.message ?? 'The stream has ended';
    this.#options.onEvent?.(
      wasStreaming
        ? { kind: 'disconnected', nodeId: session.nodeId, reason }
        : { kind: 'refused', peer: session.peer, reason },
    );
  }
}

/** Whether only this machine can reach an address `host:port`. */
function isLoopback(address: string): boolean {
  const host = address.slice(0, address.lastIndexOf(':')).replace(/^\[(.*)\]$/, '$1');
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'));
}
