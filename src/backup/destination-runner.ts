import { setTimeout as sleep } from 'node:timers/promises';
import { KiteError, toKiteError, type ErrorCode } from '../errors.js';
import { databasePaths } from '../store/data-directory.js';
import { decodeDatabaseName } from '../store/database-name.js';
import { monotonicMs } from '../util/clock.js';
import { DatabaseBackup, RecentObjects, type BackupEvent, type BackupSource } from './database-backup.js';
import type { Destination } from './destination.js';
import { changeHead, checkConditions, type Head, type Writer } from './head.js';
import type { BackupSettings, DatabaseProgress } from './messages.js';
import { openDestination } from './open.js';

/** Databases of one destination that make requests at the same time. */
const PARALLEL = 8;
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 30_000;
const MAINTENANCE_MS = 1000;
const LEASE_POLL_MS = 200;

export interface RunnerOptions {
  readonly settings: BackupSettings;
  readonly dataDir: string;
  readonly tmpDir: string;
  readonly source: BackupSource;
  /** Until when this node may write, monotonic. */
  readonly leaseUntilMs: () => number;
  readonly onShipped: (name: string, progress: DatabaseProgress) => void;
  readonly onTrouble: (name: string | undefined, error: KiteError | undefined) => void;
  readonly onEvent: (name: string, event: BackupEvent) => void;
  readonly onPut: (name: string, sizeBytes: number) => void;
}

/** A database in the hands of a runner. */
interface Lane {
  readonly backup: DatabaseBackup;
  /** The head as it is: that of the turn's beginning for the first time, read anew after that. */
  readonly head: () => Promise<Head>;
  /** There is something to ship, as far as is known. */
  dirty: boolean;
  /** Somebody waits: not after an interval. */
  urgent: boolean;
  wake: () => void;
  /** Ends the wait for the interval. */
  goOn: () => void;
  /** Not before then, after an error in its maintenance. */
  maintainAfterMs: number;
}

/**
 * One destination: its databases are shipped each for itself, at most every `syncIntervalMs`, and what goes wrong with one, or with
 * this destination, holds nothing else up. Errors are tried again, ever more rarely.
 */
export class DestinationRunner {
  readonly #o: RunnerOptions;
  /** Aborted when this node is not the primary of this epoch any more. */
  #turn: AbortController | undefined;
  #lanes = new Map<string, Lane>();
  /** What ends each pause, and whether it may end early. */
  readonly #pauses = new Map<() => void, boolean>();
  #running: Promise<void> = Promise.resolve();

  constructor(options: RunnerOptions) {
    this.#o = options;
  }

  /** Ships for this writer from now on; what ran for an earlier one is ended first. */
  primary(writer: Writer, names: readonly string[]): void {
    this.stop();
    const turn = new AbortController();
    this.#turn = turn;
    this.#running = this.#running.then(() => this.#run(writer, names, turn.signal));
  }

