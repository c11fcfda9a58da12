import { setTimeout as sleep } from 'node:timers/promises';
import type { Destination } from '../backup/destination.js';
import { readHead } from '../backup/head.js';
import { databaseFolder, listLevel, type BackupFile } from '../backup/layout.js';
import { describeDestination, openDestination, type DestinationSettings } from '../backup/open.js';
import { KiteError, toKiteError } from '../errors.js';
import { samePosition, type Position } from '../ltx/position.js';
import type { ReplicationClient, ReplicationClientEvent } from '../replication/client.js';
import { Freshness, type DatabaseFreshness } from '../replication/freshness.js';
import type { ReplicationStore } from '../replication/store.js';
import { listFiles } from '../restore/bucket.js';
import { databaseFolders } from '../restore/inventory.js';
import { planRestore } from '../restore/plan.js';
import { decodeDatabaseName } from '../store/database-name.js';
import type { EpochPosition } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import { fetchWhole, locate, receiveChange } from './receive.js';

/** What a replica follows: a primary's stream, or a bucket. */
export type Upstream = Pick<ReplicationClient, keyof ReplicationClient>;

export interface BucketFollowerOptions {
  readonly destination: DestinationSettings;
  /** The pause between two looks. */
  readonly intervalMs: number;
  readonly store: ReplicationStore;
  readonly tmpDir: string;
  readonly onHigherEpoch: (epoch: bigint) => void;
  readonly onEvent: (event: ReplicationClientEvent) => void;
  /** All pages of a database were fetched, and why. */
  readonly onWhole: (name: string, reason: string) => void;
}

/** New and dropped databases are looked for at every so many looks: one listing and one small object more. */
const NAMES_EVERY = 10;
const LONGEST_RETRY_MS = 10_000;

/** A database as the bucket has it. */
interface Followed {
  readonly name: string;
  readonly folder: string;
  readonly freshness: Freshness;
  /** The object of level 0 up to which it is here; undefined: has to be found. */
  k: bigint | undefined;
  failures: number;
  notBeforeMs: number;
}

/**
 * Feeds a replica from backups alone, as ReplicationClient does from a primary: what is new is received into the log, where the ordinary
 * applier takes it. Level 0 counts uploads, each of which says which position of the cluster it leads to; ours is the one before, so each
 * becomes a transaction with checksums on both sides, which the applier verifies. Where the chain is broken (compacted, past retention,
 * another history, a damaged database here) all is restored beside it and the pages that differ are one transaction.
 * Nothing is remembered but in the log itself: after a kill its end says where to go on.
 */
export class BucketFollower implements Upstream {
  readonly #o: BucketFollowerOptions;
  readonly #databases = new Map<string, Followed>();
  readonly #unsubscribe: () => void;
  readonly #stopping = new AbortController();
  readonly #ended: Promise<void>;
  #from: Destination | undefined;
  #connected = false;
  #lastError: KiteError | undefined;
  #looks = 0;
  #failures = 0;
  #wake: () => void = () => undefined;

