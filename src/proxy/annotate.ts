import type { IncomingHttpHeaders } from 'node:http';
import { KiteError } from '../errors.js';
import { parseDuration } from '../config/values.js';
import { ageOf, databasesOf, type ReadNeeds } from './decide-read.js';
import { relate } from './history.js';
import type { NodeSnapshot, NodeView } from './node-view.js';
import type { ProxySettings } from './settings.js';
import { advance, formatToken, NO_TOKEN, parseToken, type Token, TOKEN_DATABASES_MAX } from './token.js';

/**
 * The proxy's own headers: what a client brings (a token, a bound on staleness) and what an answer of this node says. An answer that
 * came from the primary's proxy has them already and is passed on as it is.
 */

export const TOKEN_COOKIE = 'kitefs-token';
export const TOKEN_HEADER = 'kitefs-token';
export const MAX_STALENESS_HEADER = 'kitefs-max-staleness';

/** A day: what is older than that has long been applied everywhere, or lost. */
const COOKIE_MAX_AGE_S = 86_400;
/** Of one name, from several paths or domains: whoever sends more is not a browser. */
const COOKIES_MAX = 4;

type TokenSettings = Pick<ProxySettings, 'token' | 'tokenSecret'>;

/** What the client needs to see; undefined: it says nothing. Throws ERR_PROXY_REQUEST for a malformed bound. */
export function readNeeds(headers: IncomingHttpHeaders, settings: TokenSettings): ReadNeeds | undefined {
  const bound = headers[MAX_STALENESS_HEADER];
  const maxStalenessMs = bound === undefined ? undefined : parseDuration(bound);
  // A bound that is not understood must not be taken for none.
  if (bound !== undefined && maxStalenessMs === undefined) {
    throw new KiteError('ERR_PROXY_REQUEST', 'Kitefs-Max-Staleness: expected a duration such as 500ms or 2s');
  }
  const positions = tokenOf(headers, settings);
  return positions.size === 0 && maxStalenessMs === undefined ? undefined : { positions, maxStalenessMs };
}

/** Everything that the client says it has seen. What is no token counts as nothing. */
function tokenOf(headers: IncomingHttpHeaders, { token: mode, tokenSecret }: TokenSettings): Token {
  if (mode === 'off') return NO_TOKEN;
  const header = headers[TOKEN_HEADER];
  const texts = [...cookies(headers.cookie), ...(typeof header === 'string' ? [header.trim()] : [])];
  return texts.reduce<Token>(
    (token, text) => advance(token, parseToken(text, tokenSecret) ?? NO_TOKEN),
    NO_TOKEN,
  );
}

function cookies(header: string | undefined): string[] {
  const prefix = `${TOKEN_COOKIE}=`;
  const found: string[] = [];
  // Looked for from one to the next: a header of many other cookies is not taken apart.
  for (let at = header?.indexOf(prefix) ?? -1; at >= 0 && found.length < COOKIES_MAX;) {
    const text = header as string;
    const isName = at === 0 || text[at - 1] === ' ' || text[at - 1] === ';';
    const end = text.indexOf(';', at);
    if (isName) found.push(text.slice(at + prefix.length, end < 0 ? undefined : end).trim());
    at = end < 0 ? -1 : text.indexOf(prefix, end);
  }
  return found;
}

export interface Answered {
  readonly kind: 'read' | 'write' | 'passthrough';
  readonly needs: ReadNeeds | undefined;
  /** Of the request. */
  readonly headers: IncomingHttpHeaders;
  /** How long it has waited for this node to be as its client needs it. */
  readonly waitedMs: number;
  /** As the application answered. */
  readonly status: number;
  /** Name, value, name, value… as the application sent them. */
  readonly rawHeaders: readonly string[];
}

type AnswerSettings = Pick<ProxySettings, 'token' | 'tokenSecret' | 'databases' | 'responseHeaders'>;

/**
 * Headers to add to an answer of this node's application, as name, value, name, value…; asked once its head has come and before
 * the first byte goes out. A promise where the daemon must be asked what the application can have seen: of a write, capture has to pass
 * the WAL's end first; of a read, the client must never be shown less than it may have been shown now.
 */
