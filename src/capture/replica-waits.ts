import type { EpochPosition } from '../store/types.js';

/** errno of "not yet: ask again". */
export const EINTR = 4;
/** The longest that one question waits: a held write lets go of the kernel's locks so often (trap 12). */
const PATIENCE_MS = 100;
/** Nobody asks again: the writer has died. */
const ABANDONED_MS = 1000;

interface Wait {
  readonly id: number;
  readonly position: EpochPosition;
  readonly ended: Promise<number>;
  end(errno: number): void;
  abandoned: NodeJS.Timeout | undefined;
}

/** Commits in the log whose answer waits for replicas: at most one of each database, whose writer holds its lock. */
export class ReplicaWaits {
  readonly #ask: (id: number, name: string, position: EpochPosition | undefined) => void;
  readonly #waits = new Map<string, Wait>();
  #nextId = 1;

  /** `ask` tells who knows of replicas: let me know by `end` when they have this; undefined: nobody waits any more. */
  constructor(ask: (id: number, name: string, position: EpochPosition | undefined) => void) {
    this.#ask = ask;
  }

  /** 0: replicas have it; EINTR: not yet; else never. */
  async wait(name: string, position: EpochPosition): Promise<number> {
    const wait = this.#known(name, position) ?? this.#begin(name, position);
    clearTimeout(wait.abandoned);
    let timer: NodeJS.Timeout | undefined;
    const patience = new Promise<number>((resolve) => {
      timer = setTimeout(resolve, PATIENCE_MS, EINTR);
    });
    const errno = await Promise.race([wait.ended, patience]);
    clearTimeout(timer);
    if (errno === EINTR) wait.abandoned = setTimeout(() => this.#abandon(name, wait), ABANDONED_MS);
    else if (this.#waits.get(name) === wait) this.#waits.delete(name);
    return errno;
  }

  end(id: number, errno: number): void {
    for (const wait of this.#waits.values()) if (wait.id === id) wait.end(errno);
  }

  #known(name: string, { txid, checksum }: EpochPosition): Wait | undefined {
    const wait = this.#waits.get(name);
    if (wait?.position.txid === txid && wait.position.checksum === checksum) return wait;
    clearTimeout(wait?.abandoned);
    return undefined;
  }

  #begin(name: string, position: EpochPosition): Wait {
    let end: (errno: number) => void = () => undefined;
    const ended = new Promise<number>((resolve) => (end = resolve));
    const wait: Wait = { id: this.#nextId++, position, ended, end, abandoned: undefined };
    this.#waits.set(name, wait);
    this.#ask(wait.id, name, position);
    return wait;
  }

  #abandon(name: string, wait: Wait): void {
    if (this.#waits.get(name) !== wait) return;
    this.#waits.delete(name);
    this.#ask(wait.id, name, undefined);
  }
}
