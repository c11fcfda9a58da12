import type { Capture } from '../capture/capture.js';
import type { NodeStore } from '../daemon/node-store.js';
import { KiteError, toKiteError } from '../errors.js';
import type { Mount } from '../fuse/mount.js';
import { formatPosition, samePosition } from '../ltx/position.js';
import type { HaltStatus } from '../observability/node-status.js';
import type { Upstream } from '../follow/bucket-follower.js';
import type { EpochPosition } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';

const EIO = 5;

export interface HaltLocksOptions {
  readonly nodeId: string;
  readonly store: NodeStore;
  readonly capture: Capture;
  readonly mount: Mount;
  /** The stream to the primary. */
  readonly client: () => Upstream | undefined;
  readonly onEvent: (kind: 'halted' | 'halt-ended', name: string, message: string) => void;
}

export interface HaltRequest {
  readonly name: string;
  readonly id: number;
  /** How long writers on the primary, or another HALT, may take to end. */
  readonly waitMs: number;
  /** Only to hold on what is held. */
  readonly renew: boolean;
}

/** What a node answers who asks for HALT. */
export interface Halted {
  readonly position: EpochPosition;
  readonly remainingMs: number;
}

interface Lock {
  readonly name: string;
  readonly id: number;
  /** Settled when applications may write, or never will. */
  ready: Promise<void>;
  /** By our monotonic clock, from before the request was sent: earlier than the primary counts. */
  deadlineMs: number;
  timer: NodeJS.Timeout | undefined;
  /** What the primary has, as far as it has said so. */
  confirmed: EpochPosition;
  /** The end of what is being sent. */
  sending: Promise<void>;
  ending: Promise<void> | undefined;
}

/**
 * HALT on a replica: databases that its applications write. Capture has such a database in place of the applier, and each
 * commit waits, as for replicas on a primary, until the primary has committed the same transaction. So nothing is acknowledged
 * that the primary does not have, whatever becomes of the deadline, the stream or the epoch: those only decide when it ends.
 */
export class HaltLocks {
  readonly #options: HaltLocksOptions;
  readonly #locks = new Map<string, Lock>();

  constructor(options: HaltLocksOptions) {
    this.#options = options;
  }

  /** Of a database that applications of this node write now. */
  status(name: string): HaltStatus | undefined {
    const lock = this.#locks.get(name);
    if (!lock || lock.deadlineMs === Infinity) return undefined;
    const { nodeId } = this.#options;
    return { nodeId, id: lock.id, remainingMs: Math.max(0, lock.deadlineMs - monotonicMs()) };
  }

  /** Resolves when applications of this node may write the database. With the id of one that is held: holds it on. */
  async acquire(request: HaltRequest): Promise<Halted> {
    const { name, id, renew } = request;
    let held: Lock | undefined;
    while ((held = this.#locks.get(name))?.ending) await held.ending;
    if (held && held.id !== id) {
      throw new KiteError('ERR_HALT_HELD', `this node writes ${name} already (HALT ${held.id})`);
    }
    if (held) {
      await held.ready;
      await this.#renew(held);
      return halted(held);
    }
    if (renew) throw new KiteError('ERR_HALT_ENDED', `HALT ${id} of ${name} is over`);
    const lock = {
      name,
      id,
      deadlineMs: Infinity,
      timer: undefined,
      confirmed: { txid: 0n, checksum: 0n, epoch: 0n },
      sending: Promise.resolve(),
      ending: undefined,
    } as Omit<Lock, 'ready'> as Lock;
    this.#locks.set(name, lock);
    lock.ready = this.#take(lock, request);
    try {
      await lock.ready;
    } catch (thrown) {
      await this.end(name, toKiteError(thrown).message);
      throw thrown;
    }
    return halted(lock);
  }

  async #take(lock: Lock, request: HaltRequest): Promise<void> {
    const { store, capture, onEvent } = this.#options;
    const { name, id } = lock;
    lock.confirmed = await this.#ask(lock, request);
    // Getting it may have taken long. What counts is counted from before a request was sent.
    await this.#renew(lock);
    await store.lend(name, lock.confirmed, () => this.#isOver(lock));
    this.#check(lock);
    await capture.halt(name, store.epoch(), lock.confirmed);
    this.#check(lock);
    await this.#tellMount();
    onEvent('halted', name, `applications of this node write ${name} (HALT ${id})`);
  }

  /** Asks the primary; returns where the database is there. */
  async #ask({ name, id }: Lock, { waitMs }: HaltRequest): Promise<EpochPosition> {
    const { position } = await this.#stream().halt(name, id, { waitMs });
    if (position) return position;
    throw new KiteError('ERR_HALT_ENDED', `the primary has no transaction of ${name}`);
  }

  async #renew(lock: Lock): Promise<void> {
    const { name, id } = lock;
    const sentMs = monotonicMs();
    try {
      const { ttlMs } = await this.#stream().halt(name, id, 'renew');
      lock.deadlineMs = sentMs + ttlMs;
      clearTimeout(lock.timer);
      if (lock.ending) throw over(lock);
      lock.timer = setTimeout(
        () => void this.end(name, `it was not renewed within ${ttlMs} ms`),
        lock.deadlineMs - monotonicMs(),
      );
    } catch (thrown) {
      void this.end(name, toKiteError(thrown).message);
      throw thrown;
    }
  }

