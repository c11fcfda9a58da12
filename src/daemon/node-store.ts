import {
  closeSync,
  createReadStream,
  existsSync,
  openSync,
  readdirSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import type { Applier } from '../applier/applier.js';
import type { AppliedDatabase } from '../applier/messages.js';
import type { Capture } from '../capture/capture.js';
import { buildSnapshot } from '../capture/first-copy.js';
import { KiteError } from '../errors.js';
import { NO_POSITION } from '../ltx/position.js';
import type { Logger } from '../observability/log.js';
import type { Metrics } from '../observability/metrics.js';
import type { IncomingFile, ReplicationStore, SnapshotSource, StoreChange } from '../replication/store.js';
import type { CheckProgress } from '../store/background-check.js';
import { type DataDirectory, databasePaths } from '../store/data-directory.js';
import { encodeDatabaseName } from '../store/database-name.js';
import { Log, type LogFileMeta } from '../store/log.js';
import { LostAndFound } from '../store/lost-and-found.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import { ApplyQueue } from './apply-queue.js';
import type { EventLog } from './event-log.js';
import { RecentFiles } from './recent-files.js';
import { verifyIncoming } from './verify-incoming.js';

const RECENT_BYTES = 32 << 20;
/** Files up to this size are received in memory and sent from memory. */
const SMALL_FILE_BYTES = 256 << 10;

/** One database as the main thread sees it. */
interface Entry {
  readonly name: string;
  readonly log: Log;
  applied: AppliedDatabase | undefined;
  queue: ApplyQueue | undefined;
  /** What this node has is of no use; replication is told that nothing is here, so that a snapshot comes. */
  needsSnapshot: boolean;
  /** How far the full check behind the last start is. */
  check: CheckProgress | undefined;
  /** Why this database does not serve. */
  error: KiteError | undefined;
}

/**
 * How many files of the log are named at a time: reading 100 000 headers at once holds the main thread for
 * seconds. Who asks comes again until there are none.
 */
const FILES_PER_READ = 1000;

export interface NodeStoreOptions {
  readonly data: DataDirectory;
  readonly capture: Capture;
  readonly events: EventLog;
  readonly metrics: Metrics;
  readonly logger: Logger;
  readonly isPrimary: () => boolean;
  /** A database needs a snapshot: the stream has to say hello again. */
  readonly onResyncNeeded: () => void;
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
  readonly #onResyncNeeded: () => void;
  readonly #lostAndFound: LostAndFound;
  readonly #entries = new Map<string, Entry>();
  readonly #listeners = new Set<(change: StoreChange) => void>();
  readonly #recent = new RecentFiles(RECENT_BYTES);
  #applier: Applier | undefined;

  constructor(options: NodeStoreOptions) {
    this.#data = options.data;
    this.#capture = options.capture;
    this.#events = options.events;
    this.#metrics = options.metrics;
    this.#logger = options.logger;
    this.#isPrimary = options.isPrimary;
    this.#onResyncNeeded = options.onResyncNeeded;
    this.#lostAndFound = new LostAndFound(options.data.path);
    this.#capture.on('transaction', ({ name, file, bytes }) => {
      this.#entry(name).log.noted(file);
      if (bytes) this.#recent.add(file.path, bytes);
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

  appliedPosition(name: string): EpochPosition | undefined {
    if (this.#isPrimary()) return this.position(name);
    const applied = this.#entries.get(name)?.applied?.position;
    return applied && applied.txid > 0n ? applied : undefined;
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
    return this.#entries.get(name)?.log.filesAfter(position, FILES_PER_READ);
  }

  readFile(file: LogFile): Promise<Buffer> | AsyncIterable<Buffer> {
    const bytes = this.#recent.get(file.path);
    return bytes
      ? Promise.resolve(bytes)
      : (createReadStream(file.path, { highWaterMark: 256 << 10 }) as AsyncIterable<Buffer>);
  }

  hold(name: string, afterTxid: bigint): { move(afterTxid: bigint): void; release(): void } {
    return this.#entry(name).log.hold(afterTxid);
  }

  async snapshot(name: string): Promise<SnapshotSource> {
    const { log } = this.#entry(name);
    const { ltx } = databasePaths(this.#data.path, name);
    const source = await buildSnapshot(this.#capture, name, log, ltx);
    const { snapshots } = this.#metrics;
    return {
      file: source.file,
      async *chunks() {
        yield* source.chunks();
        snapshots.inc({ direction: 'sent' });
      },
    };
  }

  // --- replica

  async receive(name: string, meta: LogFileMeta): Promise<IncomingFile> {
    const entry = this.#entry(name);
    if (meta.minTxid === 1n && entry.log.lastPosition) this.#makeRoomForSnapshot(entry, meta);
    if (meta.sizeBytes <= SMALL_FILE_BYTES) return this.#receiveInMemory(entry, meta);
    return this.#receiveOnDisk(entry, meta);
  }

  /** The primary has no such database: what is here was not dropped by an application, so it is set aside. */
  async drop(name: string, epoch: bigint): Promise<void> {
    const entry = this.#entries.get(name);
    if (!entry || !this.#applier || entry.log.lastFile?.commitPages === 0) return;
    await entry.queue?.stop();
    const transactions = transactionsOf(entry.log);
    const folder = entry.log.setAsideAfter(
      0n,
      this.#lostAndFound,
      `epoch ${epoch} does not have this database`,
    );
    await this.#applier.drop(name);
    this.#entries.delete(name);
    this.#lost(name, transactions, `${name} is not in the cluster any more; its log was moved to ${folder}`);
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
    this.#recent.clear();
    this.openLogs({ repair: false });
  }

  /** Retention: removes log files whose transactions are all below `txid`, applied and not on their way to a replica. */
  removeBefore(name: string, txid: bigint): void {
    this.#entries.get(name)?.log.removeBefore(txid);
  }

  async close(): Promise<void> {
    for (const entry of this.#entries.values()) await entry.log.close();
  }

  // --- inside

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
      needsSnapshot: false,
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
    if (!applier || entry.queue) return;
    // Dropped, and nothing of it is left to remove.
    if (!exists(entry) && !existsSync(databasePaths(this.#data.path, entry.name).database)) return;
    const { log, name } = entry;
    entry.queue = new ApplyQueue({
      applier,
      name,
      filesAfter: (at) =>
        log.filesAfter(at.position, FILES_PER_READ) ?? log.filesAfter(NO_POSITION, FILES_PER_READ),
      onBatch: (seconds) => this.#metrics.applySeconds.observe(seconds),
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
        this.#events.add('resync', `${name} needs a snapshot: ${error.message}`, {
          database: name,
          level: 'warn',
        });
        this.#onResyncNeeded();
      },
    });
    entry.queue.kick();
  }

  /**
   * A snapshot is about to replace what this node has. Its history is a prefix of the primary's when both end in
   * the same epoch (one writer) and ours is not longer; then nothing is lost. Otherwise the files are kept.
   */
  #makeRoomForSnapshot(entry: Entry, meta: LogFileMeta): void {
    const last = entry.log.lastPosition;
    if (!last) return;
    const isPrefix = last.epoch === meta.epoch && last.txid < meta.maxTxid;
    if (isPrefix && !entry.needsSnapshot) return;
    const reason = `replaced by a snapshot of epoch ${meta.epoch} at TXID ${meta.maxTxid}`;
    const transactions = transactionsOf(entry.log);
    const folder = entry.log.setAsideAfter(0n, this.#lostAndFound, reason);
    if (folder && last.epoch !== meta.epoch) {
      const message = `${entry.name}: transactions that the primary may not have were moved to ${folder}`;
      this.#lost(entry.name, transactions, message);
    }
  }

  #lost(name: string, transactions: number, message: string): void {
    this.#metrics.lostTransactions.inc({ db: name }, transactions);
    this.#events.add('lost-transactions', message, { database: name, level: 'warn' });
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

  #receiveOnDisk(entry: Entry, meta: LogFileMeta): IncomingFile {
    const path = entry.log.temporaryPath();
    const fd = openSync(path, 'wx');
    return {
      write: (chunk) => void writeSync(fd, chunk),
      finish: async ({ durable }) => {
        closeSync(fd);
        try {
          if (statSync(path).size !== meta.sizeBytes) {
            throw new KiteError('ERR_LTX_DAMAGED', `${entry.name}: a file of the stream has the wrong size`);
          }
          // Its content is verified by the applier before the first byte is applied: here it would block the thread.
          this.#received(entry, entry.log.appendPrepared(path, meta));
        } catch (error) {
          unlinkSync(path);
          throw error;
        }
        if (durable) await entry.log.sync();
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

/** How many transactions a log holds. */
const transactionsOf = ({ firstFile, lastFile }: Log): number =>
  firstFile && lastFile ? Number(lastFile.maxTxid - firstFile.minTxid) + 1 : 0;

const exists = ({ log }: Entry): boolean => (log.lastFile?.commitPages ?? 0) > 0;
