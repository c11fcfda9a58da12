import { randomBytes } from 'node:crypto';
import { METHODS } from 'node:http';
import {
  constants,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type ServerHttp2Stream,
} from 'node:http2';
import { Writable } from 'node:stream';
import { KiteError } from '../errors.js';
import { errorAnswer } from './error-answer.js';
import type { ProxyAnswer, ProxyRequest } from './inbound.js';
import type { ProxySettings } from './settings.js';

const { NGHTTP2_INTERNAL_ERROR, NGHTTP2_NO_ERROR } = constants;
const KNOWN_METHODS = new Set(METHODS);

/** A stream of HTTP/2 as the request that HTTP/1.1 would have carried: what goes on is HTTP/1.1. */
export class Http2Request implements ProxyRequest {
  readonly httpVersion = '2.0';
  readonly method: string;
  readonly url: string;
  readonly rawHeaders: string[] = [];
  readonly rawTrailers: string[] = [];
  readonly headers: ProxyRequest['headers'];
  readonly socket: ProxyRequest['socket'];
  /** Of an extended CONNECT (RFC 8441), which is the Upgrade of HTTP/2. */
  readonly upgrade: string | undefined;
  readonly #stream: ServerHttp2Stream;
  readonly #pseudo = new Map<string, string>();

  /** `raw`: name, value, name, value… as nghttp2 has let them through. */
  constructor(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, raw: readonly string[]) {
    this.#stream = stream;
    this.socket = { remoteAddress: stream.session?.socket.remoteAddress };
    const cookies: string[] = [];
    for (let i = 0; i + 1 < raw.length; i += 2) {
      const [name, value] = [raw[i]!, raw[i + 1]!];
      if (name.startsWith(':')) this.#pseudo.set(name, value);
      else if (name === 'cookie') cookies.push(value);
      else this.rawHeaders.push(name, value);
    }
    // Crumbs (RFC 9113 §8.2.3): to HTTP/1.1 several Cookie headers are another message.
    if (cookies.length > 0) this.rawHeaders.push('cookie', cookies.join('; '));
    this.headers = { ...headers };
    const authority = this.#pseudo.get(':authority');
    if (authority && this.headers.host === undefined) {
      this.rawHeaders.unshift('host', authority);
      this.headers.host = authority;
    }
    const isConnect = this.#pseudo.get(':method') === 'CONNECT';
    this.upgrade = isConnect ? this.#pseudo.get(':protocol') : undefined;
    this.method = this.upgrade === undefined ? (this.#pseudo.get(':method') ?? '') : 'GET';
    this.url = this.#pseudo.get(':path') ?? '';
    if (this.upgrade !== undefined) this.#asUpgrade(this.upgrade);
    else if (!stream.endAfterHeaders && this.headers['content-length'] === undefined)
      this.headers['transfer-encoding'] = 'chunked';
    stream.on('trailers', (_trailers: IncomingHttpHeaders, _flags: number, rawTrailers: string[]) => {
      this.rawTrailers.push(...rawTrailers);
    });
  }

  get complete(): boolean {
    return this.#stream.endAfterHeaders || this.#stream.readableEnded;
  }

  /** Throws ERR_PROXY_* for what nghttp2 takes, and what read as HTTP/1.1 would be doubtful, too large, or something else. */
  check(maxHeaderBytes: number): void {
    const { host } = this.headers;
    const refuse = (why: string): never => {
      throw new KiteError('ERR_PROXY_REQUEST', why);
    };
    if (this.#pseudo.get(':method') === 'CONNECT') {
      if (this.upgrade === undefined) throw new KiteError('ERR_PROXY_METHOD', 'CONNECT is for other proxies');
      if (this.upgrade !== 'websocket')
        throw new KiteError('ERR_PROXY_METHOD', 'of extended CONNECT websocket is known only');
    } else if (!KNOWN_METHODS.has(this.method)) refuse('this method is unknown');
    // What HTTP/1.1 would end the request line with, or its parser not take.
    if (!/^[\x21-\x7e]+$/.test(this.url)) refuse('a path is made of printable ASCII');
    const authority = this.#pseudo.get(':authority');
    // Who routes by the one and who serves by the other would not mean the same site.
    if (authority !== undefined && authority !== host) refuse(':authority and Host differ');
    let headBytes = this.url.length;
    for (const text of this.rawHeaders) headBytes += text.length;
    if (headBytes > maxHeaderBytes)
      throw new KiteError('ERR_PROXY_HEADERS', `its head is larger than ${maxHeaderBytes} bytes`);
  }

  on(event: 'data' | 'end', listener: (chunk: Buffer) => void): unknown {
    return this.#stream.on(event, listener);
  }

  pause(): unknown {
    return this.#stream.pause();
  }

  resume(): unknown {
    return this.#stream.resume();
  }

  /** The handshake that HTTP/2 leaves out, so that an application of HTTP/1.1 can answer it. */
  #asUpgrade(protocol: string): void {
    const added: Record<string, string> = {
      connection: 'Upgrade',
      upgrade: protocol,
      'sec-websocket-key': randomBytes(16).toString('base64'),
    };
    for (const [name, value] of Object.entries(added)) {
      this.rawHeaders.push(name, value);
      this.headers[name] = value;
    }
  }
}

