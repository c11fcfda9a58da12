import { type Agent, type ClientRequest, type IncomingMessage, request } from 'node:http';
import type { Address } from '../config/values.js';
import type { RequestBody } from './request-body.js';

/** One attempt to have a request answered by somebody: a target, or the proxy of the primary. */
export interface Attempt {
  readonly agent: Agent;
  readonly to: Address;
  readonly method: string;
  readonly path: string;
  readonly headers: readonly string[];
  readonly body: RequestBody;
  readonly maxHeaderBytes: number;
  /** How long the connection may stand still; 0: for ever. */
  readonly timeoutMs: number;
  /** The client, or this proxy, wants to hear `100 Continue` before the body goes out. */
  readonly expectContinue: boolean;
  /** To be destroyed when its client goes away. */
  readonly onRequest: (up: ClientRequest) => void;
  readonly onContinue?: (() => void) | undefined;
  readonly onInformation?: ((status: number, headers: IncomingMessage['headers']) => void) | undefined;
}

export type Outcome =
  | { readonly kind: 'answered'; readonly request: ClientRequest; readonly response: IncomingMessage }
  | {
      readonly kind: 'failed';
      /** Something of the request went out: it may have been carried out. */
      readonly sent: boolean;
      /** On a connection kept from an earlier request: it may have been closed before this one arrived. */
      readonly reused: boolean;
      readonly timedOut: boolean;
      readonly error: NodeJS.ErrnoException;
    };

/** Whoever promises to say `100 Continue` and does not: the body goes out after this (RFC 9110 §10.1.1). */
const CONTINUE_WAIT_MS = 1000;

/** Resolves with the head of the answer, or with how it failed; the body goes out only over an open connection. Never rejects. */
export function send(attempt: Attempt): Promise<Outcome> {
  const { agent, to, method, path, headers, body, expectContinue } = attempt;
  return new Promise((resolve) => {
    let sent = false;
    let timedOut = false;
    const fail = (error: NodeJS.ErrnoException, reused = false): void => {
      body.detach();
      resolve({ kind: 'failed', sent, reused, timedOut, error });
    };
    let up: ClientRequest;
    try {
      up = request({
        agent,
        host: to.host === '' ? 'localhost' : to.host,
        port: to.port,
        method,
        path,
        headers,
        maxHeaderSize: attempt.maxHeaderBytes,
        insecureHTTPParser: false,
      });
    } catch (error) {
      // A path or a header that Node does not send.
      fail(error as NodeJS.ErrnoException);
      return;
    }
    attempt.onRequest(up);
    const sendBody = (): void => {
      if (up.destroyed || up.writableEnded) return;
      body.sendTo(up);
    };
    const opened = (): void => {
      sent = true;
      if (!expectContinue || !body.exists) return sendBody();
      up.flushHeaders();
      const go = (): void => {
        clearTimeout(late);
        if (up.destroyed || up.writableEnded) return;
        attempt.onContinue?.();
        sendBody();
      };
      const late = setTimeout(go, CONTINUE_WAIT_MS);
      up.once('continue', go);
      for (const event of ['response', 'close']) up.once(event, () => clearTimeout(late));
    };
    up.once('socket', (socket) => {
      if (socket.connecting) socket.once('connect', opened);
      else opened();
    });
    if (attempt.timeoutMs > 0) {
      up.setTimeout(attempt.timeoutMs, () => {
        timedOut = true;
        up.destroy(new Error('nothing was heard for too long'));
      });
    }
    const { onInformation } = attempt;
    if (onInformation) up.on('information', (info) => onInformation(info.statusCode, info.headers));
    up.once('response', (response) => resolve({ kind: 'answered', request: up, response }));
    // An answer that switches protocols without having been asked to.
    up.once('upgrade', (_response, socket) => {
      socket.destroy();
      fail(new Error('the protocol was switched, which nobody had asked for'));
    });
    // After the answer's head the answer itself fails: whoever reads it sees that.
    up.on('error', (error) => fail(error, up.reusedSocket));
  });
}

/** RFC 9110 §9.2.2. */
const IDEMPOTENT = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE', 'PUT', 'DELETE']);

/** Whether a request that may have been carried out may be sent once more. */
export const mayRepeat = (method: string, headers: IncomingMessage['headers']): boolean =>
  IDEMPOTENT.has(method) || headers['idempotency-key'] !== undefined;
