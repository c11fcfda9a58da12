import { relate } from './history.js';
import type { Databases, NodeFacts } from './messages.js';
import type { DatabaseView, NodeSnapshot, NodeView, TimelinePosition } from './node-view.js';

interface Wait {
  readonly at: TimelinePosition;
  readonly done: (reached: boolean) => void;
}

type Positions = ReadonlyMap<string, TimelinePosition>;

/** The node as the proxy's process hears of it (NodeView). `ask` sends a question to the daemon; its answer comes to `answered`. */
export class RemoteView implements NodeView {
  now: NodeSnapshot;
  readonly #ask: (id: number, databases: readonly string[]) => void;
  readonly #listeners = new Set<() => void>();
  readonly #waits = new Map<string, Set<Wait>>();
  /** Questions that were sent, by their number. */
  readonly #asked = new Map<number, (positions: Positions) => void>();
  #nextId = 1;
  #inFlight: Promise<Positions> | undefined;
  #next: { readonly names: Set<string>; readonly answer: Promise<Positions> } | undefined;

  constructor(
    node: NodeFacts,
    databases: Databases,
    ask: (id: number, databases: readonly string[]) => void,
  ) {
    this.now = { ...node, databases: present(databases) };
    this.#ask = ask;
  }

  /** The daemon says what the node is now. */
  heard(node: NodeFacts): void {
    this.now = { ...node, databases: this.now.databases };
    for (const listener of this.#listeners) listener();
  }

  /** The daemon says what has changed in databases. */
  heardOf(changed: Databases): void {
    const databases = new Map(this.now.databases);
    for (const [name, view] of changed) {
      if (view) databases.set(name, view);
      else databases.delete(name);
    }
    this.now = { ...this.now, databases };
    for (const [name] of changed) {
      for (const wait of this.#waits.get(name) ?? []) {
        if (relate(wait.at, databases.get(name)) !== 'behind') wait.done(true);
      }
    }
  }

  answered(id: number, positions: Positions): void {
    this.#asked.get(id)?.(positions);
    this.#asked.delete(id);
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  waitForPosition(
    database: string,
    at: TimelinePosition,
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<boolean> {
    if (relate(at, this.now.databases.get(database)) !== 'behind') return Promise.resolve(true);
    if (signal?.aborted === true) return Promise.resolve(false);
    const waits = this.#waits.get(database) ?? new Set();
    this.#waits.set(database, waits);
    return new Promise((resolve) => {
      const done = (reached: boolean): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', giveUp);
        waits.delete(wait);
        if (waits.size === 0 && this.#waits.get(database) === waits) this.#waits.delete(database);
        resolve(reached);
      };
      const giveUp = (): void => done(false);
      const wait = { at, done };
      const timer = setTimeout(giveUp, timeoutMs);
      signal?.addEventListener('abort', giveUp);
      waits.add(wait);
    });
  }

  /** One question at a time: who asks while one is under way shares the next, which is sent after all of them have asked. */
  async seen(databases: readonly string[]): Promise<Positions> {
    if (databases.length === 0) return new Map();
    if (this.#next) {
      for (const name of databases) this.#next.names.add(name);
      return await this.#next.answer;
    }
    const names = new Set(databases);
    const answer = this.#send(names);
    this.#next = { names, answer };
    return await answer;
  }

  async #send(names: ReadonlySet<string>): Promise<Positions> {
    // At least the end of this turn of the loop: requests that came in one go ask once.
    await (this.#inFlight ?? Promise.resolve());
    this.#next = undefined;
    const id = this.#nextId++;
    this.#inFlight = new Promise((resolve) => this.#asked.set(id, resolve));
    this.#ask(id, [...names]);
    return await this.#inFlight;
  }
}

const present = (databases: Databases): Map<string, DatabaseView> =>
  new Map(databases.flatMap(([name, view]) => (view ? [[name, view] as const] : [])));
