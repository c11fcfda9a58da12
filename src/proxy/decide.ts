import { isPrimary } from '../observability/node-status.js';
import type { RequestClass } from './classify.js';
import { decideRead, type ReadNeeds } from './decide-read.js';
import type { NodeSnapshot, PrimaryView, TimelinePosition } from './node-view.js';
import type { ProxySettings } from './settings.js';

/** What is asked about one request; the same question may be asked again after each wait. */
export interface Question {
  readonly class: RequestClass;
  /** What its client must see; undefined: it asks for nothing. */
  readonly needs: ReadNeeds | undefined;
  /** Monotonic. */
  readonly arrivedMs: number;
  readonly nowMs: number;
  /** A node has sent it here because this is the primary of that epoch: it goes no further. */
  readonly forwardedEpoch: bigint | undefined;
}

export type Decision =
  | { readonly kind: 'local'; readonly why: string }
  | { readonly kind: 'primary'; readonly primary: PrimaryView; readonly why: string }
  /** Ask again at the next change of the node, when readers here see `position`, or at `untilMs`. */
  | {
      readonly kind: 'wait';
      readonly untilMs: number;
      readonly position?: { readonly database: string; readonly at: TimelinePosition };
      readonly why: string;
    }
  | {
      readonly kind: 'refuse';
      readonly code: 'ERR_PROXY_NO_PRIMARY' | 'ERR_PROXY_NOT_PRIMARY' | 'ERR_PROXY_STALE';
      readonly why: string;
    };

/** Where a request goes. Pure. */
export function decide(question: Question, settings: ProxySettings, node: NodeSnapshot): Decision {
  const { kind } = question.class;
  if (kind === 'passthrough') return { kind: 'local', why: 'passthrough' };
  if (kind === 'read') return decideRead(question, settings, node);
  return toPrimary(question, settings, node, 'a write');
}

/** For what only the primary may answer: it is here, it is there, it is awaited, or it is not to be had. */
export function toPrimary(
  question: Question,
  settings: Pick<ProxySettings, 'primaryWaitMs'>,
  node: NodeSnapshot,
  why: string,
): Decision {
  const { arrivedMs, nowMs, forwardedEpoch } = question;
  // While it hands over it would answer BUSY: better held until the successor is known.
  const isHere = isPrimary(node.role) && nowMs < node.writableUntilMs;
  if (isHere && node.role === 'primary') {
    if (forwardedEpoch !== undefined && forwardedEpoch > node.epoch)
      return { kind: 'refuse', code: 'ERR_PROXY_NOT_PRIMARY', why: `epoch ${forwardedEpoch} is asked for` };
    return { kind: 'local', why };
  }
  // Who sent it knows better where to look than a chain of nodes that each believe another.
  if (forwardedEpoch !== undefined && !isPrimary(node.role))
    return { kind: 'refuse', code: 'ERR_PROXY_NOT_PRIMARY', why: `this node is ${node.role}` };
  if (node.primary?.proxyAddress !== undefined) return { kind: 'primary', primary: node.primary, why };
  const untilMs = arrivedMs + settings.primaryWaitMs;
  if (nowMs < untilMs) return { kind: 'wait', untilMs, why: 'no primary is known' };
  return { kind: 'refuse', code: 'ERR_PROXY_NO_PRIMARY', why: 'no primary is known' };
}
