import type { RequestClass } from './classify.js';
import type { AnsweredBy } from './context.js';
import type { DatabaseView, NodeSnapshot, TimelinePosition } from './node-view.js';
import type { ProxySettings } from './settings.js';

/** Between the daemon and the process that is the proxy. */

/** A node without its databases, which change far more often than the rest. */
export type NodeFacts = Omit<NodeSnapshot, 'databases'>;

export type Databases = readonly (readonly [string, DatabaseView | undefined])[];

export type ToProxy =
  | {
      readonly kind: 'start';
      readonly settings: ProxySettings;
      readonly node: NodeFacts;
      readonly databases: Databases;
      /** Path of the ChangeMark of what readers here see. */
      readonly mark: string | undefined;
    }
  | { readonly kind: 'node'; readonly node: NodeFacts }
  /** Those that have changed; undefined: it is gone. */
  | { readonly kind: 'databases'; readonly databases: Databases }
  /** undefined: that cannot be known. */
  | {
      readonly kind: 'seen';
      readonly id: number;
      readonly positions: ReadonlyMap<string, TimelinePosition> | undefined;
    }
  /** Say when the application has answered the writes that it has: `quiet`. */
  | { readonly kind: 'quiet' }
  /** Answer what runs, then end. */
  | { readonly kind: 'drain'; readonly drainMs: number };

export interface Counted {
  readonly kind: RequestClass['kind'];
  readonly by: AnsweredBy;
  readonly status: number;
  readonly count: number;
}

export type FromProxy =
  | { readonly kind: 'listening'; readonly port: number }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string }
  | { readonly kind: 'ask'; readonly id: number; readonly databases: readonly string[] }
  | { readonly kind: 'log'; readonly level: 'debug' | 'warn'; readonly message: string }
  /** It lives, and this was answered since it last said so. */
  | {
      readonly kind: 'alive';
      readonly counted: readonly Counted[];
      readonly requests: number;
      readonly upgrades: number;
      readonly targetsUp: number;
    }
  | { readonly kind: 'quiet' }
  | { readonly kind: 'drained' };
