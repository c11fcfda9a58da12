import type { Agent } from 'node:http';
import { isLoopback } from '../config/values.js';
import { KiteError } from '../errors.js';
import { classify, type RequestClass } from './classify.js';
import { addForwarded, endToEnd, FORWARDED_BY, valuesOf, VIA } from './headers.js';
import type { InFlight } from './in-flight.js';
import type { ProxyRequest } from './inbound.js';
import type { NodeView } from './node-view.js';
import { checkForwarding } from './peer-proof.js';
import type { ProxySettings } from './settings.js';
import type { Targets } from './targets.js';

/** What the parts of the proxy share. */
export interface ProxyContext {
  readonly settings: ProxySettings;
  readonly view: NodeView;
  readonly targets: Targets;
  /** To the proxies of other nodes. */
  readonly peers: Agent;
  readonly log: (level: 'debug' | 'warn', message: string) => void;
  /** Writes that the application of this node has not answered yet. */
  readonly writes: InFlight;
  /** Connections are to end with the request that runs. */
  readonly draining: () => boolean;
  /** A request was answered, by whom and with what. */
  readonly count: (kind: RequestClass['kind'], by: AnsweredBy, status: number) => void;
}

export type AnsweredBy = 'local' | 'primary' | 'replay' | 'proxy';

/** A request as far as it can be judged by its head. */
export interface Head {
  readonly class: RequestClass;
  readonly method: string;
  /** As in the request line, byte for byte. */
  readonly url: string;
  /** What goes on, with what this hop adds; without framing. */
  readonly headers: readonly string[];
  /** A node of the cluster has sent it because this is the primary of that epoch. */
  readonly forwardedEpoch: bigint | undefined;
}

/** A chain of proxies longer than this leads nowhere. */
const HOPS_MAX = 8;
/** Their bytes are bounded by `proxy.max-header`; this bounds what is done per header. */
export const HEADERS_MAX = 500;

/** Reads the head of a request; throws ERR_PROXY_* for one that must not go on. */
export function readHead(
  request: ProxyRequest,
  upgrade: boolean,
  { settings, view }: Pick<ProxyContext, 'settings' | 'view'>,
): Head {
  const { method = '', url = '', rawHeaders, httpVersion, socket } = request;
  const refuse = (why: string): never => {
    throw new KiteError('ERR_PROXY_REQUEST', why);
  };
  if (rawHeaders.length > 2 * HEADERS_MAX)
    throw new KiteError('ERR_PROXY_HEADERS', `there are more than ${HEADERS_MAX} headers`);
  const isOld = httpVersion === '1.0';
  const hosts = valuesOf(rawHeaders, 'host').length;
  if (hosts > 1) refuse('there is more than one Host');
  if (hosts === 0 && !isOld) refuse('there is no Host');
  const { host, 'transfer-encoding': coding } = request.headers;
  // What other parts of an address would be in a host, readers take for different ones.
  if (host !== undefined && /[\s/?#@\\]/.test(host)) refuse('Host is no host');
  const authority = ABSOLUTE.exec(url)?.[1];
  // Whether the one or the other counts is not the same for all (RFC 9112 §3.2.2).
  if (authority !== undefined && authority.toLowerCase() !== host?.toLowerCase())
    refuse('the address names another host than Host');
  if (url.includes('#')) refuse('a request names no fragment');
  // Node takes off `chunked` only; what it had been put around would go on as if it were the body.
  if (coding !== undefined && coding.trim().toLowerCase() !== 'chunked')
    refuse('Transfer-Encoding: chunked is known only');
  // RFC 9112 §6.1: its framing is to be taken as faulty.
  if (isOld && coding !== undefined) refuse('HTTP/1.0 has no Transfer-Encoding');

  const via = valuesOf(rawHeaders, VIA).flatMap((value) => value.split(',').map((hop) => hop.trim()));
  const self = encodeURIComponent(view.now.nodeId);
  if (via.includes(self) || via.length >= HOPS_MAX) {
    throw new KiteError('ERR_PROXY_LOOP', `this request has passed ${via.join(', ').slice(0, 200)}`);
  }
  const address = socket.remoteAddress ?? '';
  const proof = valuesOf(rawHeaders, FORWARDED_BY);
  const forwarded =
    proof.length === 1
      ? checkForwarding(
          proof[0]!,
          { clusterId: view.now.clusterId, method, url },
          rawHeaders,
          settings.secret,
          isLoopback(address),
        )
      : undefined;
  if (proof.length > 0 && !forwarded)
    throw new KiteError(
      'ERR_PROXY_PEER',
      'Kitefs-Forwarded does not prove knowledge of the cluster’s secret',
    );

  const headers = endToEnd(rawHeaders, 'expect');
  // The node where the client came in has said who that is.
  if (!forwarded) addForwarded(headers, { address, host: request.headers.host });
  // HTTP/1.1 demands one; this client spoke HTTP/1.0.
  if (request.headers.host === undefined) headers.push('Host', 'localhost');
  headers.push('Kitefs-Via', [...via, self].join(', '));
  return {
    class: classify({ method, path: pathOf(url), upgrade }, settings),
    method,
    url,
    headers,
    forwardedEpoch: forwarded?.epoch,
  };
}

/** Scheme and authority of a whole address. */
const ABSOLUTE = /^[a-z][a-z\d+.-]*:\/\/([^/?#]*)/i;

/** The path without query, as the client wrote it; of an absolute URL the part after the authority. */
export function pathOf(url: string): string {
  const absolute = url.startsWith('/') ? undefined : ABSOLUTE.exec(url)?.[0];
  const rest = absolute === undefined ? url : url.slice(absolute.length) || '/';
  const end = rest.search(/[?#]/);
  return end < 0 ? rest : rest.slice(0, end) || '/';
}
