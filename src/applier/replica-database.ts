import fs from 'node:fs';

import { KiteError, toKiteError } from '../errors.js';

import { databasePaths, type DatabasePaths } from '../store/data-directory.js';
import { Log } from '../store/log.js';
import { syncFiles } from '../store/log-sync.js';
import { PageChecksums, type JournalVersions } from '../store/page-checksums.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import { markClosed, markServed } from './boot-marker.js';
import { mountPath, type ApplierContext } from './context.js';
import { createDatabase, emptyFirstPage, removeDatabase } from './database-files.js';
import { follows, positionAfter, readTransaction, SMALL_FILE_BYTES } from './incoming.js';
import { writeSnapshot } from './keep.js';
import { checksumsOf, lastDeletion, locatePosition, placeInLog, type Located } from './locate-position.js';
import type { AppliedChecksums, AppliedDatabase } from './messages.js';
import { PageReader } from './page-reader.js';
import { ReplicaCheck, type ReplicaCheckResult } from './replica-check.js';
import { vacuumsAtCommit, WalConnection } from './wal-connection.js';
import { WalTransaction } from './wal-writer.js';

/** Files that wait are put into one transaction up to this much. */
const BATCH_FILES = 64;
const BATCH_BYTES = 4 << 20;

/** Above this the WAL is checkpointed when no file waits; far above it, also when some do. */
const CHECKPOINT_BYTES = 4 << 20;
const CHECKPOINT_NOW_BYTES = 64 << 20;
const CHECKPOINT_RETRY_MS = 1000;
const SAVE_INTERVAL_MS = 10_000;

interface Queued {
  readonly file: LogFile;
  readonly done: (error?: KiteError) => void;
}

interface State extends Located {
  readonly pageSize: number;
}

/** A database on a replica: what `open` started, until `close`. */
export class ReplicaDatabase {
  readonly #context: ApplierContext;
  readonly #name: string;
  readonly #paths: DatabasePaths;
  readonly #stop = new AbortController();
  readonly #queue: Queued[] = [];
  #connection: WalConnection | undefined;
  /** Undefined: the bytes are those of no known position, only a snapshot can follow. */
  #state: State | undefined;
  /** The log could not be read: what the pages are can still be told. */
  #logError: KiteError | undefined;
  #draining: Promise<void> | undefined;
  #walBytes = 0;
  #checkpointing: Promise<void> | undefined;
  #checkpointAtMs = 0;
  #savedAtMs = monotonicMs();
  #saveDue = false;
  #vacuumsAtCommit = false;
  #check: ReplicaCheck | undefined;
  /** A step of the check, to be made between two turns. */
  #checkStep: (() => void) | undefined;
  #checked = false;

  #letGone = false;
  /** Not any more when a turn failed: what is in memory may be ahead of what was written. */
  #ready = false;

  constructor(context: ApplierContext, name: string) {
    this.#context = context;
    this.#name = name;
    this.#paths = databasePaths(context.dataDir, name);
  }

  /** Whether it was opened, and did not fail since. */
  get ready(): boolean {
    return this.#ready;
  }

  /** Whether others may change the database already: see `letGo`. */
  get isLetGo(): boolean {
    return this.#letGone;
  }

  /** The primary's journal mode bytes, when known. */
  get journalVersions(): JournalVersions | undefined {
    return this.#state?.journalVersions;
  }