/** The answer on a stream of HTTP/2, with what the proxy uses of Node's ServerResponse. */
export class Http2Answer extends Writable implements ProxyAnswer {
  sendDate = true;
  shouldKeepAlive = true;
  readonly #stream: ServerHttp2Stream;
  readonly #request: Http2Request;
  #trailers: OutgoingHttpHeaders = {};
  #interrupted = false;

  constructor(stream: ServerHttp2Stream, request: Http2Request) {
    super();
    this.#stream = stream;
    this.#request = request;
    // What is wrong with a stream shows by its `close`.
    stream.on('error', () => undefined);
    stream.once('close', () => this.destroy());
  }

  get headersSent(): boolean {
    return this.#stream.headersSent;
  }

  /** Throws for what HTTP/2 cannot say. */
  writeHead(status: number, _message: string, headers: readonly string[]): void {
    const stream = this.#stream;
    if (stream.destroyed) return;
    const head = http2Headers(status, headers);
    // In HTTP/1.1 only what has no announced length can have trailers; nobody else's end waits for them.
    const waitForTrailers = head['content-length'] === undefined;
    if (waitForTrailers) stream.once('wantTrailers', () => stream.sendTrailers(this.#trailers));
    stream.respond(head, { waitForTrailers, sendDate: this.sendDate } as object);
  }

  /** Node's HTTP/2 keeps no head back, and sends it together with what is written in the same turn. */
  flushHeaders(): void {}

  addTrailers(trailers: readonly [string, string][]): void {
    this.#trailers = grouped(trailers.flat());
  }

  writeContinue(): void {
    this.#inform({ ':status': 100 });
  }

  writeProcessing(): void {
    this.#inform({ ':status': 102 });
  }

  writeEarlyHints({ link }: Record<string, string>): void {
    this.#inform({ ':status': 103, link });
  }

  /** Answers in the place of whoever was to answer, for whom the client is gone. */
  interrupt(error: KiteError, settings: Pick<ProxySettings, 'maintenancePage'>): void {
    const stream = this.#stream;
    if (!stream.headersSent && !stream.destroyed) {
      const { headers, body } = errorAnswer(error, settings);
      stream.respond(http2Headers(error.row.http, Object.entries(headers).flat()));
      stream.end(body, () => stream.close(NGHTTP2_NO_ERROR));
      this.#interrupted = true;
    }
    this.destroy();
  }

  override _write(chunk: Buffer, encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    // An answer to HEAD, and the like: its stream has ended with its head.
    if (this.#stream.writableEnded) done();
    else this.#stream.write(chunk, encoding, done);
  }

  override _final(done: (error?: Error | null) => void): void {
    const stream = this.#stream;
    const end = (): void => {
      // Whoever still sends a body is told that nobody needs it; what has come of it is not kept.
      if (!this.#request.complete) setImmediate(() => stream.close(NGHTTP2_NO_ERROR));
      stream.resume();
      done();
    };
    if (stream.writableFinished) end();
    else if (stream.writableEnded) stream.once('finish', end);
    else stream.end(end);
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    const stream = this.#stream;
    if (!this.writableFinished && !this.#interrupted && !stream.closed) stream.close(NGHTTP2_INTERNAL_ERROR);
    done(error);
  }

  #inform(headers: OutgoingHttpHeaders): void {
    if (!this.#stream.destroyed && !this.#stream.headersSent) this.#stream.additionalHeaders(headers);
  }
}

/** Headers of HTTP/1.1 as Node's HTTP/2 takes them. Those of the connection have no place there. */
export function http2Headers(status: number, raw: readonly string[]): OutgoingHttpHeaders {
  return { ':status': status, ...grouped(raw) };
}

function grouped(raw: readonly string[]): OutgoingHttpHeaders {
  const headers = Object.create(null) as Record<string, string | string[]>;
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const [name, value] = [raw[i]!.toLowerCase(), raw[i + 1]!];
    const before = headers[name];
    if (before === undefined) headers[name] = value;
    // The one that may not be joined (RFC 9110 §5.3); Node takes no two lines of many others.
    else if (name === 'set-cookie') headers[name] = [before, value].flat();
    else headers[name] = `${String(before)}, ${value}`;
  }
  return headers;
}
