import type { ClientRequest } from 'node:http';
import { trailerPairs } from './headers.js';
import type { ProxyRequest } from './inbound.js';

/**
 * The body of one request on its way to whoever answers it, streamed with back-pressure. What has passed is kept up to
 * `keepBytes`, so that it can be sent a second time; beyond that it cannot, and memory stays bounded.
 */
export class RequestBody {
  readonly #request: ProxyRequest;
  readonly #keepBytes: number;
  /** undefined: too large to be kept. */
  #kept: Buffer[] | undefined = [];
  #keptBytes = 0;
  #to: ClientRequest | undefined;
  #reading = false;
  #ended: boolean;

  /** Whether the request's framing announces one; without, it is at its end. */
  readonly exists: boolean;
  readonly isChunked: boolean;
  /** undefined: not announced. */
  readonly sizeBytes: number | undefined;

  constructor(request: ProxyRequest, keepBytes: number) {
    this.#request = request;
    this.#keepBytes = keepBytes;
    const { 'content-length': length, 'transfer-encoding': encoding } = request.headers;
    this.isChunked = encoding !== undefined;
    this.sizeBytes = this.isChunked ? undefined : Number(length ?? 0);
    this.exists = this.isChunked || this.sizeBytes! > 0;
    this.#ended = !this.exists;
    if ((this.sizeBytes ?? 0) > keepBytes) this.#kept = undefined;
  }

  /** Whether all of it can be sent once more: nothing has passed, or all that has is kept. */
  get repeatable(): boolean {
    return !this.#reading || this.#kept !== undefined;
  }

  get complete(): boolean {
    return this.#ended;
  }

  /** Sends what was kept, then what arrives; ends `to` with the body. */
  sendTo(to: ClientRequest): void {
    if (!this.exists) {
      to.end();
      return;
    }
    this.#to = to;
    for (const chunk of this.#kept ?? []) to.write(chunk);
    if (this.#ended) return this.#end();
    to.on('drain', () => {
      if (this.#to === to) this.#request.resume();
    });
    if (!this.#reading) {
      this.#reading = true;
      this.#request.on('data', (chunk: Buffer) => this.#pass(chunk));
      this.#request.on('end', () => {
        this.#ended = true;
        this.#end();
      });
    } else this.#request.resume();
    // The head must not wait for a body that comes late; with one that is here both go in one packet.
    setImmediate(() => to.destroyed || to.flushHeaders());
  }

  /** Nobody takes it for now; what arrives waits in the socket. */
  detach(): void {
    this.#to = undefined;
    if (this.#reading && !this.#ended) this.#request.pause();
  }

  #pass(chunk: Buffer): void {
    if (this.#kept) {
      this.#keptBytes += chunk.length;
      if (this.#keptBytes > this.#keepBytes) this.#kept = undefined;
      else this.#kept.push(chunk);
    }
    if (this.#to?.write(chunk) !== true) this.#request.pause();
  }

  #end(): void {
    const to = this.#to;
    if (!to) return;
    const trailers = trailerPairs(this.#request.rawTrailers);
    if (trailers.length > 0 && this.isChunked) to.addTrailers(trailers);
    to.end();
  }
}
