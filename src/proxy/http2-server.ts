import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import {
  createServer,
  type Http2Server,
  type IncomingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { Socket } from 'node:net';
import { KiteError } from '../errors.js';
import { HEADERS_MAX } from './context.js';
import { sendError } from './error-answer.js';
import { Http2Answer, http2Headers, Http2Request } from './http2-stream.js';
import type { ProxyAnswer, ProxyRequest } from './inbound.js';
import type { ProxySettings } from './settings.js';
import type { UpgradeClient } from './upgrade.js';

/** Of one connection at a time; what a client begins beyond waits or is refused untouched. */
const STREAMS_MAX = 250;
/** What a client may send before somebody takes it: of one stream, of a connection. The second bounds its memory. */
const STREAM_WINDOW = 256 << 10;
const CONNECTION_WINDOW = 1 << 20;
/** A request may have been on its way to a connection that was idle. */
const GRACE_MS = 1000;
/** RFC 6455 §1.3. */
const WEBSOCKET_GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

export interface Http2Handlers {
  serve(request: ProxyRequest, answer: ProxyAnswer, expectContinue: boolean): void;
  upgrade(client: UpgradeClient): void;
}

/**
 * Clients that speak HTTP/2 without TLS, by prior knowledge. Node's server, on connections that are handed to it; each stream becomes a
 * request like one of HTTP/1.1. Beside what is set here Node and nghttp2 bound resets (1000 at once, then 33 a second), frames that
 * are none, and a header of many CONTINUATIONs: such a connection ends.
 */
export class Http2Front {
  readonly #server: Http2Server;
  readonly #settings: ProxySettings;
  readonly #handlers: Http2Handlers;
  readonly #sessions = new Set<ServerHttp2Session>();
  #draining = false;

  constructor(settings: ProxySettings, handlers: Http2Handlers) {
    this.#settings = settings;
    this.#handlers = handlers;
    this.#server = createServer({
      // Somewhat more than what gets 431: beyond, a stream is reset.
      maxHeaderListPairs: 2 * HEADERS_MAX,
      maxSessionInvalidFrames: 100,
      settings: {
        maxConcurrentStreams: STREAMS_MAX,
        maxHeaderListSize: 2 * settings.maxHeaderBytes,
        initialWindowSize: STREAM_WINDOW,
        enableConnectProtocol: true,
      },
    });
    this.#server.on('session', (session) => this.#open(session));
    this.#server.on('sessionError', () => undefined);
    this.#server.on(
      'stream',
      (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, _flags: number, raw: string[] = []) =>
        this.#serve(stream, headers, raw),
    );
  }

  /** A connection that has begun with the preface; `first`: what has been read of it. */
  take(socket: Socket, first: Buffer): void {
    socket.on('error', () => socket.destroy());
    // Half of a connection is of no use here.
    socket.allowHalfOpen = false;
    // Node's session takes what is in the buffer first.
    socket.pause();
    socket.unshift(first);
    this.#server.emit('connection', socket);
  }

  /** GOAWAY: clients begin nothing more here; what runs is answered, then each connection ends. */
  drain(): void {
    this.#draining = true;
    for (const session of this.#sessions) session.close();
  }

  destroy(): void {
    for (const session of this.#sessions) session.destroy();
  }

  #open(session: ServerHttp2Session): void {
    this.#sessions.add(session);
    session.setLocalWindowSize(CONNECTION_WINDOW);
    session.on('error', () => undefined);
    if (this.#draining) session.close();
    // Counted without a look at bytes: neither pings nor a head that never ends keep a connection that asks for nothing.
    const { idleTimeoutMs, readHeaderTimeoutMs } = this.#settings;
    let open = 0;
    let idle: NodeJS.Timeout | undefined;
    const wait = (ms: number): void => {
      if (ms === 0) return;
      idle = setTimeout(() => {
        session.close();
        // Node would wait for a head that is under way.
        idle = setTimeout(() => open === 0 && session.destroy(), GRACE_MS);
      }, ms);
    };
    wait(readHeaderTimeoutMs);
    session.on('stream', (stream) => {
      open++;
      clearTimeout(idle);
      stream.once('close', () => {
        open--;
        if (open === 0 && !session.closed) wait(idleTimeoutMs);
      });
    });
    session.once('close', () => {
      clearTimeout(idle);
      this.#sessions.delete(session);
    });
  }

  #serve(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, raw: readonly string[]): void {
    const settings = this.#settings;
    const request = new Http2Request(stream, headers, raw);
    const answer = new Http2Answer(stream, request);
    try {
      request.check(settings.maxHeaderBytes);
      if (request.upgrade !== undefined) {
        this.#handlers.upgrade(new Http2Upgrade(request, stream, answer, settings));
        return;
      }
      const { expect } = request.headers;
      if (expect !== undefined && expect.toLowerCase() !== '100-continue')
        throw new KiteError('ERR_PROXY_EXPECT', 'Expect knows 100-continue only');
      this.#limit(stream, answer);
      this.#handlers.serve(request, answer, expect !== undefined);
    } catch (error) {
      if (!(error instanceof KiteError)) throw error;
      sendError(request, answer, error, settings);
    }
  }

  /** `proxy.read-timeout`: how long the whole request may take to arrive. */
  #limit(stream: ServerHttp2Stream, answer: Http2Answer): void {
    const { readTimeoutMs } = this.#settings;
    if (readTimeoutMs === 0 || stream.endAfterHeaders) return;
    const late = setTimeout(() => {
      answer.interrupt(new KiteError('ERR_PROXY_SLOW', 'the request did not arrive in time'), this.#settings);
    }, readTimeoutMs);
    for (const event of ['end', 'close']) stream.once(event, () => clearTimeout(late));
  }
}

/** A WebSocket as a stream of HTTP/2 (RFC 8441): what is asked for and answered differs, the bytes after it do not. */
class Http2Upgrade implements UpgradeClient {
  readonly early = Buffer.alloc(0);
  readonly request: Http2Request;
  readonly stream: ServerHttp2Stream;
  readonly #answer: Http2Answer;
  readonly #settings: ProxySettings;

  constructor(
    request: Http2Request,
    stream: ServerHttp2Stream,
    answer: Http2Answer,
    settings: ProxySettings,
  ) {
    this.request = request;
    this.stream = stream;
    this.#answer = answer;
    this.#settings = settings;
  }

  switched(response: IncomingMessage, headers: readonly string[]): void {
    const key = String(this.request.headers['sec-websocket-key']);
    const expected = createHash('sha1').update(`${key}${WEBSOCKET_GUID}`).digest('base64');
    // The client has no key: that the application means this handshake is checked here.
    if (response.headers['sec-websocket-accept'] !== expected)
      throw new Error('its Sec-WebSocket-Accept is no answer to the key');
    const head = http2Headers(200, headers);
    delete head['sec-websocket-accept'];
    this.stream.respond(head, { sendDate: false } as object);
  }

  refused(response: IncomingMessage, headers: readonly string[]): void {
    this.stream.respond(http2Headers(response.statusCode ?? 502, headers), { sendDate: false } as object);
  }

  fail(error: KiteError): void {
    sendError(this.request, this.#answer, error, this.#settings);
  }
}
