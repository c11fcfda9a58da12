import { relate, type History } from '../proxy/history.js';
import type { TokenEntry } from '../proxy/token.js';
import type { StoreChange } from '../replication/store.js';

interface Wait {
  readonly entry: TokenEntry;
  readonly done: (reached: boolean) => void;
}

export interface PositionSource {
  history(name: string): History | undefined;
  subscribe(listener: (change: StoreChange) => void): () => void;
}

/** Who waits until readers here see a transaction. Woken by what is applied; nothing is polled. */
export class PositionWaits {
  readonly #store: PositionSource;
  readonly #waits = new Map<string, Set<Wait>>();
  readonly #unsubscribe: () => void;

  constructor(store: PositionSource) {
    this.#store = store;
    this.#unsubscribe = store.subscribe((change) => {
      const waits = this.#waits.get(change.name);
      if (waits) this.#check(change.name, waits);
    });
  }

  /** Resolves with true when readers here see it or never will (see relate), with false after `timeoutMs` or when `signal` aborts. */
  async wait(name: string, entry: TokenEntry, timeoutMs: number, signal?: AbortSignal): Promise<boolean> {
    if (relate(entry, this.#store.history(name)) !== 'behind') return true;
    if (timeoutMs <= 0 || signal?.aborted === true) return false;
    const waits = this.#waits.get(name) ?? new Set();
    this.#waits.set(name, waits);
    return await new Promise((resolve) => {
      const giveUp = (): void => wait.done(false);
      const timer = setTimeout(giveUp, timeoutMs);
      const wait: Wait = {
        entry,
        done: (reached) => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', giveUp);
          waits.delete(wait);
          if (waits.size === 0) this.#waits.delete(name);
          resolve(reached);
        },
      };
      waits.add(wait);
      signal?.addEventListener('abort', giveUp);
    });
  }

  /** Ends all waits. */
  stop(): void {
    this.#unsubscribe();
    for (const waits of this.#waits.values()) for (const wait of waits) wait.done(false);
  }

  #check(name: string, waits: ReadonlySet<Wait>): void {
    const history = this.#store.history(name);
    for (const wait of waits) if (relate(wait.entry, history) !== 'behind') wait.done(true);
  }
}
