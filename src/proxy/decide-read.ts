import { isPrimary } from '../observability/node-status.js';
import { type Decision, type Question, toPrimary } from './decide.js';
import { relate } from './history.js';
import type { NodeSnapshot } from './node-view.js';
import type { ProxySettings } from './settings.js';
import type { Token } from './token.js';

/** What the client of a read must see. */
export interface ReadNeeds {
  /** What it has seen, by database. */
  readonly positions: Token;
  /** Kitefs-Max-Staleness; undefined: the route's or none. */
  readonly maxStalenessMs: number | undefined;
}

type ReadSettings = Pick<
  ProxySettings,
  'databases' | 'withoutPrimary' | 'readWaitMs' | 'maxStalenessMs' | 'staleReads' | 'primaryWaitMs'
>;

/**
 * Where a read goes. Pure. Here, when this node is as fresh as it must be and has what the client has seen; for the second it waits, at
 * most `read-wait`; else at the primary, or 503 (`stale-reads`). What no node will ever have (a transaction that a failover
 * has lost) is not waited for.
 */
export function decideRead(question: Question, settings: ReadSettings, node: NodeSnapshot): Decision {
  const { needs, arrivedMs, nowMs, forwardedEpoch } = question;
  const { route } = question.class;
  if (isValidPrimary(node, nowMs)) return { kind: 'local', why: 'this node is the primary' };
  // A node has sent it here because only the primary may answer it.
  if (forwardedEpoch !== undefined) return toPrimary(question, settings, node, 'a read for the primary');

  const withoutPrimary = route?.withoutPrimary ?? settings.withoutPrimary;
  if (withoutPrimary === 'refuse' && !node.primary && !isPrimary(node.role))
    return { kind: 'refuse', code: 'ERR_PROXY_NO_PRIMARY', why: 'no primary is known' };

  const maxStalenessMs = least(needs?.maxStalenessMs, route?.maxStalenessMs ?? settings.maxStalenessMs);
  if (maxStalenessMs !== undefined) {
    const ageMs = ageOf(node, settings, nowMs);
    if (ageMs === undefined || ageMs > maxStalenessMs) {
      const age = ageMs === undefined ? 'of unknown age' : `${Math.round(ageMs)} ms old`;
      return elsewhere(question, settings, node, `data here is ${age}, ${maxStalenessMs} ms are allowed`);
    }
  }

  const behind = firstBehind(needs?.positions, settings, node);
  if (!behind) return { kind: 'local', why: 'a read' };
  const why = `${behind.database} is not at ${behind.at.epoch}:${behind.at.txid.toString(16)} here`;
  const untilMs = arrivedMs + (route?.readWaitMs ?? settings.readWaitMs);
  if (nowMs < untilMs) return { kind: 'wait', untilMs, position: behind, why };
  return elsewhere(question, settings, node, why);
}

/** Its data is the newest there is: nobody else can have written. */
const isValidPrimary = (node: NodeSnapshot, nowMs: number): boolean =>
  isPrimary(node.role) && nowMs < node.writableUntilMs;

/** Databases that clients are held to. */
export const databasesOf = (
  settings: Pick<ProxySettings, 'databases'>,
  node: NodeSnapshot,
): readonly string[] => (settings.databases.length > 0 ? settings.databases : [...node.databases.keys()]);

/** How old what readers here see is at most; undefined: that is not known. A database that no node has heard of has no age. */
export function ageOf(
  node: NodeSnapshot,
  settings: Pick<ProxySettings, 'databases'>,
  nowMs: number,
): number | undefined {
  if (isValidPrimary(node, nowMs)) return 0;
  let ageMs = 0;
  for (const name of databasesOf(settings, node)) {
    const at = node.databases.get(name)?.freshAtMs;
    // Of a primary that may not write any more it says nothing: another one may be writing.
    if (at === undefined || at === Infinity) return undefined;
    ageMs = Math.max(ageMs, nowMs - at);
  }
  return node.databases.size === 0 ? undefined : ageMs;
}

function firstBehind(
  token: Token | undefined,
  settings: Pick<ProxySettings, 'databases'>,
  node: NodeSnapshot,
) {
  const followed = settings.databases;
  for (const [database, at] of token ?? []) {
    if (followed.length > 0 && !followed.includes(database)) continue;
    if (relate(at, node.databases.get(database)) === 'behind') return { database, at };
  }
  return undefined;
}

function elsewhere(question: Question, settings: ReadSettings, node: NodeSnapshot, why: string): Decision {
  const refused: Decision = { kind: 'refuse', code: 'ERR_PROXY_STALE', why };
  if (settings.staleReads === 'refuse') return refused;
  const decision = toPrimary(question, settings, node, why);
  return decision.kind === 'refuse' ? refused : decision;
}

const least = (a: number | undefined, b: number | undefined): number | undefined =>
  a === undefined || b === undefined ? (a ?? b) : Math.min(a, b);