  #stream(): Upstream {
    const client = this.#options.client();
    if (client) return client;
    throw new KiteError('ERR_REPLICATION_DISCONNECTED', 'this node follows no primary');
  }

  /** A commit of an application waits (Capture's `awaits`). Returns whether it is one of these; then it is answered. */
  commit(awaitId: number, name: string, position: EpochPosition | undefined): boolean {
    const lock = this.#locks.get(name);
    if (!lock) return false;
    // Its writer has died: what is under way is finished.
    if (!position) return true;
    const { capture } = this.#options;
    lock.sending = lock.sending.then(async () => {
      try {
        this.#check(lock);
        await this.#send(lock, position);
        this.#check(lock);
        capture.replicasHave(awaitId, 0);
      } catch (thrown) {
        // Whether the primary has it is perhaps not known: the application must not go on from here.
        capture.replicasHave(awaitId, EIO);
        void this.end(name, toKiteError(thrown).message);
      }
    });
    return true;
  }

  /** Has the primary commit what it lacks of our log up to `end`. */
  async #send(lock: Lock, end: EpochPosition): Promise<void> {
    const { store } = this.#options;
    while (lock.confirmed.txid < end.txid) {
      const [file] = store.filesAfter(lock.name, lock.confirmed) ?? [];
      if (!file) {
        throw new KiteError(
          'ERR_HALT_ENDED',
          `what follows ${formatPosition(lock.confirmed)} cannot be sent`,
        );
      }
      const { position } = await this.#stream().haltWrite(lock.name, lock.id, file);
      if (position?.txid !== file.maxTxid || position.checksum !== file.postApplyChecksum) {
        throw new KiteError(
          'ERR_HALT_ENDED',
          `the primary did not commit TXID ${file.maxTxid} as it is here`,
        );
      }
      lock.confirmed = position;
      store.lentAt(lock.name, file);
    }
  }

  /** Whoever asked for it is done: what capture still finds is sent, then the primary's writers go on. */
  async release(name: string, id: number): Promise<void> {
    const lock = this.#locks.get(name);
    if (!lock) return;
    if (lock.id !== id)
      throw new KiteError('ERR_HALT_HELD', `this node writes ${name} under HALT ${lock.id}`);
    await this.end(name, 'it is done', { isDone: true });
  }

  /**
   * Ends it for whatever reason; resolves when the applier follows the primary again. What this node has by then and the primary
   * has not was acknowledged to nobody, and goes the way of a rejoin (docs/decisions/011).
   */
  end(name: string, reason: string, { isDone = false } = {}): Promise<void> {
    const lock = this.#locks.get(name);
    if (!lock) return Promise.resolve();
    lock.ending ??= this.#end(lock, reason, isDone);
    return lock.ending;
  }

  async endAll(reason: string): Promise<void> {
    await Promise.all([...this.#locks.keys()].map((name) => this.end(name, reason)));
  }

  async #end(lock: Lock, reason: string, isDone: boolean): Promise<void> {
    const { store, capture, client, onEvent } = this.#options;
    const { name, id } = lock;
    // What is half taken is given back in the same way.
    await lock.ready.catch(() => undefined);
    clearTimeout(lock.timer);
    // From its answer on no write of an application is under way, so that capture misses no commit.
    await this.#tellMount(lock);
    let why = reason;
    let end: EpochPosition | undefined;
    try {
      end = await capture.unhalt(name);
      if (isDone && end) {
        await lock.sending;
        await this.#send(lock, end);
      }
    } catch (thrown) {
      why = `${reason}, but ${toKiteError(thrown).message}`;
    }
    const released = client()
      ?.haltEnd(name, id)
      .catch(() => undefined);
    // Not waited for where nothing is left to say: the primary finds out by itself.
    if (isDone) await released;
    store.takeBack(name);
    this.#locks.delete(name);
    // What the primary does not have must not be shown here until it happens to write something else. After its answer, so that a
    // transaction which it still commits is not taken for a lost one.
    if (!end || !samePosition(end, lock.confirmed)) void released?.then(() => client()?.resync(name));
    onEvent('halt-ended', name, `applications of this node do not write ${name} any more: ${why}`);
  }

  #tellMount(except?: Lock): Promise<void> {
    const writable = [...this.#locks.values()].filter((lock) => lock !== except && !lock.ending);
    return this.#options.mount.haltedHere(writable.map(({ name }) => name));
  }

  #check(lock: Lock): void {
    if (this.#isOver(lock)) throw over(lock);
  }

  #isOver({ ending, deadlineMs }: Lock): boolean {
    return ending !== undefined || monotonicMs() >= deadlineMs;
  }
}

const over = ({ name, id }: Lock): KiteError =>
  new KiteError('ERR_HALT_ENDED', `HALT ${id} of ${name} is over`);

const halted = ({ confirmed, deadlineMs }: Lock): Halted => ({
  position: confirmed,
  remainingMs: deadlineMs - monotonicMs(),
});