  private constructor(options: BucketFollowerOptions) {
    this.#o = options;
    const { store } = options;
    this.#unsubscribe = store.subscribe((change) => {
      if (change.kind === 'applied') this.#applied(change.name);
    });
    for (const name of store.databases()) this.#add(name);
    this.#ended = this.#run();
  }

  /** Begins to look and returns at once. */
  static start(options: BucketFollowerOptions): BucketFollower {
    return new BucketFollower(options);
  }

  status(): ReturnType<ReplicationClient['status']> {
    const all = [...this.#databases.values()];
    return {
      connected: this.#connected,
      caughtUp: this.#looks > 0 && all.every(({ freshness }) => freshness.caughtUp),
      primaryNodeId: undefined,
      lastError: this.#lastError,
    };
  }

  /** The age is that of the last look at which everything in the bucket was seen by readers here. */
  freshness(name: string): DatabaseFreshness | undefined {
    return this.#databases.get(name)?.freshness.report(name, monotonicMs());
  }

  resync(name: string): void {
    const database = this.#databases.get(name);
    if (database) database.k = undefined;
    this.#wake();
  }

  requestHandOff(_: number, refused: (why: KiteError) => void): void {
    refused(new KiteError('ERR_LEASE_NOT_CANDIDATE', 'this node follows a bucket: it can never be primary'));
  }

  halt(): Promise<never> {
    return Promise.reject(
      new KiteError('ERR_HALT_UNSUPPORTED', 'this node follows a bucket: nobody can be asked to commit'),
    );
  }

  haltWrite(): Promise<never> {
    return this.halt();
  }

  haltEnd(): Promise<never> {
    return this.halt();
  }

  /** Resolves when the store is no longer used. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#wake();
    this.#unsubscribe();
    await this.#ended;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      let pauseMs = this.#o.intervalMs;
      try {
        await this.#look();
        this.#failures = 0;
        if (!this.#connected) {
          const url = describeDestination(this.#o.destination);
          this.#o.onEvent({ kind: 'connected', primaryNodeId: url, epoch: this.#o.store.epoch() });
        }
        this.#connected = true;
      } catch (thrown) {
        const error = toKiteError(thrown);
        pauseMs = Math.min(LONGEST_RETRY_MS, Math.max(pauseMs, 200) * 2 ** this.#failures);
        this.#failures += 1;
        this.#connected = false;
        this.#lastError = error;
        if (!signal.aborted)
          this.#o.onEvent({ kind: 'disconnected', error, retryMs: pauseMs, primary: undefined });
      }
      await this.#pause(pauseMs);
    }
    this.#from?.close();
  }

  async #pause(ms: number): Promise<void> {
    const { signal } = this.#stopping;
    if (signal.aborted) return;
    const woken = new Promise<void>((resolve) => (this.#wake = resolve));
    await Promise.race([sleep(ms, undefined, { signal }).catch(() => undefined), woken]);
  }

  async #look(): Promise<void> {
    this.#from ??= await openDestination(this.#o.destination);
    const from = this.#from;
    if (this.#looks % NAMES_EVERY === 0) await this.#findNames(from);
    for (const database of this.#databases.values()) {
      if (this.#stopping.signal.aborted) return;
      if (monotonicMs() < database.notBeforeMs) continue;
      // Before the listing: what was there by then is here when this is applied.
      const atMs = monotonicMs();
      try {
        const position = await this.#follow(from, database);
        if (!position) continue;
        const id = this.#looks;
        database.freshness.probeSent(id, atMs);
        database.freshness.answered(id, true, [[database.name, position]]);
        this.#applied(database.name);
        database.failures = 0;
      } catch (thrown) {
        const error = toKiteError(thrown);
        // The bucket as a whole cannot be asked.
        if (/^ERR_BACKUP_(UNREACHABLE|DENIED|NO_BUCKET)$/.test(error.code)) throw error;
        const retryMs = Math.min(LONGEST_RETRY_MS, this.#o.intervalMs * 2 ** database.failures);
        database.failures += 1;
        database.notBeforeMs = monotonicMs() + retryMs;
        // What stood in the way may be that the bucket is another one by now.
        database.k = undefined;
        this.#o.onEvent({ kind: 'database-failed', name: database.name, error, retryMs });
      }
    }
    this.#looks += 1;
  }

  async #findNames(from: Destination): Promise<void> {
    const { store } = this.#o;
    const folders = await databaseFolders(from);
    if (folders.includes(''))
      throw new KiteError(
        'ERR_BACKUP_URL',
        `${from.url} is the folder of one database: follow the one above it`,
      );
    const head = await readHead(from);
    for (const folder of folders) {
      const name = decodeDatabaseName(folder.slice(0, -1));
      if (name === undefined) continue;
      if (head?.databases[folder.slice(0, -1)]?.droppedMs === undefined) this.#add(name);
      else if (this.#databases.has(name)) {
        await store.drop(name, head.epoch);
        this.#databases.delete(name);
      }
    }
  }

  #add(name: string): void {
    if (this.#databases.has(name)) return;
    this.#databases.set(name, {
      name,
      folder: databaseFolder(name),
      freshness: new Freshness(),
      k: undefined,
      failures: 0,
      notBeforeMs: 0,
    });
    this.#applied(name);
  }

  #applied(name: string): void {
    const position = this.#o.store.appliedPosition(name);
    if (position) this.#databases.get(name)?.freshness.applied(name, position);
  }

  /** Receives what is new of a database; returns where the bucket is with that, undefined when it has nothing. */
  async #follow(from: Destination, database: Followed): Promise<Position | undefined> {
    const { store } = this.#o;
    const { name, folder } = database;
    const at = store.position(name);
    if (!at) {
      const isHere = store.needsResync(name) !== undefined;
      return await this.#whole(from, database, isHere ? 'it is not what its log says' : 'it is not here yet');
    }
    database.k ??= await locate(from, folder, at);
    if (database.k === undefined)
      return await this.#whole(from, database, `TXID ${at.txid} is at the end of no object`);
    // From the one that is here on: it is the last one that may go, so that it is missing says that this is another bucket.
    const level0: BackupFile[] = [];
    for await (const file of listLevel(from, folder, 0, database.k - 1n)) level0.push(file);
    const end = level0.at(-1)?.maxTxid ?? 0n;
    if (end < database.k) return await this.#whole(from, database, 'the bucket has been emptied');
    if (end === database.k) return at;
    const next = level0.filter(({ minTxid }) => minTxid > database.k!);
    const isDense = next[0]?.minTxid === database.k + 1n && BigInt(next.length) === end - database.k;
    const path = isDense ? next : planRestore(await listFiles(from, folder), end, database.k);
    // A snapshot brings every page: better only those that differ.
    if (!path || path[0]?.minTxid === 1n)
      return await this.#whole(from, database, 'what follows is past the retention of the bucket');
    let position: EpochPosition = at;
    for (const file of path) {
      if (this.#stopping.signal.aborted) return undefined;
      const received = await receiveChange({ ...this.#o, from, name, file, after: position });
      if (typeof received === 'string') return await this.#whole(from, database, received);
      position = received;
      database.k = file.maxTxid;
      if (position.epoch > store.epoch()) this.#o.onHigherEpoch(position.epoch);
    }
    return position;
  }

  async #whole(from: Destination, database: Followed, reason: string): Promise<Position | undefined> {
    const { store, onWhole, onHigherEpoch } = this.#o;
    const { name, folder } = database;
    const fetched = await fetchWhole({ ...this.#o, from, name, folder });
    if (!fetched) return undefined;
    if (!samePosition(fetched.position, fetched.before ?? { txid: 0n, checksum: 0n })) onWhole(name, reason);
    database.k = fetched.k;
    if (fetched.position.epoch > store.epoch()) onHigherEpoch(fetched.position.epoch);
    return fetched.position;
  }
}
