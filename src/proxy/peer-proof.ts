import { createHmac, timingSafeEqual } from 'node:crypto';
import { valuesOf, type RawHeaders } from './headers.js';

/**
 * How the proxy of a replica shows the proxy of the primary that it is one of the cluster: an HMAC with `peer.secret`.
 *
 * Proved: that a node of this cluster has sent a request with this method, path, host and these forwarding headers to the
 * primary of this epoch. So what it says of the client may be believed. Not proved: the rest of the head, the body, and that it is not
 * a repetition within the epoch. Whoever can record it on the way can read and change plain HTTP anyway: the way between
 * nodes has to be private. Nothing is allowed by it that a client may not do; it has no clock in it, because no clocks of two
 * machines are compared anywhere here.
 */
export interface Forwarding {
  readonly clusterId: string;
  readonly epoch: bigint;
  readonly from: string;
  readonly method: string;
  readonly url: string;
}

/** Headers of which the primary believes the sender. */
const COVERED = [
  'host',
  'x-forwarded-for',
  'x-forwarded-proto',
  'x-forwarded-host',
  'forwarded',
  'kitefs-via',
];

/** The value of `Kitefs-Forwarded`; `headers` are all others that are sent. */
export function proveForwarding(
  forwarding: Forwarding,
  headers: RawHeaders,
  secret: string | undefined,
): string {
  const { epoch, from } = forwarding;
  const said = `epoch=${epoch}; from=${encodeURIComponent(from)}`;
  return secret === undefined ? said : `${said}; mac=${macOf(forwarding, headers, secret)}`;
}

/**
 * Reads `Kitefs-Forwarded`; undefined when it is malformed or proves nothing. Without a secret nodes are on one machine
 * only: then a sender on loopback is believed.
 */
export function checkForwarding(
  value: string,
  request: Pick<Forwarding, 'clusterId' | 'method' | 'url'>,
  headers: RawHeaders,
  secret: string | undefined,
  isLoopback: boolean,
): { readonly epoch: bigint; readonly from: string } | undefined {
  const match = /^epoch=(\d{1,20}); from=([\w.!~*'()%-]{1,512})(?:; mac=([\w-]{43}))?$/.exec(value);
  if (!match) return undefined;
  const from = decode(match[2]!);
  if (from === undefined) return undefined;
  const forwarding = { ...request, epoch: BigInt(match[1]!), from };
  if (secret === undefined) return isLoopback && match[3] === undefined ? forwarding : undefined;
  const [given, expected] = [match[3] ?? '', macOf(forwarding, headers, secret)];
  const isRight =
    given.length === expected.length && timingSafeEqual(Buffer.from(given), Buffer.from(expected));
  return isRight ? forwarding : undefined;
}

function macOf(
  { clusterId, epoch, from, method, url }: Forwarding,
  headers: RawHeaders,
  secret: string,
): string {
  const covered = COVERED.map((name) => valuesOf(headers, name));
  // JSON keeps the parts apart. The first word keeps this apart from every other use of the secret.
  const text = JSON.stringify(['kitefs proxy', clusterId, String(epoch), from, method, url, covered]);
  return createHmac('sha256', secret).update(text).digest('base64url');
}

function decode(text: string): string | undefined {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}