export function answerHeaders(
  answered: Answered,
  view: NodeView,
  settings: AnswerSettings,
  nowMs: number,
): readonly string[] | Promise<readonly string[]> {
  if (answered.kind === 'passthrough') return [];
  const about = settings.responseHeaders ? aboutNode(view.now, settings, nowMs) : [];
  if (settings.responseHeaders && answered.waitedMs >= 1)
    about.push('Kitefs-Waited', `${Math.round(answered.waitedMs)}ms`);
  if (settings.token === 'off' || (answered.kind === 'read' && isShared(answered.rawHeaders))) return about;
  const followed = databasesOf(settings, view.now).slice(0, TOKEN_DATABASES_MAX);
  const seen = view.seen(followed);
  if (!(seen instanceof Promise)) return withToken(about, answered, seen, view.now, settings);
  return seen.then(
    (later) => withToken(about, answered, later, view.now, settings),
    // The node is about to end. What the application has answered stays true without a token.
    () => about,
  );
}

function withToken(
  about: readonly string[],
  { needs, headers }: Answered,
  seen: Token,
  node: NodeSnapshot,
  settings: AnswerSettings,
): readonly string[] {
  const known = needs?.positions ?? NO_TOKEN;
  const lost = lostOf(known, seen, node);
  const token = advance(known, seen, new Set(lost.keys()));
  const added = [...about];
  if (lost.size > 0) added.push('Kitefs-Lost', formatToken(lost));
  // Nothing has moved: an answer that sets no cookie may be stored and compared by whoever is on the way.
  if (token === known) return added;
  const text = formatToken(token, settings.tokenSecret);
  if (settings.token === 'header' || headers[TOKEN_HEADER] !== undefined) added.push('Kitefs-Token', text);
  else added.push('Set-Cookie', cookieOf(text, headers));
  return added;
}

/** Transactions that the client has seen and that no node will ever have again. */
function lostOf(known: Token, seen: Token, node: NodeSnapshot): Token {
  const lost = new Map<string, { epoch: bigint; txid: bigint }>();
  for (const [name, entry] of known) {
    const history = node.databases.get(name);
    const now = seen.get(name) ?? history?.position;
    if (!history || !now) continue;
    const relation = relate(entry, { position: now, ends: history.ends });
    // On the primary nothing is still to come: what it has not is of another history, or of nobody's.
    if (relation === 'lost' || (relation === 'behind' && node.role === 'primary')) lost.set(name, entry);
  }
  return lost;
}

function aboutNode(node: NodeSnapshot, settings: Pick<ProxySettings, 'databases'>, nowMs: number): string[] {
  const ageMs = ageOf(node, settings, nowMs);
  const positions = new Map(
    databasesOf(settings, node).flatMap((name) => {
      const database = node.databases.get(name);
      return database ? [[name, database.position] as const] : [];
    }),
  );
  const freshness = ageMs === undefined ? 'unknown' : `${Math.max(0, Math.ceil(ageMs))}ms`;
  return [
    'Kitefs-Node',
    headerText(node.nodeId),
    'Kitefs-Freshness',
    freshness,
    ...(positions.size > 0 ? ['Kitefs-Position', formatToken(positions)] : []),
  ];
}

const headerText = (text: string): string => text.replaceAll(/[^\x21-\x7e]/g, '?');

/** `Secure` only where the client came by TLS, as the edge says: over plain HTTP a browser would drop the cookie. */
function cookieOf(text: string, headers: IncomingHttpHeaders): string {
  const isSecure = headers['x-forwarded-proto'] === 'https' || headers['fly-forwarded-proto'] === 'https';
  return `${TOKEN_COOKIE}=${text}; Path=/; Max-Age=${COOKIE_MAX_AGE_S}; HttpOnly; SameSite=Lax${isSecure ? '; Secure' : ''}`;
}

/**
 * Whether the application lets caches that many clients share keep its answer. Then nothing of one client's token goes into it: a cookie would
 * keep nginx and Cloudflare from storing it, and a cache that stores it all the same would give one client's token to
 * all. Without a word about caching it is no such answer. The proxy never changes Cache-Control or Vary.
 */
function isShared(rawHeaders: readonly string[]): boolean {
  let shared = false;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]?.toLowerCase() ?? '';
    if (
      !['cache-control', 'cdn-cache-control', 'cloudflare-cdn-cache-control', 'surrogate-control'].includes(
        name,
      )
    )
      continue;
    const words = (rawHeaders[i + 1] ?? '').toLowerCase();
    if (name === 'cache-control' && /\b(private|no-store|no-cache)\b/.test(words)) return false;
    if (/\b(public|immutable)\b|\b(s-maxage|max-age)\s*=\s*"?0*[1-9]/.test(words)) shared = true;
  }
  return shared;
}