  /** Where it stands. Throws ERR_APPLIER_DIVERGED when that is nowhere in the log: then a snapshot has to come. */
  get applied(): AppliedDatabase {
    if (this.#logError) throw this.#logError;
    const state = this.#state;
    if (!state || isNowhere(state)) {
      throw new KiteError('ERR_APPLIER_DIVERGED', `${this.#name} is at no position of the log`);
    }
    return { position: state.position, pageCount: state.checksums.pages, pageSize: state.pageSize };
  }

  /**
   * Finds out where it stands in the log as that is now: a difference may have taken the place of what was there. False: it
   * has to be opened again for that, because the log could not be read.
   */
  place(): boolean {
    if (this.#logError) return false;
    const state = this.#state;
    if (!state || state.checksums.pages === 0) return true;
    const log = Log.open(this.#paths.ltx, { repair: false });
    const position = placeInLog(log, state.position) ?? nowhere(state.position.checksum);
    this.#state = { ...state, position };
    return true;
  }

  /** Checksums of `count` pages from `firstPgno` on; undefined when SQLite finds no database here. */
  async checksums(firstPgno: number, count: number): Promise<AppliedChecksums | undefined> {
    await this.#draining;
    const state = this.#state ?? (await this.#stateOfPages());
    if (!state || state.checksums.pages === 0) return undefined;
    const { position, checksums, pageSize } = state;
    const pages = Math.max(0, Math.min(count, checksums.pages - firstPgno + 1));
    const halves = new Uint32Array(pages * 2);
    for (let i = 0; i < pages; i += 1) {
      halves[i * 2] = checksums.high(firstPgno + i);
      halves[i * 2 + 1] = checksums.low(firstPgno + i);
    }
    return { txid: position.txid, checksum: checksums.checksum, pageSize, pages: checksums.pages, halves };
  }

  /** Writes what it holds now to `path` as a snapshot LTX. */
  async keep(path: string): Promise<void> {
    await this.#draining;
    const state = this.#state;
    if (!state || !this.#connection) throw new KiteError('ERR_APPLIER_IO', `${this.#name} cannot be read`);
    await this.#connection.reading(async () => {
      await writeSnapshot(path, new PageReader(this.#connection!.files), state);
    });
  }

  /** Its bytes are at no position of the log: what they are is found by reading them all, and kept. */
  async #stateOfPages(): Promise<State | undefined> {
    await this.#connection?.reading(async () => {
      const pages = new PageReader(this.#connection!.files);
      // What the primary's are is not known; a wrong guess only makes page 1 differ.
      const journalVersions = { write: 2, read: 2 };
      const checksums = await checksumsOf(pages, journalVersions);
      const position = nowhere(checksums.checksum);
      this.#state = { position, checksums, journalVersions, pageSize: pages.pageSize };
    });
    return this.#state;
  }

  /** Resolves when readers see the last of these files. After an error the database must be closed. */
  async apply(files: readonly LogFile[]): Promise<AppliedDatabase> {
    if (!this.#ready) throw new KiteError('ERR_APPLIER_LOCKED', `${this.#name} is being closed`);
    if (files.length > 0) {
      await new Promise<void>((resolve, reject) => {
        const done = (error?: KiteError): void => (error ? reject(error) : undefined);
        for (const file of files.slice(0, -1)) this.#queue.push({ file, done });
        const last = files.at(-1)!;
        this.#queue.push({ file: last, done: (error) => (error ? reject(error) : resolve()) });
        this.#startDraining();
      });
    }
    return this.applied;
  }

  #startDraining(): void {
    this.#draining ??= this.#drain().finally(() => {
      this.#draining = undefined;
      // What came after the last look of `#drain` and before this.
      if (this.#queue.length > 0 || this.#checkStep) this.#startDraining();
    });
  }

  /**
   * Begins the full check, once there is something to check. Not before: opened at no position of the log, it has nothing that its
   * pages could be compared with until a snapshot has come, and a check that begins in between would have ended with nothing.
   */
  #beginCheck(): void {
    const pages = this.#state?.checksums.pages ?? 0;
    if (this.#check || pages === 0) return;
    this.#check = new ReplicaCheck(pages);
    this.#context.check.add(this.#name, (maxBytes) => this.#checkSome(maxBytes));
  }

  /** Asks for a step of the full check; returns whether there is more to do. */
  #checkSome(maxBytes: number): boolean {
    if (!this.#ready) return false;
    // Between two turns: in one of them the checksums are ahead of the database, and the connection holds the lock. It
    // is not waited for: a turn may wait for a lock, and the checks of other databases go on.
    this.#checkStep ??= () => (this.#checked = !this.#checkPiece(maxBytes));
    this.#startDraining();
    return !this.#checked;
  }

  #checkPiece(maxBytes: number): boolean {
    if (!this.#ready || !this.#connection || !this.#state || !this.#check) return false;
    let result: ReplicaCheckResult;
    try {
      result = this.#check.step(this.#connection, this.#state, maxBytes);
    } catch {
      // The files could not be read, or were replaced: the next transaction says so.
      return false;
    }
    const { damagedPgno, more, progress } = result;
    if (progress) this.#context.emit({ kind: 'checked', name: this.#name, progress });
    if (damagedPgno === undefined) return more;
    // Without the saved checksums `open` reads every page, and finds that this is no position of the log.
    this.#state = undefined;
    this.#ready = false;
    fs.rmSync(this.#paths.checksums, { force: true });
    this.#context.emit({ kind: 'damaged', name: this.#name, pgno: damagedPgno });
    return false;
  }

  /** Ends waits for locks, with an error for the calls that wait. */
  stop(): void {
    this.#stop.abort(new KiteError('ERR_APPLIER_LOCKED', `${this.#name} was closed before all was done`));
  }

  /**
   * Ends waits and saves the checksums with their position: from here on others may change the database. Of this only the
   * connection is left, which does nothing until `close`. Returns the position, if known.
   */
  async letGo(): Promise<EpochPosition | undefined> {
    this.stop();
    this.#ready = false;
    await this.#draining;
    // It truncates the WAL, of which whoever is next would not be told.
    await this.#checkpointing;
    const state = this.#state;
    const isServed = state !== undefined && this.#connection !== undefined;
    const synced = isServed ? this.#syncFiles() : undefined;
    this.#save();
    // With the mark removed the saved checksums are believed, also when an application keeps the WAL in use and the power is
    // cut: then the pages that they are of must be there.
    await synced;
    if (isServed) markClosed(this.#paths.directory);
    // What others do from now on is not in it: it may not be saved again.
    this.#state = undefined;
    this.#letGone = true;
    return state?.position;
  }

  /**
   * As `letGo`, then closes the connection. When that is the last one it is a checkpoint, during which nobody can open the
   * database: of one that was let go before, which others write by now, most is done before.
   */
  async close(): Promise<EpochPosition | undefined> {
    if (this.isLetGo && this.#connection)
      await this.#context.checkpointer.runBesideWriters(mountPath(this.#context, this.#name));
    const position = await this.letGo();
    await this.#release();
    return position;
  }

  /** An empty database for those who have it open, then its removal (trap 25). */
  async drop(): Promise<void> {
    this.#ready = false;
    await this.#draining;
    await this.#remove();
  }

  async #remove(): Promise<void> {
    const pageSize = this.#state?.pageSize ?? 0;
    if (this.#connection && pageSize > 0) {
      await this.#write(pageSize, 1, (add) => {
        add(1, emptyFirstPage(pageSize));
        return 1;
      });
    }
    await this.#release();
    await removeDatabase(this.#context.mountDir, this.#name, this.#context.arm);
    fs.rmSync(this.#paths.checksums, { force: true });
    markClosed(this.#paths.directory);
  }

  /** Opens the database and finds where it stands. After an error nothing of it is open. */
  async open(): Promise<void> {
    try {
      await this.#locate();
    } catch (error) {
      if (!(error instanceof KiteError) || error.code !== 'ERR_STORE_LOG_DAMAGED' || !this.#connection) {
        await this.#release();
        throw error;
      }
      this.#logError = error;
    }
    this.#ready = true;
    this.#beginCheck();
  }

  async #locate(): Promise<void> {
    const { directory, ltx, checksums } = this.#paths;
    fs.mkdirSync(directory, { recursive: true });
    const size = fs.statSync(mountPath(this.#context, this.#name), { throwIfNoEntry: false })?.size ?? 0;
    if (size === 0) {
      this.#state = nothing(lastDeletion(Log.open(ltx, { repair: false })));
      return;
    }
    const trusted = markServed(directory);
    this.#connection = await this.#connect();
    const log = Log.open(ltx, { repair: false });
    await this.#connection?.reading(async () => {
      const pages = new PageReader(this.#connection!.files);
      const located = await locatePosition(pages, log, checksums, trusted);
      this.#state = located && { ...located, pageSize: pages.pageSize };
      this.#vacuumsAtCommit = vacuumsAtCommit(pages.read(1));
    });
    const deletion = this.#state ? undefined : lastDeletion(log);
    if (deletion) {
      // Ended in the middle of a removal, when it was emptied, or made anew after one and then lost with the power: neither is a
      // position of the log, which has all that came after the deletion.
      await this.#remove();
      this.#state = nothing(deletion);
    }
  }

  /** Undefined when SQLite cannot open it at all: a snapshot then takes its place. */
  async #connect(): Promise<WalConnection | undefined> {
    try {
      return await WalConnection.open(this.#context, this.#name, this.#stop.signal);
    } catch (error) {
      if (isUnreadable(error)) return undefined;
      throw error;
    }
  }

  async #drain(): Promise<void> {
    while (this.#queue.length > 0 || this.#checkStep) {
      const checkStep = this.#checkStep;
      this.#checkStep = undefined;
      checkStep?.();
      if (this.#queue.length === 0) break;
      try {
        const taken = await this.#turn();
        for (const { done } of this.#queue.splice(0, taken)) done();
      } catch (error) {
        // What is in memory may be ahead of what was written: nothing of it is saved, `open` finds out.
        this.#state = undefined;
        this.#ready = false;
        const known = toKiteError(error);
        const told =
          known.code === 'ERR_INTERNAL'
            ? new KiteError('ERR_APPLIER_IO', `${this.#name}: ${known.message}`, { cause: error })
            : known;
        for (const { done } of this.#queue.splice(0)) done(told);
      }
      this.#maybeCheckpoint();
      // After a kill only what came later has to be computed again.
      if (this.#saveDue && monotonicMs() - this.#savedAtMs > SAVE_INTERVAL_MS) this.#save();
    }
  }

  /** Applies files from the head of the queue in one transaction; returns how many. */
  async #turn(): Promise<number> {
    // Once closed, nothing may be opened, let alone created, any more.
    this.#stop.signal.throwIfAborted();
    const first = this.#queue[0]!.file;
    if (follows(this.#state?.position, first) === 'done') return 1;
    if (first.commitPages === 0) {
      await this.#remove();
      this.#state = nothing(first);
      return 1;
    }
    if (!this.#connection) await this.#create(first.pageSize);
    return first.sizeBytes <= SMALL_FILE_BYTES ? await this.#applySmall() : await this.#applyLarge(first);
  }

  async #create(pageSize: number): Promise<void> {
    await removeDatabase(this.#context.mountDir, this.#name, this.#context.arm);
    markServed(this.#paths.directory);
    await createDatabase(this.#context.mountDir, this.#name, pageSize, this.#context.arm);
    this.#connection = await WalConnection.open(this.#context, this.#name, this.#stop.signal);
  }

  /** Decodes and verifies whole files, as many as wait and fit, then writes the newest copy of each page. */
  async #applySmall(): Promise<number> {
    const pages = new Map<number, Buffer>();
    const first = this.#queue[0]!.file;
    const checksums = first.minTxid === 1n ? new PageChecksums() : this.#state!.checksums;
    let journalVersions = this.#state?.journalVersions;
    let taken = 0;
    let position = this.#state?.position;
    for (const { file } of this.#queue.slice(0, BATCH_FILES)) {
      const fits =
        taken === 0 ||
        (file.sizeBytes <= SMALL_FILE_BYTES &&
          file.pageSize === first.pageSize &&
          file.commitPages > 0 &&
          file.minTxid !== 1n &&
          pages.size * first.pageSize < BATCH_BYTES);
      if (!fits || follows(position, file) === 'done') break;
      const versions = await readTransaction(file, checksums, (pgno, page) => {
        pages.set(pgno, Buffer.from(page));
      });
      journalVersions = versions ?? journalVersions;
      position = positionAfter(file);
      taken += 1;
    }
    const last = this.#queue[taken - 1]!.file;
    await this.#write(first.pageSize, pages.size, (add) => {
      for (const [pgno, page] of pages) if (pgno <= last.commitPages) add(pgno, page);
      return last.commitPages;
    });
    this.#reached(last, checksums, journalVersions, pages.get(1));
    return taken;
  }

  /** Decodes and writes at once, in bounded memory; it is verified when the last page has come, before it commits. */
  async #applyLarge(file: LogFile): Promise<number> {
    const checksums = file.minTxid === 1n ? new PageChecksums() : this.#state!.checksums;
    let journalVersions = this.#state?.journalVersions;
    let firstPage: Buffer | undefined;
    await this.#write(file.pageSize, Infinity, async (add, isFull) => {
      const versions = await readTransaction(
        file,
        checksums,
        (pgno, page) => {
          if (pgno === 1) firstPage = Buffer.from(page.subarray(0, 100));
          add(pgno, page);
        },
        () => (isFull() ? new Promise(setImmediate) : undefined),
      );
      journalVersions = versions ?? journalVersions;
      return file.commitPages;
    });
    this.#reached(file, checksums, journalVersions, firstPage);
    return 1;
  }

  /** One WAL transaction; `fill` adds the pages and returns the size of the database after it. */
  async #write(
    pageSize: number,
    frames: number,
    fill: (add: (pgno: number, page: Buffer) => void, isFull: () => boolean) => Promise<number> | number,
  ): Promise<void> {
    const connection = this.#connection!;
    for (;;) {
      const written = await connection.writing(async () => {
        const wal = WalTransaction.begin(connection.files, pageSize, frames);
        if (!wal) return false;
        const pages = await fill(
          (pgno, page) => wal.add(pgno, page),
          () => wal.full,
        );
        if (wal.frames > 0) this.#walBytes = wal.commit(pages);
        else if (pages !== new PageReader(connection.files).pageCount)
          throw new KiteError('ERR_LTX_DAMAGED', 'a transaction without pages changes the size');
        return true;
      }, this.#vacuumsAtCommit);
      if (written) return;
      await connection.restartWal();
    }
  }

  #reached(
    file: LogFile,
    checksums: PageChecksums,
    journalVersions: JournalVersions | undefined,
    firstPage: Buffer | undefined,
  ): void {
    if (!journalVersions)
      throw new KiteError('ERR_LTX_DAMAGED', `${file.path} has no page 1 and nothing is before it`);
    if (firstPage) this.#vacuumsAtCommit = vacuumsAtCommit(firstPage);
    this.#state = { position: positionAfter(file), checksums, journalVersions, pageSize: file.pageSize };
    this.#beginCheck();
  }

  #maybeCheckpoint(): void {
    const waiting = this.#queue.length > 0;
    if (this.#walBytes < (waiting ? CHECKPOINT_NOW_BYTES : CHECKPOINT_BYTES)) return;
    if (!this.#ready || !this.#connection || this.#checkpointing) return;
    if (monotonicMs() < this.#checkpointAtMs) return;
    this.#checkpointing = this.#checkpoint().finally(() => (this.#checkpointing = undefined));
  }

  /** See Applier.settleAll. */
  async settle(): Promise<void> {
    if (!this.#ready || !this.#connection) return;
    this.#checkpointing ??= this.#checkpoint().finally(() => (this.#checkpointing = undefined));
    await this.#checkpointing;
    await this.#syncFiles();
  }

  async #checkpoint(): Promise<void> {
    const complete = await this.#context.checkpointer.run(mountPath(this.#context, this.#name));
    if (complete) {
      this.#walBytes = 0;
      this.#saveDue = true;
    } else {
      this.#checkpointAtMs = monotonicMs() + CHECKPOINT_RETRY_MS;
      setTimeout(() => this.#maybeCheckpoint(), CHECKPOINT_RETRY_MS);
    }
    this.#context.emit({ kind: 'checkpoint', name: this.#name, walBytes: this.#walBytes, complete });
  }

  #save(): void {
    const state = this.#state;
    if (!state || state.checksums.pages === 0) return;
    const { position, pageSize, journalVersions, checksums } = state;
    checksums.save(this.#paths.checksums, { position, pageSize, journalVersions });
    this.#savedAtMs = monotonicMs();
    this.#saveDue = false;
  }

  /** In the data directory: the mount would do the same with more steps. */
  async #syncFiles(): Promise<void> {
    const { directory, wal, database } = this.#paths;
    await syncFiles(directory, [wal, database]);
  }

  async #release(): Promise<void> {
    // It has locks of its own in this process, which closing our descriptors would give up.
    await this.#checkpointing;
    this.#connection?.close();
    this.#connection = undefined;
  }
}

/** TXID 0 and pages: no position, only what they are. */
const nowhere = (checksum: bigint): EpochPosition => ({ txid: 0n, checksum, epoch: 0n });
const isNowhere = ({ position, checksums }: State): boolean => position.txid === 0n && checksums.pages > 0;

/** Where a database stands that does not exist: at its deletion, when there was one. */
function nothing(deletion: LogFile | undefined): State {
  const position = deletion ? positionAfter(deletion) : { txid: 0n, checksum: 0n, epoch: 0n };
  const checksums = new PageChecksums();
  return { position, checksums, journalVersions: { write: 1, read: 1 }, pageSize: 0 };
}

/** SQLite finds no database in the file, or a damaged one. */
const isUnreadable = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && /^SQLITE_(NOTADB|CORRUPT|CANTOPEN)/.test(String(error.code));
