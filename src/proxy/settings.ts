import type { Address } from '../config/values.js';

/** The settings of the proxy, complete (`proxy` in kitefs.yml). */
export interface ProxySettings {
  readonly addr: Address;
  readonly targets: readonly Address[];
  readonly databases: readonly string[];
  readonly reads: readonly Pattern[];
  readonly passthrough: readonly Pattern[];
  readonly alwaysForward: readonly Pattern[];
  readonly routes: readonly Route[];
  /** How long a write waits for a primary. */
  readonly primaryWaitMs: number;
  readonly withoutPrimary: WithoutPrimary;
  /** How clients carry what they have seen; a client that sends the header is answered by the header in any case. */
  readonly token: 'cookie' | 'header' | 'off';
  /** Tokens are signed with it, and others are not taken; undefined: any are. */
  readonly tokenSecret: string | undefined;
  /** How long a read waits until this node has what its client has seen. */
  readonly readWaitMs: number;
  /** No read of this node is older; undefined: there is no bound. */
  readonly maxStalenessMs: number | undefined;
  /** What becomes of reads that this node cannot serve as fresh as they must be: the primary answers, or 503. */
  readonly staleReads: 'primary' | 'refuse';
  /** Whether answers say which node has served them and how fresh (Kitefs-Node, Kitefs-Freshness, Kitefs-Position). */
  readonly responseHeaders: boolean;
  /** Reads of requests and answers of the application: 0 is no limit. */
  readonly readTimeoutMs: number;
  readonly readHeaderTimeoutMs: number;
  readonly writeTimeoutMs: number;
  readonly idleTimeoutMs: number;
  /** How long a target that refuses connections is tried: it may be starting. */
  readonly targetWaitMs: number;
  /** What a request's body may have at most to be kept for a second attempt at the primary. */
  readonly bufferBytes: number;
  readonly maxHeaderBytes: number;
  /** How long in-flight requests and WebSockets have when this node changes its role, or ends. */
  readonly drainMs: number;
  readonly replay: 'off' | 'instance' | 'region';
  /** Fly.io replays no larger body. */
  readonly replayMaxBodyBytes: number;
  readonly maintenancePage: string | undefined;
  readonly debug: boolean;
  readonly secret: string | undefined;
}

/** What reads get while no primary is known: an answer of this node, or 503. */
export type WithoutPrimary = 'serve' | 'refuse';

/** A path as in LiteFS, the whole of it, `*` for any characters; with methods: only those. */
export interface Pattern {
  readonly path: string;
  readonly methods: readonly string[] | undefined;
}

/** An entry of `proxy.routes`: what it leaves undefined is as for all. The first that matches counts. */
export interface Route extends Pattern {
  readonly as: 'read' | 'write' | 'passthrough' | undefined;
  readonly withoutPrimary: WithoutPrimary | undefined;
  /** Where WebSockets and other upgrades go. */
  readonly upgrade: 'local' | 'primary' | undefined;
  /** No read here is older; undefined: as `proxy.max-staleness`. */
  readonly maxStalenessMs: number | undefined;
  /** How long a read waits for the client's own writes; undefined: as `proxy.read-wait`. */
  readonly readWaitMs: number | undefined;
}
