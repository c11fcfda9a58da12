/** Headers as they came: name, value, name, value… */
export type RawHeaders = readonly string[];

/** They belong to one connection (RFC 9110 §7.6.1); framing is made anew for the next one. */
const HOP_BY_HOP = new Set([
  'connection',
  'http2-settings',
  'keep-alive',
  'proxy-connection',
  'te',
  'transfer-encoding',
  'upgrade',
]);

/** What `Connection` may name and still goes on: without them the next hop would read another message. */
const NEVER_DROPPED = new Set(['host', 'content-length', 'cookie', 'authorization', 'set-cookie']);

/** The proxy's own, told by nodes to each other, or by the application to the proxy. */
export const FORWARDED_BY = 'kitefs-forwarded';
export const VIA = 'kitefs-via';
export const FORWARD = 'kitefs-forward';
export const ERROR = 'kitefs-error';
const OURS = new Set([FORWARDED_BY, VIA, FORWARD, ERROR]);

/** What goes on to the next hop: without the headers of this connection, those that `Connection` names, and ours. */
export function endToEnd(raw: RawHeaders, alsoWithout?: string): string[] {
  const named = namedByConnection(raw);
  const out: string[] = [];
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = raw[i]!;
    const lower = name.toLowerCase();
    if (HOP_BY_HOP.has(lower) || OURS.has(lower) || lower === alsoWithout || named?.has(lower)) continue;
    out.push(name, raw[i + 1]!);
  }
  return out;
}

function namedByConnection(raw: RawHeaders): Set<string> | undefined {
  let named: Set<string> | undefined;
  for (let i = 0; i + 1 < raw.length; i += 2) {
    if (raw[i]!.length !== 10 || raw[i]!.toLowerCase() !== 'connection') continue;
    for (const word of raw[i + 1]!.toLowerCase().split(',')) {
      const name = word.trim();
      if (!NEVER_DROPPED.has(name)) (named ??= new Set()).add(name);
    }
  }
  return named;
}

/** All values of one header, in order. */
export function valuesOf(raw: RawHeaders, lower: string): string[] {
  const values: string[] = [];
  for (let i = 0; i + 1 < raw.length; i += 2) {
    if (raw[i]!.length === lower.length && raw[i]!.toLowerCase() === lower) values.push(raw[i + 1]!);
  }
  return values;
}

/** Who the client is, as the application is told. */
export interface Client {
  readonly address: string;
  /** As the client named it; undefined: it did not (HTTP/1.0). */
  readonly host: string | undefined;
}

const X_FOR = 'x-forwarded-for';
const X_PROTO = 'x-forwarded-proto';
const X_HOST = 'x-forwarded-host';

/**
 * Adds this hop to `X-Forwarded-*` and `Forwarded`. What a proxy in front has said of protocol and host stays; without one it is plain
 * HTTP, because this proxy speaks no TLS.
 */
export function addForwarded(headers: string[], { address, host }: Client): void {
  const proto = valuesOf(headers, X_PROTO)[0];
  appendTo(headers, 'X-Forwarded-For', X_FOR, address);
  if (proto === undefined) headers.push('X-Forwarded-Proto', 'http');
  if (host !== undefined && valuesOf(headers, X_HOST).length === 0) headers.push('X-Forwarded-Host', host);
  const node = address.includes(':') ? `"[${address}]"` : address;
  const hostPart = host === undefined || /["\\]/.test(host) ? '' : `;host="${host}"`;
  const isToken = /^[a-z]+$/.test(proto ?? 'http');
  appendTo(
    headers,
    'Forwarded',
    'forwarded',
    `for=${node}${hostPart}${isToken ? `;proto=${proto ?? 'http'}` : ''}`,
  );
}

/** Joins all values of a header with one more at its end: readers that look at one line only see every hop. */
function appendTo(headers: string[], name: string, lower: string, value: string): void {
  const before: string[] = [];
  for (let i = headers.length - 2; i >= 0; i -= 2) {
    if (headers[i]!.length !== lower.length || headers[i]!.toLowerCase() !== lower) continue;
    before.unshift(headers[i + 1]!);
    headers.splice(i, 2);
  }
  headers.push(name, [...before, value].join(', '));
}

/** Trailers that would change how the message before them is read are dropped (RFC 9110 §6.5.1). */
const NOT_IN_TRAILERS = new Set([
  ...HOP_BY_HOP,
  ...OURS,
  'authorization',
  'cache-control',
  'content-encoding',
  'content-length',
  'content-range',
  'content-type',
  'cookie',
  'host',
  'set-cookie',
  'trailer',
]);

export function trailerPairs(raw: RawHeaders): [string, string][] {
  const pairs: [string, string][] = [];
  for (let i = 0; i + 1 < raw.length; i += 2) {
    if (!NOT_IN_TRAILERS.has(raw[i]!.toLowerCase())) pairs.push([raw[i]!, raw[i + 1]!]);
  }
  return pairs;
}
