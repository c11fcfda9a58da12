import { get, type IncomingMessage } from 'node:http';

/**
 * What an application asks of its own node, over the node's HTTP API (docs/http-api.md). It stands alone: it needs nothing but Node, and
 * imports nothing of the rest of KiteFS.
 */

export interface KiteClientOptions {
  /** `http.addr` of this node. Default: KITEFS_URL, else http://127.0.0.1:20202. */
  readonly url?: string;
  /** How long any question may take. Default: 5000. */
  readonly timeoutMs?: number;
}

export interface DatabaseState {
  readonly name: string;
  readonly role: string;
  readonly isPrimary: boolean;
  readonly primary: { readonly nodeId?: string; readonly advertiseUrl?: string; readonly hostname?: string };
  /** `<txid>/<checksum>` of what readers here see. */
  readonly appliedPosition: string;
  /** How old what readers here see is at most; not there: not known. */
  readonly maxAgeMs?: number;
  /** What a reader here can have seen so far: to be waited for elsewhere. */
  readonly token?: string;
}

/** An answer of the node that is not 200. */
export class KiteClientError extends Error {
  override readonly name = 'KiteClientError';
  constructor(
    /** As in docs/errors.md, such as ERR_HTTP_NOT_FOUND. */
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

const RETRY_MS = 500;
/** The node sends something every 10 seconds. */
const SILENCE_MS = 30_000;

/**
 * The node that this application runs on. `isPrimary` costs nothing once it was asked: the node tells each change. Whatever
 * is not known, because the node cannot be reached, is an error or `undefined`, never an old answer. It keeps no process alive.
 */
export class KiteClient {
  readonly #url: string;
  readonly #timeoutMs: number;
  /** As of the stream of events; undefined: there is none at the moment. */
  #primary: { readonly isPrimary: boolean; readonly hostname?: string } | undefined;
  #watching: IncomingMessage | undefined;
  #isWatched = false;
  #isClosed = false;
  #retry: NodeJS.Timeout | undefined;
  readonly #listeners = new Set<(isPrimary: boolean) => void>();

  constructor(options: KiteClientOptions = {}) {
    const url = options.url ?? process.env['KITEFS_URL'] ?? 'http://127.0.0.1:20202';
    this.#url = url.replace(/\/+$/, '');
    this.#timeoutMs = options.timeoutMs ?? 5000;
  }

  /** Whether applications on this node may write. Rejects when the node does not answer. */
  async isPrimary(): Promise<boolean> {
    if (!this.#isWatched) this.#watch();
    if (this.#primary) return this.#primary.isPrimary;
    return (await this.#json<{ isPrimary: boolean }>('/info')).isPrimary;
  }

  /** `lease.advertise-url` of the primary; undefined when none is known. */
  async primaryUrl(): Promise<string | undefined> {
    const { primary } = await this.#json<{ primary?: { advertiseUrl?: string } }>('/status');
    return primary?.advertiseUrl;
  }

  /**
   * Waits until readers on this node see what a token says (the cookie `kitefs-token`, the header Kitefs-Token, or `token` of
   * another node's answer). false: not within `timeoutMs`. A database that the token names and this node does not know is waited for too.
   */
  async waitFor(token: string, options: { timeoutMs?: number } = {}): Promise<boolean> {
    const names = token
      .replace(/~[^~]*$/, '')
      .split('&')
      .map((entry) => decodeURIComponent(entry.split('=')[0] ?? ''));
    const timeoutMs = options.timeoutMs ?? this.#timeoutMs;
    const query = `?wait=${Math.round(timeoutMs)}&token=${encodeURIComponent(token)}`;
    try {
      await Promise.all(names.map((name) => this.#json(`${databasePath(name)}${query}`, timeoutMs)));
      return true;
    } catch (error) {
      if (error instanceof KiteClientError && error.code === 'ERR_HTTP_NOT_REACHED') return false;
      throw error;
    }
  }

  /** How old what readers on this node see is at most, in milliseconds: 0 on the primary; undefined: not known. */
  async freshness(database: string): Promise<number | undefined> {
    return (await this.database(database)).maxAgeMs;
  }

  /** One database, and how this node stands to it. Rejects with ERR_HTTP_NOT_FOUND when there is none. */
  async database(name: string): Promise<DatabaseState> {
    return await this.#json<DatabaseState>(databasePath(name));
  }

  /** Calls back whenever this node becomes the primary or ceases to be; returns what ends that. */
  onPrimaryChange(listener: (isPrimary: boolean) => void): () => void {
    this.#listeners.add(listener);
    if (!this.#isWatched) this.#watch();
    return () => this.#listeners.delete(listener);
  }

  /** Ends what runs in the background. */
  close(): void {
    this.#isClosed = true;
    this.#isWatched = true;
    clearTimeout(this.#retry);
    this.#watching?.destroy();
    this.#watching = undefined;
    this.#primary = undefined;
  }

  #watch(): void {
    this.#isWatched = true;
    const request = get(`${this.#url}/events`, (response) => {
      this.#watching = response;
      let line = '';
      response.setEncoding('utf8');
      response.on('data', (text: string) => {
        const lines = (line + text).split('\n');
        line = lines.pop() ?? '';
        for (const one of lines) this.#take(one);
      });
      response.once('close', () => this.#ended());
    });
    // What is not heard of any more may have changed: a link that is cut says nothing.
    request.setTimeout(SILENCE_MS, () => request.destroy());
    request.once('socket', (socket) => socket.unref());
    request.once('error', () => this.#ended());
  }

  #take(line: string): void {
    if (line.trim() === '') return;
    const event = JSON.parse(line) as { type: string; data: { isPrimary: boolean; hostname?: string } };
    if (event.type !== 'init' && event.type !== 'primaryChange') return;
    const before = this.#primary?.isPrimary;
    this.#primary = event.data;
    if (before === event.data.isPrimary) return;
    for (const listener of this.#listeners) listener(event.data.isPrimary);
  }

  #ended(): void {
    this.#primary = undefined;
    this.#watching = undefined;
    // A connection that breaks may say so twice.
    if (this.#isClosed || this.#retry) return;
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.#watch();
    }, RETRY_MS).unref();
  }

  async #json<T>(path: string, moreMs = 0): Promise<T> {
    const answer = await fetch(`${this.#url}${path}`, {
      signal: AbortSignal.timeout(this.#timeoutMs + moreMs),
    });
    const body = (await answer.json()) as { error?: { code: string; message: string } };
    if (answer.ok) return body as T;
    throw new KiteClientError(body.error?.code ?? `HTTP_${answer.status}`, body.error?.message ?? path);
  }
}

const databasePath = (name: string): string => `/db/${encodeURIComponent(name)}`;
