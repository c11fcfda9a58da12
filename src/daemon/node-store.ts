import {
  closeSync,
  existsSync,
  fsync as fsyncCallback,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { markServed } from '../applier/boot-marker.js';
import type { DatabaseCopy } from '../backup/database-backup.js';
import type { Applier } from '../applier/applier.js';
import type { AppliedDatabase } from '../applier/messages.js';
import type { Capture } from '../capture/capture.js';
import { buildSnapshot } from '../capture/first-copy.js';
import type { Logger } from '../observability/log.js';
import type { CheckProgress } from '../store/background-check.js';
import { KiteError, toKiteError } from '../errors.js';
import { NO_POSITION, samePosition, type Position, type TxidRange } from '../ltx/position.js';
import type { Metrics } from '../observability/metrics.js';
import type { History } from '../proxy/history.js';
import type {
  ChecksumSource,
  IncomingFile,
  Replacement,
  ReplicaPages,
  ReplicationStore,
  SnapshotSource,
  StoreChange,
} from '../replication/store.js';
import { type DataDirectory, databasePaths } from '../store/data-directory.js';
import { encodeDatabaseName } from '../store/database-name.js';
import { FILES_PER_READ, Log, type LogFileMeta } from '../store/log.js';
import { LostAndFound } from '../store/lost-and-found.js';
import { syncFiles } from '../store/log-sync.js';
import { formatChecksums } from '../store/page-difference.js';
import type { EpochPosition, LogContents, LogFile } from '../store/types.js';
import { ApplyQueue } from './apply-queue.js';
import type { EventLog } from './event-log.js';
import { LogReader, SMALL_FILE_BYTES } from './log-reader.js';
import { Replacing } from './replacing.js';
import { verifyFile } from './verify-file.js';
import { verifyIncoming } from './verify-incoming.js';

const fsync = promisify(fsyncCallback);

const HALT_POLL_MS = 2;
/** How long a database may take to apply what it has before its pages are compared as they are. */
const DRAIN_LIMIT_MS = 5000;
/** Page checksums per message: 256 KiB. */
const CHECKSUM_PAGES = 32_768;
/** One database as the main thread sees it. */
interface Entry {
  readonly name: string;
  readonly log: Log;
  applied: AppliedDatabase | undefined;
  queue: ApplyQueue | undefined;
  /** Applications of this replica write it (HALT): capture has the log and the database, nothing is applied. */
  lent: boolean;
  /** What this node has is of no use; replication is told that nothing is here, so that a snapshot comes. */
  needsSnapshot: boolean;
  /** Where the epochs before this one ended in the log. */
  earlier: { readonly epoch: bigint; readonly ends: readonly EpochPosition[] } | undefined;
  /** How far the full check behind the last start is. */
  check: CheckProgress | undefined;
  /** Why this database does not serve. */
  error: KiteError | undefined;
}

export interface NodeStoreOptions {
  readonly data: DataDirectory;
  readonly capture: Capture;
  readonly events: EventLog;
  readonly metrics: Metrics;
  readonly logger: Logger;
  readonly isPrimary: () => boolean;
  /** A database is not what its log says: the primary has to be asked for what differs. */
  readonly onResyncNeeded: (name: string) => void;
  /** What arrives for a database that applications of this node write (HALT) shows that this is over: resolves when it is. */
  readonly onHaltOver: (name: string) => Promise<void>;
  /** Readers may see more of a database from now on. */
  readonly onApplying: () => void;
}

/**
 * The databases of this node on the main thread: their logs, what has been applied, and what replication asks
 * of them. Capture appends to the logs while this node is primary, `receive` while it is a replica; never both.
 */
export class NodeStore implements ReplicationStore {
  readonly #data: DataDirectory;
  readonly #capture: Capture;
  readonly #events: EventLog;
  readonly #metrics: Metrics;
  readonly #logger: Logger;
  readonly #isPrimary: () => boolean;
  readonly #onResyncNeeded: (name: string) => void;
  readonly #onHaltOver: (name: string) => Promise<void>;
  readonly #onApplying: () => void;
  readonly #lostAndFound: LostAndFound;
  readonly #replacing: Replacing;
  readonly #entries = new Map<string, Entry>();
  readonly #listeners = new Set<(change: StoreChange) => void>();
  readonly #reader = new LogReader((file, error) => this.#unusable(file, error));
  /** Log files found damaged: said once. */
  readonly #damaged = new Set<string>();
  #applier: Applier | undefined;

  constructor(options: NodeStoreOptions) {
    this.#data = options.data;
    this.#capture = options.capture;
    this.#events = options.events;
    this.#metrics = options.metrics;
    this.#logger = options.logger;
    this.#isPrimary = options.isPrimary;
    this.#onResyncNeeded = options.onResyncNeeded;
    this.#onHaltOver = options.onHaltOver;
    this.#onApplying = options.onApplying;
    this.#lostAndFound = new LostAndFound(options.data.path);
    this.#replacing = new Replacing({
      dataDir: options.data.path,
      lostAndFound: this.#lostAndFound,
      events: options.events,
      metrics: options.metrics,
      applier: () => this.#applier,
      syncDatabase: (name) => this.#syncDatabase(name),
    });
    this.#capture.on('transaction', ({ name, file, bytes }) => {
      this.#entry(name).log.noted(file);
      if (bytes) this.#reader.remember(file.path, bytes);
      this.#tell({ kind: 'transaction', name, file });
    });
    this.#capture.on('created', (name) => {
      this.#entry(name);
      this.#tell({ kind: 'created', name });
    });
    this.#capture.on('checked', ({ name, progress }) => this.checked(name, progress));
    this.#capture.on('compensated', (name) => {
      this.#metrics.compensated.inc({ db: name });
      this.#events.add('compensated', 'a writer died in its commit, which was taken back from replicas', {
        database: name,
      });
    });
    this.#capture.on('failed', ({ name, error }) => {
      this.#entry(name).error = error;
      this.#events.add('database-failed', error.describe(), { database: name, level: 'error' });
    });
    // Dropped: the deletion is a transaction of the log, so replicas are told by it like by any other.
  }

  get nodeId(): string {
    return this.#data.node.nodeId;
  }

  get clusterId(): string {
    const id = this.#data.clusterId;
    if (id === undefined) throw new KiteError('ERR_INTERNAL', 'the cluster is not known yet');
    return id;
  }

  epoch(): bigint {
    return this.#data.node.epoch;
  }

  databases(): readonly string[] {
    // One that was dropped is none, though its log is kept: replicas have been told by its deletion.
    return [...this.#entries.values()].filter(exists).map((entry) => entry.name);
  }

  position(name: string): EpochPosition | undefined {
    const entry = this.#entries.get(name);
    return entry?.needsSnapshot ? undefined : entry?.log.lastPosition;
  }

  /** End of each log, also of databases that were dropped. */
  logEnds(): ReadonlyMap<string, EpochPosition> {
    const ends = new Map<string, EpochPosition>();
    for (const { name, log } of this.#entries.values()) {
      if (log.lastPosition) ends.set(name, log.lastPosition);
    }
    return ends;
  }

  /** What each log holds, for capture. */
  logContents(): ReadonlyMap<string, LogContents> {
    return new Map([...this.#entries.values()].map(({ name, log }) => [name, log.contents]));
  }

  appliedPosition(name: string): EpochPosition | undefined {
    if (this.#isPrimary()) return this.position(name);
    const applied = this.#entries.get(name)?.applied?.position;
    return applied && applied.txid > 0n ? applied : undefined;
  }

  /** What readers here see at least, and where the epochs before that ended; undefined: no such database is here. */
  history(name: string): History | undefined {
    const entry = this.#entries.get(name);
    const position = this.appliedPosition(name);
    if (!entry || !exists(entry) || !position) return undefined;
    if (entry.earlier?.epoch !== position.epoch) {
      entry.earlier = { epoch: position.epoch, ends: endsBefore(entry.log, position.epoch) };
    }
    return { position, ends: entry.earlier.ends };
  }

  /**
   * The last transaction that a reader here can have seen before this call: on the primary, and where applications write (HALT), what
   * is committed, once capture has passed the end of the WAL; else the end of what is being applied.
   */
  async seen(name: string): Promise<EpochPosition | undefined> {
    const entry = this.#entries.get(name);
    if (!entry || !exists(entry)) return undefined;
    // Without a queue the role is changing: what readers see may be capture's still, or again.
    if (this.#isPrimary() || entry.lent || !entry.queue) {
      const captured = await this.#capture.position(name);
      // Not captured: it is being taken over, or damaged. Nothing was written that the log does not have.
      return captured ?? this.position(name);
    }
    // Not known while the applier opens it; more than the log has nobody sees.
    return entry.queue.applying ?? this.appliedPosition(name) ?? this.position(name);
  }

  /** What readers here see: how large the database is, and where; undefined where that is not known. */
  visible(name: string): AppliedDatabase | undefined {
    const entry = this.#entries.get(name);
    if (!this.#isPrimary()) return entry?.applied;
    const [position, last] = [this.position(name), entry?.log.lastFile];
    return position && last && { position, pageCount: last.commitPages, pageSize: last.pageSize };
  }

  /** Last file of the log: size and page size of the database after it. */
  lastFile(name: string): LogFile | undefined {
    return this.#entries.get(name)?.log.lastFile;
  }

  logFileCount(name: string): number {
    return this.#entries.get(name)?.log.fileCount ?? 0;
  }

  check(name: string): CheckProgress | undefined {
    return this.#entries.get(name)?.check;
  }

  error(name: string): KiteError | undefined {
    return this.#entries.get(name)?.error;
  }

  setError(name: string, error: KiteError | undefined): void {
    this.#entry(name).error = error;
  }

  subscribe(listener: (change: StoreChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  // --- primary

  filesAfter(name: string, position: EpochPosition): readonly LogFile[] | undefined {
    const entry = this.#entries.get(name);
    try {
      return entry?.log.filesAfter(position, FILES_PER_READ);
    } catch (thrown) {
      const error = toKiteError(thrown);
      if (error.code === 'ERR_STORE_LOG_DAMAGED') this.#logDamaged(name, error.message);
      throw error;
    }
  }

  readFile(file: LogFile): Promise<Buffer> | AsyncIterable<Buffer> {
    return this.#reader.read(file);
  }

  endOfEpoch(name: string, epoch: bigint): EpochPosition | undefined {
    try {
      return this.#entries.get(name)?.log.endOfEpoch(epoch);
    } catch {
      // A damaged file is in the way: then it is not known, and the replica keeps what it has.
      return undefined;
    }
  }

  pagesOf(name: string): { readonly pageSize: number; readonly pages: number } | undefined {
    const last = this.lastFile(name);
    return last && { pageSize: last.pageSize, pages: last.commitPages };
  }

  hold(name: string, afterTxid: bigint): { move(afterTxid: bigint): void; release(): void } {
    return this.#entry(name).log.hold(afterTxid);
  }

  snapshot(name: string): Promise<SnapshotSource> {
    return this.#copy(name, this.#metrics.snapshots);
  }

  difference(name: string, replica: ReplicaPages): Promise<SnapshotSource> {
    return this.#copy(name, this.#metrics.differences, replica);
  }

  async #copy(name: string, counter: Metrics['snapshots'], replica?: ReplicaPages): Promise<SnapshotSource> {
    const { log } = this.#entry(name);
    const { ltx } = databasePaths(this.#data.path, name);
    const source = await buildSnapshot(this.#capture, name, log, ltx, replica);
    return {
      file: source.file,
      async *chunks() {
        yield* source.chunks();
        counter.inc({ direction: 'sent' });
      },
    };
  }

  // --- backups

  /** Names of log files after a position; undefined when the log does not hold it. */
  rangesAfter(name: string, position: Position): readonly TxidRange[] | undefined {
    return this.#entries.get(name)?.log.rangesAfter(position, FILES_PER_READ);
  }

  contains(name: string, position: Position): boolean {
    return this.#entries.get(name)?.log.contains(position) ?? false;
  }

  /** A copy of a database in a file that is the caller's; where its deletion stands when it was dropped; undefined when there is none. */
  async copyToFile(name: string): Promise<DatabaseCopy | { readonly dropped: EpochPosition } | undefined> {
    const log = this.#entries.get(name)?.log;
    const last = log?.lastFile;
    if (!log || !last) return undefined;
    if (last.commitPages === 0) {
      return { dropped: { txid: last.maxTxid, checksum: last.postApplyChecksum, epoch: last.epoch } };
    }
    const { path, file } = await buildSnapshot(this.#capture, name, log, join(this.#data.path, 'tmp'));
    return { path, position: { txid: file.maxTxid, checksum: file.postApplyChecksum, epoch: file.epoch } };
  }

  #unusable(file: LogFile, error: KiteError): void {
    const before = { txid: file.minTxid - 1n, checksum: file.preApplyChecksum };
    for (const { name, log } of this.#entries.values()) {
      // Retention may have removed it meanwhile, which is no damage.
      if (databasePaths(this.#data.path, name).ltx !== dirname(file.path) || !log.contains(before)) continue;
      this.#logDamaged(name, error.message);
    }
  }

  #logDamaged(name: string, message: string): void {
    if (this.#damaged.has(message)) return;
    this.#damaged.add(message);
    this.#events.add('log-damaged', `${message}; replicas that need it get the pages that differ`, {
      database: name,
      level: 'error',
    });
  }

  // --- replica

  async sync(name: string): Promise<void> {
    await this.#entries.get(name)?.log.sync();
  }

  /** As `sync`, for every log. */
  async syncAll(): Promise<void> {
    await Promise.all([...this.#entries.values()].map(({ log }) => log.sync()));
  }

  isGrounded(name: string): boolean {
    const entry = this.#entries.get(name);
    if (!entry || entry.needsSnapshot) return false;
    return !exists(entry) || entry.log.beginsWithDatabase || entry.applied !== undefined;
  }

  /** Begins the log of a database that this node has not with a whole one, made from a backup; durable when it resolves. */
  async seed(name: string, path: string, meta: LogFileMeta): Promise<void> {
    const entry = this.#entry(name);
    this.#received(entry, entry.log.appendPrepared(path, meta));
    await entry.log.sync();
  }

  async arrives(name: string, meta: LogFileMeta): Promise<'new' | 'known'> {
    const entry = this.#entries.get(name);
    const end = { txid: meta.maxTxid, checksum: meta.postApplyChecksum };
    // A snapshot is asked for where the log is of no use, whatever it holds.
    if (entry && !entry.needsSnapshot && meta.minTxid > 1n && entry.log.contains(end)) return 'known';
    await this.#endHalt(name);
    return 'new';
  }

  async receive(name: string, meta: LogFileMeta, replacement?: Replacement): Promise<IncomingFile> {
    const entry = this.#entry(name);
    const replaces = replacement?.difference === true || (meta.minTxid === 1n && entry.log.lastPosition);
    if (replaces) return this.#receiveOnDisk(entry, meta, replacement ?? {});
    return meta.sizeBytes <= SMALL_FILE_BYTES
      ? this.#receiveInMemory(entry, meta)
      : this.#receiveOnDisk(entry, meta);
  }

  announced(): readonly string[] {
    return [...this.#entries.values()]
      .filter((entry) => exists(entry) || entry.needsSnapshot)
      .map((entry) => entry.name);
  }

  needsResync(name: string): { readonly at: EpochPosition | undefined } | undefined {
    const entry = this.#entries.get(name);
    return entry?.needsSnapshot ? { at: entry.log.lastPosition } : undefined;
  }

  async pageChecksums(name: string, pageSize: number): Promise<ChecksumSource | undefined> {
    await this.#endHalt(name);
    const entry = this.#entries.get(name);
    const applier = this.#applier;
    if (!entry || !applier) return undefined;
    // A difference to the end of our log simply follows it. What cannot be applied is left out.
    if (!entry.needsSnapshot && entry.queue)
      await Promise.race([entry.queue.drained(), sleep(DRAIN_LIMIT_MS)]);
    await entry.queue?.stop();
    entry.queue = undefined;
    // With nothing of use here the queue would only say so again.
    const release = (): void => {
      if (!entry.needsSnapshot && this.#entries.get(name) === entry) this.#startQueue(entry);
    };
    try {
      const head = await applier.checksums(name, 1, 0);
      if (!head || head.pageSize !== pageSize) {
        release();
        return undefined;
      }
      const { txid, checksum, pages } = head;
      return {
        txid,
        checksum,
        pages,
        release,
        async *chunks() {
          for (let next = 1; next <= pages; next += CHECKSUM_PAGES) {
            const piece = await applier.checksums(name, next, CHECKSUM_PAGES);
            if (piece?.checksum !== checksum) {
              throw new KiteError('ERR_REPLICATION_ORDER', `${name} was changed while it was compared`);
            }
            yield formatChecksums(piece.halves);
          }
        },
      };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** The primary has no such database: what is here was not dropped by an application, so it is set aside. */
  async drop(name: string, epoch: bigint): Promise<void> {
    await this.#endHalt(name);
    const entry = this.#entries.get(name);
    if (!entry || !this.#applier || entry.log.lastFile?.commitPages === 0) return;
    await entry.queue?.stop();
    const transactions = transactionsOf(entry.log);
    const why = `epoch ${epoch} does not have this database`;
    const folder = entry.log.setAsideAfter(0n, this.#lostAndFound, why);
    await this.#applier.drop(name);
    this.#entries.delete(name);
    const message = `${name} is not in the cluster any more; its log was moved to ${folder}`;
    this.#replacing.lost(name, transactions, message);
    this.#tell({ kind: 'dropped', name });
  }

  /** How far the full check of a database is. */
  checked(name: string, progress: CheckProgress): void {
    const entry = this.#entries.get(name);
    if (!entry) return;
    entry.check = progress;
    if (progress.checkedPages < progress.pages) return;
    this.#logger.info({ database: name, pages: progress.pages }, 'all pages are as they were committed');
  }

  /** The full check has found a page of a replica's copy damaged: the applier makes it anew, from the log or from a snapshot. */
  damaged(name: string, pgno: number): void {
    const entry = this.#entries.get(name);
    if (!entry?.queue) return;
    entry.check = undefined;
    entry.error = new KiteError('ERR_APPLIER_DAMAGED', `database ${name}: page ${pgno} is not as committed`);
    this.#events.add('database-failed', entry.error.describe(), { database: name, level: 'error' });
    entry.queue.reopen();
  }

  /**
   * On a replica: every page of a database is read again, and compared with the log; what that does not explain is made anew. `error` stays
   * until it is done.
   */
  async readAnew(name: string, error: KiteError): Promise<void> {
    const entry = this.#entries.get(name);
    const applier = this.#applier;
    if (!entry || !applier) return;
    entry.error = error;
    await entry.queue?.stop();
    entry.queue = undefined;
    // Closing saves checksums, which know nothing of what has become of the pages.
    await applier.close(name);
    rmSync(databasePaths(this.#data.path, name).checksums, { force: true });
    if (this.#entries.get(name) === entry) this.#startQueue(entry);
  }

  // --- HALT: this replica writes a database

  /**
   * The applier lets go of a database when it has applied exactly `at`; the log is capture's from here on. Rejects with
   * ERR_HALT_ENDED when `isOver` says so first; then nothing has changed.
   */
  async lend(name: string, at: EpochPosition, isOver: () => boolean): Promise<void> {
    const entry = this.#entries.get(name);
    const applier = this.#applier;
    const isAt = (): boolean => {
      const applied = entry?.applied?.position;
      const end = entry?.log.lastPosition;
      return applied !== undefined && end !== undefined && samePosition(applied, at) && samePosition(end, at);
    };
    while (!isAt() && !isOver()) await sleep(HALT_POLL_MS);
    if (!entry || !applier || !isAt() || this.#entries.get(name) !== entry) {
      throw new KiteError('ERR_HALT_ENDED', `${name} did not reach the primary's TXID ${at.txid} in time`);
    }
    entry.lent = true;
    await entry.queue?.stop();
    entry.queue = undefined;
    await applier.close(name);
    // As while the applier serves it: after a power cut the saved checksums say nothing.
    markServed(databasePaths(this.#data.path, name).directory);
  }

  /** A transaction of ours was committed at the primary: readers here may see it. */
  lentAt(name: string, file: LogFile): void {
    const entry = this.#entries.get(name);
    if (!entry?.lent) return;
    const position = { txid: file.maxTxid, checksum: file.postApplyChecksum, epoch: file.epoch };
    entry.applied = { position, pageCount: file.commitPages, pageSize: file.pageSize };
    this.#tell({ kind: 'applied', name });
  }

  /** Capture has let go: the applier finds where the database is in the log as that is now, and follows it again. */
  takeBack(name: string): void {
    const entry = this.#entries.get(name);
    if (!entry?.lent) return;
    entry.lent = false;
    this.#startQueue(entry);
  }

  async #endHalt(name: string): Promise<void> {
    if (this.#entries.get(name)?.lent) await this.#onHaltOver(name);
  }

  // --- role changes

  /** Opens the logs of all databases on disk. With `repair`: once, at start, before anybody appends. */
  openLogs(options: { repair: boolean }): void {
    for (const name of this.#data.names()) {
      try {
        this.#openEntry(name, options);
      } catch (error) {
        if (!(error instanceof KiteError)) throw error;
        this.#events.add('database-failed', error.describe(), { database: name, level: 'error' });
        this.#openDamaged(name, error);
      }
    }
  }

  /** From now on `receive` fills the logs and the applier follows them. */
  follow(applier: Applier): void {
    this.#applier = applier;
    for (const name of this.#data.names()) this.#startQueue(this.#entry(name));
  }

  /** Resolves when everything received has been applied. */
  async drained(): Promise<void> {
    await Promise.all(this.#queues().map((queue) => queue.drained()));
  }

  /** Names of the databases that are not served as they should be, and may not be taken over. */
  troubled(): string[] {
    return [...this.#entries.values()]
      .filter((entry) => entry.error || entry.needsSnapshot)
      .map((entry) => entry.name);
  }

  /** The applier no longer follows; its databases are closed after this by the caller. */
  async unfollow(): Promise<void> {
    await Promise.all(this.#queues().map((queue) => queue.stop()));
    for (const entry of this.#entries.values()) {
      entry.queue = undefined;
      entry.applied = undefined;
    }
    this.#applier = undefined;
  }

  /** The applier was started again. */
  applierRestarted(): void {
    for (const entry of this.#entries.values()) entry.queue?.reopen();
  }

  /** The logs changed under another thread's hand (a role change): read them again. */
  async reopenLogs(): Promise<void> {
    for (const entry of this.#entries.values()) await entry.log.close();
    this.#entries.clear();
    this.#reader.forget();
    this.openLogs({ repair: false });
  }

  /** Retention: removes log files whose transactions are all below `txid`, applied and not on their way to a replica. */
  async removeBefore(name: string, txid: bigint): Promise<void> {
    const log = this.#entries.get(name)?.log;
    if (!log?.endsBefore(txid)) return;
    const durable = await this.#durableTxid(name, log);
    if (durable !== undefined) log.removeBefore(durable < txid ? durable + 1n : txid);
  }

  /** Retention by size: also what a replica that lags still has to get; what this node has to apply stays. */
  async trimTo(name: string, maxBytes: number): Promise<void> {
    const log = this.#entries.get(name)?.log;
    if (!log?.exceeds(maxBytes)) return;
    const durable = await this.#durableTxid(name, log);
    if (durable === undefined) return;
    const { count, wasHeld } = log.trimTo(maxBytes, durable);
    if (!wasHeld) return;
    this.#events.add(
      'log-cut',
      `the log of ${name} was larger than data.max-log-size: ${count} files were removed that a replica still needed; it gets the pages that differ`,
      { database: name, level: 'warn' },
    );
  }

  async close(): Promise<void> {
    for (const entry of this.#entries.values()) await entry.log.close();
  }

  // --- inside

  /**
   * Makes what has been applied durable in the database's own files; returns up to where that is in the log, or undefined.
   * The applier fsyncs nothing but by a checkpoint, because the log has it all: so the log may not begin later, nor be replaced
   * by a difference, before this. A power cut would leave a database that no file of the log follows.
   */
  async #durableTxid(name: string, log: Log): Promise<bigint | undefined> {
    const at = this.appliedPosition(name);
    // Not of this log: one that has just taken the place of another, and was not applied yet.
    if (!at || !log.contains(at)) return undefined;
    // A deletion stays as long as nothing of what follows it is there: that begins with nothing.
    if (this.#entries.get(name)?.applied?.pageCount === 0) return undefined;
    await this.#syncDatabase(name);
    return log.contains(at) ? at.txid : undefined;
  }

  async #syncDatabase(name: string): Promise<void> {
    const { directory, journal, wal, database } = databasePaths(this.#data.path, name);
    await syncFiles(directory, [journal, wal, database]);
  }

  #entry(name: string): Entry {
    return this.#entries.get(name) ?? this.#openEntry(name, { repair: false });
  }

  #openEntry(name: string, options: { repair: boolean }): Entry {
    const { ltx } = this.#data.createDatabase(name);
    const log = Log.open(ltx, options);
    const entry: Entry = {
      name,
      log,
      applied: undefined,
      queue: undefined,
      lent: false,
      needsSnapshot: false,
      earlier: undefined,
      check: undefined,
      error: undefined,
    };
    this.#entries.set(name, entry);
    if (this.#applier) this.#startQueue(entry);
    return entry;
  }

  /** A log that cannot be read is set aside whole; the database then needs a snapshot from a peer. */
  #openDamaged(name: string, error: KiteError): void {
    const { ltx } = databasePaths(this.#data.path, name);
    const files = readdirSync(ltx).filter((file) => file.endsWith('.ltx'));
    this.#lostAndFound.setAside(
      encodeDatabaseName(name),
      files.toSorted().map((file) => join(ltx, file)),
      error.message,
    );
    const entry = this.#openEntry(name, { repair: true });
    entry.needsSnapshot = true;
    entry.error = error;
  }

  #queues(): ApplyQueue[] {
    return [...this.#entries.values()].flatMap((entry) => entry.queue ?? []);
  }

  #startQueue(entry: Entry): void {
    const applier = this.#applier;
    if (!applier || entry.queue || entry.lent) return;
    // Dropped, and nothing of it is left to remove.
    if (!exists(entry) && !existsSync(databasePaths(this.#data.path, entry.name).database)) return;
    const { log, name } = entry;
    entry.queue = new ApplyQueue({
      applier,
      name,
      filesAfter: (at) =>
        log.filesAfter(at.position, FILES_PER_READ) ?? log.filesAfter(NO_POSITION, FILES_PER_READ),
      onBatch: (seconds) => this.#metrics.applySeconds.observe(seconds),
      onApplying: this.#onApplying,
      onApplied: (database) => {
        entry.applied = database;
        this.#tell({ kind: 'applied', name });
      },
      onTrouble: (error) => {
        if (entry.error?.code !== error?.code && error) {
          this.#events.add('apply-failed', error.describe(), { database: name, level: 'error' });
        }
        entry.error = error;
      },
      onRebuild: () => {
        this.#events.add(
          'rebuild',
          `${name} is at no position of its log: it is written anew from a snapshot`,
          {
            database: name,
            level: 'warn',
          },
        );
      },
      onDiverged: (error) => {
        entry.error = error;
        entry.needsSnapshot = true;
        this.#events.add(
          'resync',
          `${name} is not what its log says, what differs is fetched: ${error.message}`,
          {
            database: name,
            level: 'warn',
          },
        );
        this.#onResyncNeeded(name);
      },
    });
    entry.queue.kick();
  }

  #receiveInMemory(entry: Entry, meta: LogFileMeta): IncomingFile {
    const chunks: Buffer[] = [];
    return {
      write: (chunk) => void chunks.push(chunk),
      finish: async ({ durable }) => {
        const bytes = chunks.length === 1 && chunks[0] ? chunks[0] : Buffer.concat(chunks);
        verifyIncoming(bytes, meta);
        this.#received(entry, entry.log.append(bytes, meta));
        // Acknowledged as durable only after the fsync: somebody may count on it (trap 3).
        if (durable) await entry.log.sync();
      },
      abort: async () => undefined,
    };
  }

  /** With `replaces` it takes the place of what is here, else it follows the log. */
  #receiveOnDisk(entry: Entry, meta: LogFileMeta, replaces?: Partial<Replacement>): IncomingFile {
    const { log } = entry;
    const path = log.temporaryPath();
    const fd = openSync(path, 'wx');
    return {
      write: (chunk) => void writeSync(fd, chunk),
      finish: async ({ durable }) => {
        let isWhole = false;
        try {
          // It must be durable before what it replaces may go.
          if (replaces) await fsync(fd);
        } finally {
          closeSync(fd);
        }
        try {
          if (statSync(path).size !== meta.sizeBytes) {
            throw new KiteError('ERR_LTX_DAMAGED', `${entry.name}: a file of the stream has the wrong size`);
          }
          // Else its content is verified by the applier before the first byte is applied: here it would block the thread.
          if (replaces) await verifyFile(path, meta);
          isWhole = replaces !== undefined && (await this.#replacing.makeRoom(entry, meta, replaces.fork));
          this.#received(entry, isWhole ? await log.replaceWith(path, meta) : log.appendPrepared(path, meta));
        } catch (error) {
          rmSync(path, { force: true });
          throw error;
        }
        if (durable || isWhole) await log.sync();
      },
      abort: async () => {
        closeSync(fd);
        unlinkSync(path);
      },
    };
  }

  #received(entry: Entry, file: LogFile): void {
    entry.needsSnapshot = false;
    if (file.minTxid === 1n) this.#metrics.snapshots.inc({ direction: 'received' });
    this.#tell({ kind: 'transaction', name: entry.name, file });
    this.#startQueue(entry);
    entry.queue?.kick();
  }

  #tell(change: StoreChange): void {
    for (const listener of this.#listeners) listener(change);
  }
}

const EPOCHS_REMEMBERED = 16;

/**
 * The ends of the epochs before `epoch` in a log, oldest first. It goes back as far as that is certain: a file of several transactions may
 * be a snapshot or a difference, which holds those of other epochs too.
 */
function endsBefore(log: Log, epoch: bigint): EpochPosition[] {
  const ends: EpochPosition[] = [];
  try {
    for (let before = epoch; before > 0n && ends.length < EPOCHS_REMEMBERED;) {
      const end = log.endOfEpoch(before - 1n);
      const next = end && log.filesAfter(end, 1)?.[0];
      if (!end || next?.minTxid !== next?.maxTxid) break;
      ends.unshift(end);
      before = end.epoch;
    }
  } catch {
    // A damaged file is in the way: what is behind it is not known.
  }
  return ends;
}

/** How many transactions a log holds. */
const transactionsOf = ({ firstFile, lastFile }: Log): number =>
  firstFile && lastFile ? Number(lastFile.maxTxid - firstFile.minTxid) + 1 : 0;

const exists = ({ log }: Entry): boolean => (log.lastFile?.commitPages ?? 0) > 0;
