import type { IncomingHttpHeaders } from 'node:http';
import type { Writable } from 'node:stream';

/**
 * What the proxy needs of a client's request and of the way to answer it. Node's IncomingMessage and ServerResponse are such a pair;
 * http2-stream.ts makes one of a stream of HTTP/2, written as HTTP/1.1 would have it.
 */
export interface ProxyRequest {
  readonly method?: string | undefined;
  readonly url?: string | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly rawHeaders: readonly string[];
  /** Known when the body has ended. */
  readonly rawTrailers: readonly string[];
  readonly httpVersion: string;
  /** All of it is here. */
  readonly complete: boolean;
  readonly socket: { readonly remoteAddress?: string | undefined };
  on(event: 'data', listener: (chunk: Buffer) => void): unknown;
  on(event: 'end', listener: () => void): unknown;
  pause(): unknown;
  resume(): unknown;
}

/** Destroyed, it breaks off: a client never takes half an answer for a whole one. */
export interface ProxyAnswer extends Writable {
  readonly headersSent: boolean;
  /** Whether a Date is added where there is none. */
  sendDate: boolean;
  /** false: the connection ends with this answer. HTTP/2 has another way for that. */
  shouldKeepAlive: boolean;
  writeHead(status: number, message: string, headers: string[]): unknown;
  flushHeaders(): void;
  addTrailers(trailers: [string, string][]): void;
  writeContinue(): void;
  writeProcessing(): void;
  writeEarlyHints(hints: Record<string, string>): void;
}
