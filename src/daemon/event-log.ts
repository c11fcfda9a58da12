import type { Logger } from '../observability/log.js';
import type { NodeEvent } from '../observability/node-status.js';

const EVENTS_KEPT = 200;

/** The recent events of a node: each is logged, kept for status, and counted. */
export class EventLog {
  readonly #logger: Logger;
  readonly #onEvent: (event: NodeEvent) => void;
  readonly #events: NodeEvent[] = [];

  constructor(logger: Logger, onEvent: (event: NodeEvent) => void = () => {}) {
    this.#logger = logger;
    this.#onEvent = onEvent;
  }

  /** `level` is that of the log line: `warn` where a person should look. */
  add(
    kind: string,
    message: string,
    at: { database?: string; level?: 'info' | 'warn' | 'error' } = {},
  ): void {
    const { database, level = 'info' } = at;
    const event: NodeEvent = {
      time: new Date().toISOString(),
      kind,
      message,
      ...(database === undefined ? {} : { database }),
    };
    this.#events.push(event);
    if (this.#events.length > EVENTS_KEPT) this.#events.shift();
    this.#logger[level]({ event: kind, ...(database === undefined ? {} : { database }) }, message);
    this.#onEvent(event);
  }

  /** Oldest first. */
  recent(): readonly NodeEvent[] {
    return [...this.#events];
  }
}
