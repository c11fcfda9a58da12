import { isPrimary } from '../observability/node-status.js';
import type { Decision, Question } from './decide.js';
import type { NodeSnapshot, TimelinePosition } from './node-view.js';
import type { ProxySettings } from './settings.js';

/** What the client of a read must see. */
export interface ReadNeeds {
  /** By database. */
  readonly positions: ReadonlyMap<string, TimelinePosition>;
  /** Kitefs-Max-Staleness; undefined: the route's or none. */
  readonly maxStalenessMs: number | undefined;
}

/** Where a read goes. Pure. */
export function decideRead(question: Question, settings: ProxySettings, node: NodeSnapshot): Decision {
  const withoutPrimary = question.class.route?.withoutPrimary ?? settings.withoutPrimary;
  if (withoutPrimary === 'refuse' && !node.primary && !isPrimary(node.role))
    return { kind: 'refuse', code: 'ERR_PROXY_NO_PRIMARY', why: 'no primary is known' };
  return { kind: 'local', why: 'a read' };
}
