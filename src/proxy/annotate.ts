import type { IncomingHttpHeaders } from 'node:http';
import type { ReadNeeds } from './decide-read.js';
import type { NodeView } from './node-view.js';
import type { ProxySettings } from './settings.js';

/**
 * The proxy's own headers: what a client brings (a token, a bound on staleness) and what an answer of this node says. An answer that
 * came from the primary's proxy has them already and is passed on as it is.
 */

/** What the client needs to see; undefined: it says nothing. Throws ERR_PROXY_REQUEST for a malformed bound. */
export function readNeeds(_headers: IncomingHttpHeaders, _settings: ProxySettings): ReadNeeds | undefined {
  return undefined;
}

export interface Answered {
  readonly kind: 'read' | 'write' | 'passthrough';
  readonly needs: ReadNeeds | undefined;
  /** As the application answered. */
  readonly status: number;
  /** Name, value, name, value… as the application sent them. */
  readonly rawHeaders: readonly string[];
}

/**
 * Headers to add to an answer of this node's application, as name, value, name, value…; asked before its first byte goes out. A
 * promise only where the daemon must be asked (a write: capture has to pass the WAL's end first).
 */
export function answerHeaders(
  _answered: Answered,
  _view: NodeView,
  _settings: ProxySettings,
): readonly string[] | Promise<readonly string[]> {
  return [];
}
