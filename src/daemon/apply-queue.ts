import { KiteError, toKiteError } from '../errors.js';
import type { Applier } from '../applier/applier.js';
import type { AppliedDatabase } from '../applier/messages.js';
import { NO_POSITION } from '../ltx/position.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';

/** How many files go into one call: bounded, so that a long queue reports its progress. */
const FILES_PER_CALL = 256;
/** Pause before an apply that failed for a reason that may go away (disk full, a lock) is tried again. */
const RETRY_MS = 500;
/** Where nothing is: what a snapshot follows. */
const NOTHING: AppliedDatabase = { position: { ...NO_POSITION, epoch: 0n }, pageCount: 0, pageSize: 0 };

export interface ApplyQueueOptions {
  readonly applier: Applier;
  readonly name: string;
  /** Log files after a position of this database, oldest first; undefined when the log does not hold it. */
  readonly filesAfter: (at: AppliedDatabase) => readonly LogFile[] | undefined;
  /** How long one call of the applier took: from handing it some files until readers see the last of them. */
  readonly onBatch?: (seconds: number) => void;
  /** From now on readers may see what is `applying`. */
  readonly onApplying?: () => void;
  /** Readers see this now. */
  readonly onApplied: (database: AppliedDatabase) => void;
  /** The database is at no position of the log, and is written anew from the snapshot that the log begins with. */
  readonly onRebuild: () => void;
  /** What this node has of the database is of no use any more: only a snapshot helps. */
  readonly onDiverged: (error: KiteError) => void;
  /** Trouble that is tried again; undefined when it has gone. */
  readonly onTrouble: (error: KiteError | undefined) => void;
}

/**
 * Feeds the log of one database to the applier, in order. It holds no files itself: what comes next is always
 * asked of the log, so nothing can be skipped or applied twice, and a restarted applier goes on where it stands.
 */
export class ApplyQueue {
  readonly #options: ApplyQueueOptions;
  #database: AppliedDatabase | undefined;
  #applying: EpochPosition | undefined;
  #running: Promise<void> | undefined;
  #again = false;
  #stopped = false;
  #wake: (() => void) | undefined;
  #logWasDamaged = false;
  /** How often `reopen` was called: what the applier said before the last time is about what is no more. */
  #reopenings = 0;

  constructor(options: ApplyQueueOptions) {
    this.#options = options;
  }

  /** How far the applier may have come: readers may see up to here before it has said so. Undefined: nothing is under way. */
  get applying(): EpochPosition | undefined {
    return this.#applying;
  }

  /** There may be something new in the log. */
  kick(): void {
    this.#again = true;
    this.#wake?.();
    if (this.#running || this.#stopped) return;
    this.#running = this.#run().finally(() => {
      this.#running = undefined;
      if (this.#again && !this.#stopped) this.kick();
    });
  }

  /** The applier was started again, or found a page damaged: what was open in it, or is being opened, is not any more. */
  reopen(): void {
    this.#reopenings += 1;
    this.#database = undefined;
    this.kick();
  }

  /** Resolves when everything that is in the log has been applied, or the queue is stopped. */
  async drained(): Promise<void> {
    this.kick();
    while (this.#running) await this.#running;
  }

  /** Ends after the call that is running now. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#wake?.();
    await this.#running;
  }

  async #run(): Promise<void> {
    while (this.#again && !this.#stopped) {
      this.#again = false;
      try {
        await this.#applyAll();
        this.#logWasDamaged = false;
        this.#options.onTrouble(undefined);
      } catch (thrown) {
        const error = toKiteError(thrown);
        this.#database = undefined;
        // A file of the log that cannot be read may only have been replaced by a snapshot a moment ago: once more.
        const isLogDamaged = error.code === 'ERR_STORE_LOG_DAMAGED' && this.#logWasDamaged;
        this.#logWasDamaged = error.code === 'ERR_STORE_LOG_DAMAGED';
        if (isLogDamaged || error.code === 'ERR_APPLIER_DIVERGED' || error.code === 'ERR_LTX_DAMAGED') {
          // What comes in its place may not help either: without a pause that would be a loop at full speed.
          await this.#pause();
          if (!this.#stopped) this.#options.onDiverged(error);
          return;
        }
        if (error.code !== 'ERR_APPLIER_RESTARTED') this.#options.onTrouble(error);
        this.#again = true;
        await this.#pause();
      }
    }
  }

  async #applyAll(): Promise<void> {
    const { name } = this.#options;
    const since = this.#reopenings;
    if (!this.#database) this.#took(await this.#open(), since);
    while (!this.#stopped && this.#database) {
      const files = this.#options.filesAfter(this.#database);
      if (!files) {
        throw new KiteError(
          'ERR_APPLIER_DIVERGED',
          `${name}: the log does not hold the position of the database`,
        );
      }
      if (files.length === 0) return;
      this.#took(await this.#apply(files.slice(0, FILES_PER_CALL)), since);
    }
  }

  async #open(): Promise<AppliedDatabase> {
    const { applier, name } = this.#options;
    try {
      return await applier.open(name);
    } catch (thrown) {
      // A snapshot follows anything: the one that was asked for, or the beginning of the log.
      const files = this.#options.filesAfter(NOTHING);
      if (toKiteError(thrown).code !== 'ERR_APPLIER_DIVERGED' || files?.[0]?.minTxid !== 1n) throw thrown;
      this.#options.onRebuild();
      return await this.#apply(files.slice(0, FILES_PER_CALL));
    }
  }

  async #apply(files: readonly LogFile[]): Promise<AppliedDatabase> {
    const { applier, name, onBatch, onApplying } = this.#options;
    const startMs = monotonicMs();
    const last = files.at(-1);
    // Stays after a failure, which may have come after a part of it: until something says where the database is.
    if (last) this.#applying = { txid: last.maxTxid, checksum: last.postApplyChecksum, epoch: last.epoch };
    // Told first: readers see it before the applier says that it is done.
    onApplying?.();
    const database = await applier.apply(name, files);
    onBatch?.((monotonicMs() - startMs) / 1000);
    return database;
  }

  #took(database: AppliedDatabase, since: number): void {
    // `reopen` has asked for another turn, which begins by opening it.
    if (since !== this.#reopenings) {
      this.#database = undefined;
      return;
    }
    this.#database = database;
    this.#applying = undefined;
    this.#options.onApplied(database);
  }

  async #pause(): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, RETRY_MS);
      this.#wake = () => {
        if (!this.#stopped) return;
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = undefined;
  }
}