  stop(): void {
    this.#turn?.abort();
    this.#turn = undefined;
    for (const end of this.#pauses.keys()) end();
  }

  /** The log of a database has grown, or begun. */
  moved(name: string): void {
    const lane = this.#lanes.get(name);
    if (lane) {
      lane.dirty = true;
      lane.wake();
    } else {
      this.#newNames.add(name);
      this.#addLane?.(name);
    }
  }

  /** As `moved`, and a commit waits for it. */
  urgent(name: string): void {
    this.moved(name);
    const lane = this.#lanes.get(name);
    if (!lane) return;
    lane.urgent = true;
    lane.goOn();
  }

  /** Nothing waits for an interval or for the end of a pause. */
  hurry(): void {
    for (const lane of this.#lanes.values()) {
      // Also of a database that has not come to its pause yet.
      lane.urgent = true;
      lane.maintainAfterMs = 0;
    }
    for (const [end, mayHurry] of this.#pauses) if (mayHurry) end();
  }

  readonly #newNames = new Set<string>();
  #addLane: ((name: string) => void) | undefined;

  async #run(writer: Writer, names: readonly string[], signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    const destination = await this.#open(signal);
    if (!destination) return;
    const lanes: Promise<void>[] = [];
    const slots = new Slots(PARALLEL);
    const recent = new RecentObjects();
    let ended: (() => void) | undefined;
    const fail = (error: KiteError): void => {
      // Of a turn that is over: the next one may have begun, and is not to be ended by it.
      if (signal.aborted) return;
      this.#o.onTrouble(undefined, error);
      this.stop();
    };
    try {
      await this.#retrying(signal, undefined, () => checkConditions(destination));
      const head = await this.#retrying(signal, undefined, () => changeHead(destination, writer));
      if (!head) return;
      this.#lanes = new Map();
      this.#addLane = (name) => {
        this.#newNames.delete(name);
        if (this.#lanes.has(name)) return;
        const lane = this.#lane(name, destination, writer, recent, head);
        this.#lanes.set(name, lane);
        lanes.push(this.#serve(lane, slots, signal).catch((error: unknown) => fail(toKiteError(error))));
      };
      for (const name of new Set([...names, ...this.#newNames, ...dropped(head)])) this.#addLane(name);
      const timer = this.#maintaining(signal);
      await new Promise<void>((resolve) => {
        ended = resolve;
        signal.addEventListener('abort', () => resolve(), { once: true });
        if (signal.aborted) resolve();
      });
      for (const { wake } of this.#lanes.values()) wake();
      await Promise.all([...lanes, timer]);
    } catch (error) {
      fail(toKiteError(error));
    } finally {
      ended?.();
      this.#addLane = undefined;
      this.#lanes = new Map();
      destination.close();
    }
  }

  async #open(signal: AbortSignal): Promise<Destination | undefined> {
    return await this.#retrying(signal, undefined, () => openDestination(this.#o.settings.destination));
  }

  #lane(name: string, destination: Destination, writer: Writer, recent: RecentObjects, head: Head): Lane {
    const { settings, source, tmpDir, dataDir } = this.#o;
    const backup = new DatabaseBackup({
      name,
      destination,
      settings,
      writer,
      source,
      logDir: databasePaths(dataDir, name).ltx,
      tmpDir,
      recent,
      check: () => {
        if (monotonicMs() < this.#o.leaseUntilMs()) return;
        throw new KiteError('ERR_BACKUP_UNREACHABLE', 'nothing is shipped while the lease is not renewed');
      },
      onEvent: (event) => this.#o.onEvent(name, event),
      onPut: (sizeBytes) => this.#o.onPut(name, sizeBytes),
    });
    let first: Head | undefined = head;
    return {
      backup,
      head: async () => {
        const taken = first ?? (await changeHead(destination, writer));
        first = undefined;
        return taken;
      },
      dirty: true,
      urgent: false,
      wake: () => undefined,
      goOn: () => undefined,
      maintainAfterMs: 0,
    };
  }

  async #serve(lane: Lane, slots: Slots, signal: AbortSignal): Promise<void> {
    const { backup } = lane;
    const { syncIntervalMs } = this.#o.settings;
    while (!signal.aborted) {
      const begunMs = monotonicMs();
      await this.#retrying(
        signal,
        backup.name,
        () => this.#shipAll(lane, slots, signal),
        (end) => (lane.goOn = end),
      );
      while (!lane.dirty && !signal.aborted) {
        await new Promise<void>((resolve) => {
          lane.wake = resolve;
        });
      }
      if (lane.urgent) continue;
      await this.#pause(syncIntervalMs - (monotonicMs() - begunMs), signal, true, (end) => (lane.goOn = end));
    }
  }

  async #shipAll(lane: Lane, slots: Slots, signal: AbortSignal): Promise<void> {
    const { backup } = lane;
    lane.dirty = false;
    lane.urgent = false;
    try {
      if (!backup.isOpen) await slots.run(async () => backup.open(await lane.head()));
      for (let isMore = true; isMore && !signal.aborted;) {
        while (monotonicMs() >= this.#o.leaseUntilMs() && !signal.aborted) await sleep(LEASE_POLL_MS);
        if (signal.aborted) return;
        isMore = await slots.run(() => backup.ship());
        const { position, level0 } = backup;
        if (position) this.#o.onShipped(backup.name, { txid: position.txid, level0 });
      }
    } catch (error) {
      lane.dirty = true;
      throw error;
    }
  }

  /** Snapshots, compactions and retention, one database after another: they may be large, and nobody waits for them. */
  async #maintaining(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      for (const lane of this.#lanes.values()) {
        if (signal.aborted || monotonicMs() < lane.maintainAfterMs) continue;
        if (!lane.backup.isMaintenanceDue(Date.now())) continue;
        try {
          await lane.backup.maintain(Date.now());
        } catch (thrown) {
          const error = toKiteError(thrown);
          if (signal.aborted) return;
          if (isFinal(error.code)) {
            this.#o.onTrouble(undefined, error);
            this.stop();
            return;
          }
          lane.maintainAfterMs = monotonicMs() + LONGEST_RETRY_MS;
          this.#o.onTrouble(lane.backup.name, error);
          if (!lane.backup.isOpen) {
            lane.dirty = true;
            lane.wake();
          }
        }
      }
      await this.#pause(MAINTENANCE_MS, signal, false);
    }
  }

  /** Calls until it succeeds; undefined when the turn ended before. Rejects with what no later attempt can change. */
  async #retrying<T>(
    signal: AbortSignal,
    name: string | undefined,
    call: () => Promise<T>,
    onPause?: (end: () => void) => void,
  ): Promise<T | undefined> {
    let pauseMs = FIRST_RETRY_MS;
    for (let failed = false; !signal.aborted;) {
      try {
        const value = await call();
        if (failed) this.#o.onTrouble(name, undefined);
        return value;
      } catch (thrown) {
        const error = toKiteError(thrown);
        if (isFinal(error.code)) throw error;
        failed = true;
        this.#o.onTrouble(name, error);
        await this.#pause(pauseMs, signal, true, onPause);
        pauseMs = Math.min(LONGEST_RETRY_MS, pauseMs * 2);
      }
    }
    return undefined;
  }

  async #pause(
    ms: number,
    signal: AbortSignal,
    mayHurry = true,
    onBegin?: (end: () => void) => void,
  ): Promise<void> {
    if (ms <= 0 || signal.aborted) return;
    await new Promise<void>((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        this.#pauses.delete(end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      this.#pauses.set(end, mayHurry);
      onBegin?.(end);
    });
  }
}

/** Somebody else writes there, or it is not ours: nothing is done until this node is primary anew. */
const isFinal = (code: ErrorCode): boolean =>
  code === 'ERR_BACKUP_FENCED' || code === 'ERR_BACKUP_OTHER_CLUSTER';

/** Databases that were dropped and whose objects wait for the end of the retention. */
const dropped = (head: Head): string[] =>
  Object.entries(head.databases).flatMap(([encoded, { droppedMs }]) => {
    const name = decodeDatabaseName(encoded);
    return droppedMs !== undefined && name !== undefined ? [name] : [];
  });

/** At most so many at the same time. */
class Slots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free += 1;
    }
  }
}
