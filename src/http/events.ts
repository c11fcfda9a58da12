import type { ServerResponse } from 'node:http';
import type { NodeChange } from './node-api.js';

/**
 * GET /events: what changes on this node, for as long as the client listens. LiteFS's events, a line of JSON each, or as server-sent
 * events for who asks for them by Accept:
 *
 *     {"type":"init","data":{"isPrimary":true,"hostname":"node1"}}
 *     {"type":"tx","db":"app.db","data":{"txID":"000000000000001a","postApplyChecksum":"…","pageSize":4096,"commit":2,"timestamp":"…"}}
 *     {"type":"primaryChange","data":{"isPrimary":false,"hostname":"node2"}}
 */

interface Event {
  readonly type: 'init' | 'tx' | 'primaryChange';
  readonly db?: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/** Shows that the connection lives, to both ends and to whatever proxies are between them. */
const HEARTBEAT_MS = 10_000;
/** A client that takes nothing for so long is gone. */
const STUCK_MS = 60_000;

/** Databases of which the newest is kept for a client that does not keep up; with more it is cut off, as LiteFS does with 1024 events. */
const HELD_MAX = 1024;

/** One client of /events. */
export class EventStream {
  readonly #response: ServerResponse;
  readonly #isSse: boolean;
  readonly #database: string | undefined;
  readonly #heartbeat: NodeJS.Timeout;
  /** While the client does not keep up: the newest of each kind and database. So it costs no more than that, however slow it is. */
  readonly #held = new Map<string, Event>();
  #blockedSinceMs: number | undefined;
  #primary = '';

  /** Begins the answer. `database`: events of this one only. */
  constructor(response: ServerResponse, options: { sse: boolean; database: string | undefined }) {
    this.#response = response;
    this.#isSse = options.sse;
    this.#database = options.database;
    response.writeHead(200, {
      'content-type': options.sse ? 'text/event-stream' : 'application/x-ndjson',
      'cache-control': 'no-store',
      // nginx would collect events until its buffer is full.
      'x-accel-buffering': 'no',
    });
    response.on('drain', () => this.#drained());
    this.#heartbeat = setInterval(() => this.#beat(), HEARTBEAT_MS);
    response.once('close', () => clearInterval(this.#heartbeat));
  }

  init(primary: PrimaryChange): void {
    this.#primary = JSON.stringify(primary);
    this.#send({ type: 'init', data: { ...primary } });
  }

  take(change: NodeChange): void {
    if (change.kind === 'primary') {
      const { isPrimary, hostname } = change;
      const text = JSON.stringify({ isPrimary, hostname });
      // A role has states of its own (draining, fenced) that are no change of primary.
      if (text === this.#primary) return;
      this.#primary = text;
      this.#send({ type: 'primaryChange', data: { isPrimary, hostname } });
    } else if (this.#database === undefined || this.#database === change.name) {
      const { name: db, kind: _, ...data } = change;
      this.#send({ type: 'tx', db, data: { ...data, timestamp: new Date().toISOString() } });
    }
  }

  #send(event: Event): void {
    if (this.#blockedSinceMs === undefined) this.#write(event);
    else {
      this.#held.set(`${event.type} ${event.db ?? ''}`, event);
      // It comes back and begins with `init`: that costs less than what it has missed.
      if (this.#held.size > HELD_MAX) this.#response.destroy();
    }
  }

  #write(event: Event): void {
    const json = JSON.stringify(event);
    const text = this.#isSse ? `event: ${event.type}\ndata: ${json}\n\n` : `${json}\n`;
    if (!this.#response.write(text)) this.#blockedSinceMs ??= performance.now();
  }

  #drained(): void {
    this.#blockedSinceMs = undefined;
    for (const [key, event] of this.#held) {
      if (this.#blockedSinceMs !== undefined) return;
      this.#held.delete(key);
      this.#write(event);
    }
  }

  #beat(): void {
    if (this.#blockedSinceMs === undefined) {
      // A blank before the next line: a reader of JSON lines does not see it.
      this.#response.write(this.#isSse ? ': \n\n' : ' ');
    } else if (performance.now() - this.#blockedSinceMs > STUCK_MS) {
      this.#response.destroy();
    }
  }
}

export interface PrimaryChange {
  readonly isPrimary: boolean;
  /** Of the primary; left out when none is known. */
  readonly hostname?: string | undefined;
}
