import { relate } from './history.js';
import type { Databases, NodeFacts } from './messages.js';
import type { DatabaseView, NodeSnapshot, NodeView, TimelinePosition } from './node-view.js';

interface Wait {
  readonly at: TimelinePosition;
  readonly done: (reached: boolean) => void;
}

type Positions = ReadonlyMap<string, TimelinePosition>;

export interface Daemon {
  /** Sends a question, what can be seen of these databases; its answer comes to `answered`. */
  readonly ask: (id: number, databases: readonly string[]) => void;
  /** Another value whenever readers may see more than before (ChangeMark); undefined: it cannot be known. */
  readonly mark: () => number | undefined;
}

/** The node as the proxy's process hears of it (NodeView). */
export class RemoteView implements NodeView {
  now: NodeSnapshot;
  readonly #daemon: Daemon;
  readonly #listeners = new Set<() => void>();
  readonly #waits = new Map<string, Set<Wait>>();
  /** Questions that were sent, by their number. */
  readonly #asked = new Map<number, (positions: Positions | undefined) => void>();
  #nextId = 1;
  #inFlight: Promise<Positions> | undefined;
  /** The last answer: right for as long as the mark is what it was before it was asked for. */
  #known:
    | { readonly mark: number; readonly names: ReadonlySet<string>; readonly positions: Positions }
    | undefined;
  #next: { readonly names: Set<string>; readonly answer: Promise<Positions> } | undefined;

  constructor(node: NodeFacts, databases: Databases, daemon: Daemon) {
    this.now = { ...node, databases: present(databases) };
    this.#daemon = daemon;
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

  answered(id: number, positions: Positions | undefined): void {
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

  seen(databases: readonly string[]): Positions | Promise<Positions> {
    if (databases.length === 0) return NOTHING;
    // Looked at after the application has answered: a mark that has not moved since before the question says that nothing has become
    // visible since, so that what was answered covers what this request can have been shown.
    const known = this.#known;
    if (known && known.mark === this.#daemon.mark() && databases.every((name) => known.names.has(name)))
      return known.positions;
    return this.#shared(databases);
  }

  /** One question at a time: who asks while one is under way shares the next, which is sent after all of them have asked. */
  async #shared(databases: readonly string[]): Promise<Positions> {
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
    // Before the question is sent: what becomes visible from here on moves the mark, or is in the answer, or both.
    const mark = this.#daemon.mark();
    const answer = new Promise<Positions | undefined>((resolve) => this.#asked.set(id, resolve));
    this.#inFlight = answer.then((positions) => {
      this.#known = mark === undefined || !positions ? undefined : { mark, names, positions };
      return positions ?? NOTHING;
    });
    this.#daemon.ask(id, [...names]);
    return await this.#inFlight;
  }
}

const NOTHING: Positions = new Map();

const present = (databases: Databases): Map<string, DatabaseView> =>
  new Map(databases.flatMap(([name, view]) => (view ? [[name, view] as const] : [])));
