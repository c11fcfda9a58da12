import { createHash } from 'node:crypto';
import { closeSync, existsSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { KiteError, toKiteError } from '../errors.js';
import { MountState, type ControlBlock } from '../fuse/control-block.js';
import { CHECKSUM_FLAG } from '../ltx/format.js';
import { databasePaths, storedDatabaseNames } from '../store/data-directory.js';
import { Log } from '../store/log.js';
import { BackgroundCheck } from '../store/background-check.js';
import type { EpochPosition, LogContents } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import { fsyncDirectory } from '../util/files.js';
import type { CommitSignal } from './commit-signal.js';
import { DatabaseCapture } from './database-capture.js';
import { DatabaseCheck } from './database-check.js';
import type { DatabaseSlot } from './gate.js';
import { EINTR, ReplicaWaits } from './replica-waits.js';
import type { CaptureNotice, GateRequest, PromotedDatabase } from './messages.js';
import type { WrittenFile } from './ltx-file-writer.js';

export interface CaptureServiceOptions {
  readonly dataDir: string;
  readonly nodeId: string;
  readonly control: ControlBlock;
  readonly signal: CommitSignal;
  /** How much the full check behind a start may read; 0: it is not made. */
  readonly checkBytesPerSecond: number;
  /** Tells the main thread; `transfer` is the notice's own bytes. */
  readonly notify: (notice: CaptureNotice, transfer: ArrayBuffer[]) => void;
}

/** Beside a database while a primary may change it: after a crash every page is compared with the log. */
const OPEN_MARKER = 'open';
const EIO = 5;
const ENOSPC = 28;
const RETRY_MS = 1000;

/**
 * Capture of all databases, on the event loop of whatever thread runs it. While this node is no primary it
 * has no database open and lets everything pass that the mount asks.
 */
export class CaptureService {
  readonly #options: CaptureServiceOptions;
  readonly #control: ControlBlock;
  readonly #signal: CommitSignal;
  readonly #nodeId: bigint;
  readonly #names = new Map<DatabaseSlot, string>();
  readonly #databases = new Map<string, DatabaseCapture>();
  /** Databases out of service since the promotion, and why. */
  readonly #broken = new Map<string, KiteError>();
  /** Slots whose last capture failed: tried again every second, told once. */
  readonly #failing = new Set<DatabaseSlot>();
  readonly #check: BackgroundCheck;
  /** Databases that the check has found damaged. They are captured on, but the mount takes no more writes for them. */
  readonly #damaged = new Set<string>();
  readonly #replicaWaits: ReplicaWaits;
  /** Databases of a replica that its applications write. */
  readonly #halted = new Set<string>();
  #epoch: bigint | undefined;
  #stopped = false;

  constructor(options: CaptureServiceOptions) {
    this.#options = options;
    this.#control = options.control;
    this.#signal = options.signal;
    this.#check = new BackgroundCheck(options.checkBytesPerSecond);
    this.#replicaWaits = new ReplicaWaits((id, name, position) =>
      options.notify({ kind: 'awaits', id, name, position }, []),
    );
    // LTX names a node by 8 bytes; what they mean is only "the same node as before".
    const digest = createHash('sha256').update(options.nodeId).digest();
    this.#nodeId = digest.readBigUInt64BE() | 1n;
  }

  /** Serves commits that the mount publishes, each database in turn, until `stop`. */
  async run(): Promise<void> {
    const busy = new Set<DatabaseSlot>();
    while (!this.#stopped) {
      const ticket = this.#signal.ticket;
      for (let slot = this.#signal.take(); slot >= 0; slot = this.#signal.take()) busy.add(slot);
      for (const slot of busy) if (!this.#captureStep(slot)) busy.delete(slot);
      if (busy.size > 0) {
        await new Promise((resolve) => setImmediate(resolve)); // questions and fsyncs come in between
        continue;
      }
      const retry = this.#failing.size > 0;
      await this.#signal.wait(ticket, retry ? RETRY_MS : 60_000);
      if (retry) for (const slot of this.#failing) busy.add(slot);
    }
  }

  /** Answers a question of the mount: 0, or the errno to give to the application. */
  async answer(request: GateRequest): Promise<number> {
    if (request.op === 'slot') {
      this.#names.set(request.slot, request.name);
      return 0;
    }
    const name = this.#names.get(request.slot);
    if (name === undefined) return EIO;
    try {
      if (!this.#isCaptured(name)) return this.#answerIdle(request);
      if (request.op === 'replicas')
        return await this.#untilReplicasHave(name, request.slot, request.endBytes);
      const before = this.#databases.get(name)?.position.txid ?? 0n;
      const toSync = this.#perform(name, request);
      this.#release(request.slot, name);
      // Only the answer waits for the disk; other databases are served meanwhile.
      await toSync?.log.sync();
      // A rollback wrote nothing into the log, so there is nothing that replicas must have.
      const waits = request.op === 'journal' && request.commit.waits;
      return waits && this.#known(name).position.txid > before ? EINTR : 0;
    } catch (thrown) {
      const error = toKiteError(thrown);
      this.#notifyFailed(name, error);
      return error.code === 'ERR_STORE_FULL' ? ENOSPC : EIO;
    }
  }

  /** See CaptureGate.awaitReplicas. */
  async #untilReplicasHave(name: string, slot: DatabaseSlot, endBytes: number): Promise<number> {
    if (endBytes > 0) {
      while (this.#captureStep(slot)) await new Promise((resolve) => setImmediate(resolve));
      const captured = this.#databases.get(name)?.walEnd ?? 0;
      if (captured < endBytes) {
        // SQLite mends checksums of this transaction after its commit frame (trap 20): it is no commit yet, for nobody,
        // and the write that makes it one asks again.
        return this.#failing.has(slot) ? EIO : 0;
      }
    }
    const position = this.#databases.get(name)?.position;
    return position ? await this.#replicaWaits.wait(name, position) : EIO;
  }

  /** See Capture.replicasHave. */
  replicasHave(id: number, errno: number): void {
    this.#replicaWaits.end(id, errno);
  }

  /** See Capture.recover. */
  async recover(name: string): Promise<EpochPosition | undefined> {
    const { ltx, directory } = databasePaths(this.#options.dataDir, name);
    if (!existsSync(directory)) return undefined;
    const log = Log.open(ltx, { repair: true });
    const end = log.lastPosition;
    if (!end) return undefined;
    // What was committed then belongs to the epoch of then.
    const database = this.#make(name, log, end.epoch, () => {});
    try {
      database.load();
      await log.sync();
      return database.position;
    } finally {
      database.close();
    }
  }

  /** See Capture.promote. */
  promote(epoch: bigint, logs: ReadonlyMap<string, LogContents> = new Map()): PromotedDatabase[] {
    this.#closeAll();
    this.#halted.clear();
    this.#epoch = epoch;
    this.#broken.clear();
    const promoted: PromotedDatabase[] = [];
    for (const name of this.#storedNames()) {
      try {
        const start = (opened: DatabaseCapture, wasOpen: boolean): void => {
          const { current } = opened.load();
          opened.reconcile(wasOpen || !current);
        };
        const database = this.#open(name, epoch, start, logs.get(name));
        promoted.push({ name, position: database.position });
        this.#checkBehind(database);
      } catch (thrown) {
        const error = toKiteError(thrown);
        this.#broken.set(name, error);
        this.#notifyFailed(name, error);
        const { code, message } = error;
        const position = { txid: 0n, checksum: 0n, epoch: 0n };
        promoted.push({ name, position, error: { code, message } });
      }
    }
    return promoted;
  }

  /** See Capture.halt. */
  halt(name: string, epoch: bigint, at: EpochPosition): void {
    this.#open(name, epoch, (opened) => {
      // The WAL is the applier's, out of this log, though the log's last file may be one of ours.
      const { current } = opened.load({ walIsLogged: true });
      const { txid, checksum } = opened.position;
      const isThere = current && txid === at.txid && checksum === at.checksum;
      if (isThere && opened.differences([1]).length === 0) return;
      throw new KiteError('ERR_HALT_ENDED', `${name} is not where the primary is, at TXID ${at.txid}`);
    });
    this.#halted.add(name);
  }

  /** See Capture.unhalt. */
  async unhalt(name: string): Promise<EpochPosition | undefined> {
    const database = this.#databases.get(name);
    if (!database || !this.#halted.delete(name)) return undefined;
    this.#databases.delete(name);
    const slots = [...this.#names].filter(([, named]) => named === name).map(([slot]) => slot);
    try {
      for (const slot of slots) database.published(this.#signal.publishedEnd(slot));
      database.drain();
      await database.log.sync();
      database.flush();
      rmSync(this.#markerOf(name), { force: true });
      return database.position;
    } finally {
      database.close();
      for (const slot of slots) {
        this.#signal.release(slot);
        this.#failing.delete(slot);
      }
    }
  }

  /** Whether commits in this database are this node's own now. */
  #isCaptured(name: string): boolean {
    return this.#epoch !== undefined || this.#halted.has(name);
  }

  /** See Capture.demote. */
  async demote(): Promise<void> {
    for (const [slot, name] of this.#names) {
      this.#databases.get(name)?.published(this.#signal.publishedEnd(slot));
    }
    for (const [name, database] of this.#databases) {
      try {
        if (this.#control.epoch <= (this.#epoch ?? 0n)) database.drain();
        await database.log.sync();
        database.flush();
        // Of a damaged one the marker stays, so that every page is compared next time.
        if (!this.#damaged.has(name)) rmSync(this.#markerOf(name), { force: true });
      } catch (thrown) {
        // The marker stays, so that whoever is next compares every page.
        this.#notifyFailed(name, toKiteError(thrown));
      }
    }
    this.#closeAll();
    this.#halted.clear();
    this.#epoch = undefined;
  }

  async stop(): Promise<void> {
    await this.demote();
    this.#stopped = true;
    const slot = this.#signal.newSlot();
    if (slot >= 0) this.#signal.publish(slot, 0); // ends the wait of `run`
  }

  /** The full check of a database whose start has compared page 1 and the size only. */
  #checkBehind(database: DatabaseCapture): void {
    const { name } = database;
    const check = new DatabaseCheck({
      database,
      settle: () => this.#settle(name),
      onProgress: (progress) => this.#options.notify({ kind: 'checked', name, progress }, []),
      onDamaged: (pgnos) => {
        this.#damaged.add(name);
        this.#notifyFailed(name, damagedPages(name, pgnos));
      },
      nowMs: monotonicMs,
    });
    this.#check.add(name, (maxBytes) => check.step(maxBytes));
  }

  /** Captures all that the mount has published of a database; whether that could be done. */
  #settle(name: string): boolean {
    this.position(name);
    return ![...this.#failing].some((slot) => this.#names.get(slot) === name);
  }

  /** The capture of one database; throws ERR_CAPTURE_UNKNOWN when it is not captured here and now. */
  database(name: string): DatabaseCapture {
    const database = this.#databases.get(name);
    if (!database) throw new KiteError('ERR_CAPTURE_UNKNOWN', `${name} is not captured here`);
    return database;
  }

  /** Where a database is after everything that the mount has published; undefined when it is not captured here. */
  position(name: string): EpochPosition | undefined {
    for (const [slot, named] of this.#names) {
      if (named === name) while (this.#captureStep(slot));
    }
    return this.#databases.get(name)?.position;
  }

  /** One bounded piece of work for a slot; whether there may be more. */
  #captureStep(slot: DatabaseSlot): boolean {
    const name = this.#names.get(slot);
    // The name of a slot comes by message, which may be behind the first commit.
    if (name === undefined) return this.#epoch !== undefined || this.#halted.size > 0;
    if (!this.#isCaptured(name) || this.#broken.has(name)) return false;
    try {
      const step = this.#known(name).captureWal(this.#signal.claim(slot)).next();
      if (step.done !== true) return true;
      this.#failing.delete(slot);
      this.#release(slot, name);
      return step.value;
    } catch (thrown) {
      this.#release(slot, name);
      if (!this.#failing.has(slot)) this.#notifyFailed(name, toKiteError(thrown));
      this.#failing.add(slot);
      return false;
    }
  }

  /** Does what the mount waits for; returns the database whose log must be durable before the answer. */
  #perform(name: string, request: GateRequest): DatabaseCapture | undefined {
    const broken = this.#broken.get(name);
    if (broken && request.op !== 'drop') throw broken; // whatever is wrong with it, it may be removed
    this.#broken.delete(name);
    const database = this.#known(name);
    database.published(request.op === 'wal' ? request.publishedEnd : this.#signal.publishedEnd(request.slot));
    switch (request.op) {
      case 'wal':
        database.beforeWalChange(request.change);
        return request.change.durable ? database : undefined;
      case 'journal':
        database.beforeJournalCommit(request.commit);
        return request.commit.durable ? database : undefined;
      case 'adopt':
        database.adopt();
        return database;
      case 'drop':
        database.drop();
        return this.#forget(request.slot, database);
      case 'rename': {
        // What moves is the file `database`; the new name goes on with its own history, if it has one.
        database.drain();
        const { database: path } = databasePaths(this.#options.dataDir, name);
        if (database.commitPages > 0) this.#known(request.newName).adopt(path);
        database.drop();
        return this.#forget(request.slot, database);
      }
      case 'restores':
        if (database.restoresCommitted(request.offsetBytes, request.bytes)) return undefined;
        throw new KiteError('ERR_CAPTURE_FENCED', `a write to ${name} would change what is committed`);
      case 'replicas':
      case 'slot':
        break;
    }
    return undefined;
  }

  /**
   * Nothing is captured, so no application may change anything now. While the mount is closed its only user is
   * the applier, which lets SQLite recover.
   */
  #answerIdle(request: GateRequest): number {
    if (this.#control.state === MountState.closed) return 0;
    const commits = request.op === 'journal' && request.commit.dirtyPages.length > 0;
    const harmless = request.op === 'wal' || request.op === 'journal';
    return commits || !harmless ? EIO : 0;
  }

  /** Tells the mount what it may overwrite without asking. */
  #release(slot: DatabaseSlot, name: string): void {
    this.#signal.release(slot, this.#databases.get(name)?.walEnd);
  }

  #forget(slot: DatabaseSlot, database: DatabaseCapture): DatabaseCapture {
    database.close();
    this.#check.remove(database.name);
    this.#damaged.delete(database.name);
    this.#databases.delete(database.name);
    this.#names.delete(slot);
    rmSync(this.#markerOf(database.name), { force: true });
    return database;
  }

  #known(name: string): DatabaseCapture {
    const known = this.#databases.get(name);
    return known ?? this.#open(name, this.#epoch as bigint, (database) => database.load());
  }

  #open(
    name: string,
    epoch: bigint,
    start: (database: DatabaseCapture, wasOpen: boolean) => void,
    contents?: LogContents,
  ): DatabaseCapture {
    const { ltx, directory } = databasePaths(this.#options.dataDir, name);
    // Repaired when the node started; whatever came since this process has written whole. Verifying it all again would keep
    // the writers of a hand-off waiting.
    const log = contents ? Log.openAs(ltx, contents) : Log.open(ltx, { repair: false });
    const database = this.#make(name, log, epoch, () => {
      if (this.#control.epoch <= epoch) return; // it is raised by whoever learns of another primary
      throw new KiteError('ERR_CAPTURE_FENCED', `${name}: epoch ${epoch} is over`);
    });
    const marker = this.#markerOf(name);
    const wasOpen = existsSync(marker);
    try {
      start(database, wasOpen);
    } catch (error) {
      database.close();
      throw error;
    }
    if (!wasOpen) {
      closeSync(openSync(marker, 'w'));
      fsyncDirectory(directory); // a power cut may not forget that the checksums are out of date
    }
    this.#databases.set(name, database);
    return database;
  }

  #make(name: string, log: Log, epoch: bigint, mayAppend: () => void): DatabaseCapture {
    return new DatabaseCapture({
      name,
      paths: databasePaths(this.#options.dataDir, name),
      log,
      nodeId: this.#nodeId,
      epoch,
      mayAppend,
      onFile: (written) => this.#notifyFile(name, written),
      onCompensated: () => this.#options.notify({ kind: 'compensated', name }, []),
      nowMs: Date.now,
    });
  }

  #notifyFile(name: string, { file, bytes }: WrittenFile): void {
    const { notify } = this.#options;
    const isNew = file.minTxid === 1n || file.preApplyChecksum === CHECKSUM_FLAG;
    if (isNew) notify({ kind: 'created', name }, []);
    if (bytes) notify({ kind: 'transaction', name, file, bytes }, [bytes.buffer]);
    else notify({ kind: 'transaction', name, file }, []);
    if (file.commitPages === 0) notify({ kind: 'dropped', name }, []);
  }

  #notifyFailed(name: string, { code, message }: KiteError): void {
    this.#options.notify({ kind: 'failed', name, code, message }, []);
  }

  #markerOf(name: string): string {
    return join(databasePaths(this.#options.dataDir, name).directory, OPEN_MARKER);
  }

  #storedNames(): string[] {
    const { dataDir } = this.#options;
    return existsSync(join(dataDir, 'dbs')) ? storedDatabaseNames(dataDir) : [];
  }

  #closeAll(): void {
    this.#check.clear();
    this.#damaged.clear();
    for (const database of this.#databases.values()) database.close();
    this.#databases.clear();
    for (const slot of this.#names.keys()) this.#signal.release(slot);
    this.#failing.clear();
  }
}

function damagedPages(name: string, pgnos: readonly number[]): KiteError {
  const some = pgnos.slice(0, 5).join(', ') + (pgnos.length > 5 ? '…' : '');
  const which = pgnos.length === 1 ? `page ${some} is` : `pages ${some} are`;
  return new KiteError('ERR_CAPTURE_DAMAGED', `database ${name}: ${which} not as committed`);
}
