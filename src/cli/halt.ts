import { randomInt } from 'node:crypto';

import { toKiteError } from '../errors.js';
import { callNode } from './node-client.js';

/** Ids are below this: random enough for two runs never to have the same. */
const IDS = 2 ** 47;
/** It is renewed three times before it would end. */
const RENEWALS = 3;
const RENEW_MS_MIN = 100;

/** HALT on a database at a node, renewed until it is released. With the end of this process the renewals end too. */
export class Halt {
  readonly #url: string;
  readonly #query: URLSearchParams;
  #timer: NodeJS.Timeout | undefined;
  #released = false;

  private constructor(url: string, query: URLSearchParams) {
    this.#url = url;
    this.#query = query;
  }

  /** Resolves when applications of the node may write the database; rejects with the node's reason why not. */
  static async acquire(url: string, name: string, waitMs: number): Promise<Halt> {
    const query = new URLSearchParams({ name, id: String(randomInt(IDS)), wait: String(waitMs) });
    const halt = new Halt(url, query);
    halt.#renewIn(await halt.#ask(''));
    return halt;
  }

  async release(): Promise<void> {
    this.#released = true;
    clearTimeout(this.#timer);
    try {
      await callNode(this.#url, `/halt?${String(this.#query)}`, { method: 'DELETE' });
    } catch (thrown) {
      // It ends by itself then. Each COMMIT has had its own answer.
      warn(thrown);
    }
  }

  /** Returns how long it lasts, ms. */
  async #ask(more: string): Promise<number> {
    const response = await callNode(this.#url, `/halt?${String(this.#query)}${more}`, { method: 'POST' });
    const { expires } = (await response.json()) as { expires: string };
    return Date.parse(expires) - Date.now();
  }

  #renewIn(lastsMs: number): void {
    if (this.#released) return;
    const pauseMs = Math.max(RENEW_MS_MIN, lastsMs / RENEWALS);
    this.#timer = setTimeout(() => void this.#renew(), pauseMs);
  }

  async #renew(): Promise<void> {
    try {
      // Never taken anew: others may have written since it ended.
      this.#renewIn(await this.#ask('&renew=true'));
    } catch (thrown) {
      if (this.#released) return;
      warn(thrown);
      if (toKiteError(thrown).code === 'ERR_CLI_UNREACHABLE') this.#renewIn(0);
    }
  }
}

function warn(thrown: unknown): void {
  process.stderr.write(`kitefs: HALT: ${toKiteError(thrown).describe()}\n`);
}
