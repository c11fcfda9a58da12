import { createHmac, timingSafeEqual } from 'node:crypto';

/**
 * What a client has seen: for each database the last transaction that may have been in an answer to it. A client
 * carries it in a cookie or a header from request to request, so that no node shows it anything older:
 *
 *     app.db=7:1a&tenants%2F42.db=7:3          name=epoch:TXID, epoch decimal, TXID in hexadecimal
 *     app.db=7:1a~<22 characters>              with proxy.token-secret: the first 128 bits of an HMAC-SHA256
 *
 * The epoch is that of the transaction, not of the moment: one epoch has one writer, so epoch and TXID name one transaction
 * for ever, also when a failover gives its TXID to another one. Pure: no I/O, no clock.
 */

/** A transaction of one database. */
export interface TokenEntry {
  readonly epoch: bigint;
  readonly txid: bigint;
}

/** By database, in the order in which they are written. */
export type Token = ReadonlyMap<string, TokenEntry>;

export const NO_TOKEN: Token = new Map();

/** Longer texts are no tokens: what a browser keeps of one cookie is 4096 bytes with its name and attributes. */
export const TOKEN_BYTES_MAX = 2048;
/** Of a token; a client of more databases is not protected in those that it has not used for longest. */
export const TOKEN_DATABASES_MAX = 32;

const NAME_CHARACTERS_MAX = 512;
const MAC_CHARACTERS = 22;
const U64_MAX = (1n << 64n) - 1n;

/** The text of a token, all of it allowed in a cookie and in a header. Entries that do not fit are left out, oldest first. */
export function formatToken(token: Token, secret?: string): string {
  const room = TOKEN_BYTES_MAX - (secret === undefined ? 0 : MAC_CHARACTERS + 1);
  const entries: string[] = [];
  let sizeBytes = -1;
  for (const [name, { epoch, txid }] of [...token].toReversed()) {
    const text = `${encodeName(name)}=${epoch}:${txid.toString(16)}`;
    if (entries.length === TOKEN_DATABASES_MAX || sizeBytes + 1 + text.length > room) break;
    sizeBytes += 1 + text.length;
    entries.unshift(text);
  }
  const body = entries.join('&');
  return secret === undefined || body === '' ? body : `${body}~${macOf(body, secret)}`;
}

/**
 * Reads a token. Undefined for anything that is none: too long, malformed, or with `secret` not made with it. A client
 * that sends nonsense is one without a token, never an error: cookies outlive the programs that have set them.
 */
export function parseToken(text: string, secret?: string): Token | undefined {
  if (text === '' || text.length > TOKEN_BYTES_MAX) return undefined;
  const end = text.lastIndexOf('~');
  const body = end === -1 ? text : text.slice(0, end);
  if (secret !== undefined && !isMac(end === -1 ? '' : text.slice(end + 1), body, secret)) return undefined;
  // A node that has no secret takes the token of one that has, so that nodes can be given it one after the other.
  const entries = body.split('&', TOKEN_DATABASES_MAX + 1);
  if (entries.length > TOKEN_DATABASES_MAX) return undefined;
  const token = new Map<string, TokenEntry>();
  for (const entry of entries) {
    const match = /^([A-Za-z0-9_.!*'()%-]{1,1536})=(0|[1-9]\d{0,19}):(0|[1-9a-f][0-9a-f]{0,15})$/.exec(entry);
    const name = match?.[1] === undefined ? undefined : decodeName(match[1]);
    if (!match || name === undefined || token.has(name)) return undefined;
    const [epoch, txid] = [BigInt(match[2] ?? 0), BigInt(`0x${match[3]}`)];
    if (epoch > U64_MAX) return undefined;
    token.set(name, { epoch, txid });
  }
  return token;
}

/** Whether `a` is a later transaction than `b` in a history that holds both. */
export const isLater = (a: TokenEntry, b: TokenEntry): boolean =>
  a.epoch > b.epoch || (a.epoch === b.epoch && a.txid > b.txid);

/**
 * What a client has seen after an answer from a node that may have shown it `seen`. Nothing moves backward, except a
 * database in `lost`: what the client knew of it is gone, and it goes on from what there is. Returns `token`
 * itself when nothing moved: then there is nothing to tell the client.
 */
export function advance(token: Token, seen: Token, lost: ReadonlySet<string> = new Set()): Token {
  let next: Map<string, TokenEntry> | undefined;
  for (const [name, entry] of seen) {
    const known = token.get(name);
    if (known && !isLater(entry, known) && !lost.has(name)) continue;
    next ??= new Map(token);
    // To the end: what has moved last is what is left out last.
    next.delete(name);
    next.set(name, entry);
  }
  return next ?? token;
}

function encodeName(name: string): string {
  return encodeURIComponent(name).replaceAll('~', '%7E');
}

function decodeName(text: string): string | undefined {
  try {
    const name = decodeURIComponent(text);
    // One way to write each name: two texts never mean the same database.
    return name.length <= NAME_CHARACTERS_MAX && encodeName(name) === text ? name : undefined;
  } catch {
    return undefined;
  }
}

const macOf = (body: string, secret: string): string =>
  createHmac('sha256', secret)
    .update('kitefs token ')
    .update(body)
    .digest('base64url')
    .slice(0, MAC_CHARACTERS);

function isMac(mac: string, body: string, secret: string): boolean {
  const [given, expected] = [Buffer.from(mac), Buffer.from(macOf(body, secret))];
  return given.length === expected.length && timingSafeEqual(given, expected);
}
