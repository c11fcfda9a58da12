import { closeSync, openSync, readSync, statSync } from 'node:fs';

import { KiteError } from '../errors.js';
import { joinHalves, pageChecksumInto } from '../ltx/checksum.js';
import { CHECKSUM_FLAG, lockPgno } from '../ltx/format.js';
import { WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import { isHotJournal } from '../sqlite/journal.js';
import type { Log } from '../store/log.js';
import type { EpochPosition } from '../store/types.js';
import { isErrno } from '../util/files.js';
import { DatabasePages } from './database-pages.js';
import type { JournalCommit } from './gate.js';
import type { CommittedPages, DifferingPages, WalChange } from './messages.js';
import { readLtxHeader } from './recovered-checksums.js';
import { TransactionLog, type Change, type TransactionLogOptions } from './transaction-log.js';
import { finish, WalReader, type ScannedCommits } from './wal-reader.js';

export interface DatabaseCaptureOptions extends TransactionLogOptions {
  readonly name: string;
  /** A dead writer's commit, which nobody had seen, was taken back (trap 1). */
  readonly onCompensated: () => void;
}

/** A page that is not as it was committed: what it is, and what it should be. */
export interface PageDifference {
  readonly pgno: number;
  readonly is: bigint;
  readonly committed: bigint;
}

/** Pages between two yields of a long job. */
const PAGES_PER_STEP = 256;

/**
 * Captures the transactions of one database directory while this node is primary (DESIGN §4). All methods
 * are synchronous and are called from one thread; each throws KiteError and then has changed nothing in
 * the log. Nothing here knows of a mount.
 */
export class DatabaseCapture {
  readonly name: string;
  readonly #options: DatabaseCaptureOptions;
  readonly #log: TransactionLog;
  readonly #wal: WalReader;
  #pages: DatabasePages;
  #running: Generator<void, boolean> | undefined;
  /** Nothing from here on counts until the mount has published a commit beyond it: it is being destroyed. */
  #walLimit = Infinity;
  /** Pages of overwritten commits that the log does not restore yet. */
  readonly #owed = new Set<number>();

  constructor(options: DatabaseCaptureOptions) {
    this.name = options.name;
    this.#options = options;
    this.#log = new TransactionLog(options);
    this.#wal = new WalReader(options.paths.wal);
    this.#pages = new DatabasePages(options.paths.database);
  }

  get position(): EpochPosition {
    return this.#log.position;
  }

  /** Up to where the WAL was captured, bytes. */
  get walEnd(): number {
    return this.#wal.place?.offset ?? 0;
  }

  /** Size of the database at `position`, pages. */
  get commitPages(): number {
    return this.#log.commitPages;
  }

  /** Page size at `position`, bytes; 0 when there is none. */
  get pageSize(): number {
    return this.#log.pageSize;
  }

  get log(): Log {
    return this.#log.log;
  }

  /**
   * Loads the log's end and adds to the log what committed transactions in the WAL it lacks. SQLite must not
   * have touched the database since the crash (trap 7). `walIsLogged`: the log lacks nothing of what the WAL holds now.
   * Returns whether the checksums were current.
   */
  load({ walIsLogged = false } = {}): { current: boolean } {
    const loaded = this.#log.load();
    this.#passCapturedFrames(walIsLogged);
    finish(this.#captureUpTo(Infinity));
    return loaded;
  }

  /**
   * Compares `database` and its WAL with the log, after SQLite has recovered it, and emits one transaction with
   * the difference. `all` checks every page; otherwise page 1 and the size, and every page when those changed.
   * Throws ERR_CAPTURE_DAMAGED when pages changed that no transaction of SQLite can have changed.
   */
  reconcile(all: boolean): void {
    this.#finishRunning();
    finish(this.#captureUpTo(Infinity));
    this.#pages.open();
    const pageSize = this.#currentPageSize();
    if (pageSize === 0) return this.#reconcileEmpty();
    const commitPages = this.#wal.commitPages || this.#pages.pageCount(pageSize);
    let differing: number[] = [];
    if (this.#log.knows(pageSize) && this.commitPages > 0) {
      differing = this.#differingAfterStop(all, commitPages);
      // SQLite changes page 1 with every rollback-mode transaction, and the WAL holds every page of the others.
      const explained = differing[0] === 1 || commitPages !== this.commitPages;
      const free = explained ? undefined : this.#freeLeaves(pageSize);
      if (free && differing.some((pgno) => !this.#wal.map.has(pgno) && !free.has(pgno))) {
        const pages = differing.slice(0, 5).join(', ');
        throw this.#damaged(`${differing.length} of its pages are not as they were committed: ${pages}…`);
      }
    }
    finish(this.#log.append(this.#changeOfReaders(differing, commitPages, pageSize)));
  }

  /**
   * Captures about 1 MiB of what is committed below `endBytes` of the WAL. Call `next` until it is done: true
   * means there may be more. A long transaction yields in between.
   */
  captureWal(endBytes: number): Generator<void, boolean> {
    this.published(endBytes);
    this.#running ??= this.#captureOnce(Math.min(endBytes, this.#walLimit));
    return this.#running;
  }

  /**
   * The mount has published commits up to `endBytes` of the WAL. Said before a question is answered too: a whole
   * session may have written a WAL and be about to remove it before `captureWal` was called for it once.
   */
  published(endBytes: number): void {
    if (endBytes > this.#walLimit) this.#walLimit = Infinity;
  }

  /** See CaptureGate.beforeWalChange. What must be durable is so after `log.sync()`. */
  beforeWalChange(change: WalChange): void {
    this.#finishRunning();
    const mid = change.kind === 'overwrite' || (change.kind === 'truncate' && change.fromBytes > 0);
    if (mid) {
      // A commit in the destroyed part that is not in the log yet never enters it: nobody has seen it.
      this.#compensateOverwrite(change.fromBytes);
      this.#walLimit = change.fromBytes;
      return;
    }
    finish(this.#captureUpTo(Infinity));
    // Trap 1: by now SQLite has copied every live frame into `database`. Where that differs from what was
    // captured, the writer of the last commit died before its commit could be seen by anyone.
    const pgnos = change.kind === 'header' ? this.#wal.lastPgnos : [...this.#wal.map.keys()];
    this.#pages.open();
    this.#compensate(pgnos, (pgno) => this.#pages.read(pgno, this.#log.pageSize), 0);
    this.#wal.forgetFrames();
    this.#walLimit = 0;
    if (this.#log.flushDue) this.flush();
  }

  /** See CaptureGate.beforeJournalCommit and trap 9. Emits nothing for a rollback. */
  beforeJournalCommit(commit: JournalCommit): void {
    this.#finishRunning();
    this.#pages.open();
    const pageSize = this.#databasePageSize();
    if (pageSize === 0) {
      // A new database whose first transaction was rolled back is empty again; nothing else empties one.
      if (this.commitPages > 0) throw this.#damaged('it was truncated to nothing');
      return;
    }
    const leastPages = Math.min(this.commitPages, Math.ceil(commit.oldSizeBytes / pageSize));
    finish(
      this.#log.append({
        pgnos: commit.dirtyPages,
        read: (pgno) => this.#pages.read(pgno, pageSize),
        commitPages: this.#pages.pageCount(pageSize),
        leastPages,
        pageSize,
        transactions: 1,
        dropUnchanged: true,
        wal: this.#wal.place,
      }),
    );
    if (this.#log.flushDue) this.flush();
  }

  /** Takes `database`, or the file at `path` that will take its place, as it is: what differs from the log. */
  adopt(path: string = this.#options.paths.database): void {
    this.#finishRunning();
    finish(this.#captureUpTo(Infinity));
    const own = this.#pages;
    this.#pages = new DatabasePages(path);
    try {
      const pageSize = this.#databasePageSize();
      if (pageSize === 0) throw this.#damaged('it is empty');
      const commitPages = this.#pages.pageCount(pageSize);
      const pgnos = this.#log.knows(pageSize) ? finish(this.#differing(commitPages)) : [];
      finish(this.#log.append(this.#changeOfReaders(pgnos, commitPages, pageSize)));
    } finally {
      this.#pages.close();
      this.#pages = own;
    }
  }

  /** Adds the deletion to the log, after everything that is committed. */
  drop(): void {
    this.#finishRunning();
    finish(this.#captureUpTo(Infinity));
    this.#emitDeletion();
    this.#wal.forgetFrames();
  }

  /** Whether bytes written at an offset of `database` are whole pages as they are committed (trap 14). */
  restoresCommitted(offsetBytes: number, bytes: Uint8Array): boolean {
    const pageSize = this.#log.pageSize;
    if (pageSize === 0 || !this.#log.knows(pageSize)) return false;
    if (offsetBytes % pageSize !== 0 || bytes.length % pageSize !== 0) return false;
    const sum = new Uint32Array(2);
    for (let at = 0; at < bytes.length; at += pageSize) {
      const pgno = (offsetBytes + at) / pageSize + 1;
      pageChecksumInto(pgno, bytes.subarray(at, at + pageSize), sum, 0);
      if (!this.#log.isCommitted(pgno, sum)) return false;
    }
    return true;
  }

  /**
   * Of some pages those that are, as readers see them now, not as they were committed. `database` may hold what is not
   * committed yet, or not captured: see DatabaseCheck.
   */
  differences(pgnos: Iterable<number>): PageDifference[] {
    const { pageSize, commitPages } = this;
    if (!this.#log.knows(pageSize)) return [];
    this.#pages.open();
    const differing: PageDifference[] = [];
    const lock = lockPgno(pageSize);
    const sum = new Uint32Array(2);
    for (const pgno of pgnos) {
      if (pgno > commitPages || pgno === lock) continue;
      pageChecksumInto(pgno, this.#read(pgno, pageSize), sum, 0);
      if (this.#log.isCommitted(pgno, sum)) continue;
      const is = joinHalves(sum[0] as number, sum[1] as number);
      differing.push({ pgno, is, committed: this.#log.checksumOf(pgno) });
    }
    return differing;
  }

  /** Whether a rollback-mode transaction runs, or waits to be rolled back. */
  journalIsLive(): boolean {
    const { journal, database } = this.#options.paths;
    const start = readStart(journal, 1);
    return isHotJournal(start, statSync(database, { throwIfNoEntry: false })?.size ?? 0);
  }

  /**
   * Adds to the log those of some differing pages that are free and hold nothing (a transaction that was rolled back while
   * nobody captured leaves its bytes there), so that replicas have the same bytes; returns the others.
   */
  logFreePages(pgnos: readonly number[]): number[] {
    if (pgnos.length === 0) return [];
    this.#finishRunning();
    const free = this.#freeLeaves(this.pageSize);
    const unused = pgnos.filter((pgno) => free.has(pgno));
    finish(this.#log.append(this.#changeOfReaders(unused, this.commitPages, this.pageSize)));
    return pgnos.filter((pgno) => !free.has(pgno));
  }

  /** Committed content of some pages; the lock page and pages past the end are left out. */
  readCommitted(pgnos: readonly number[]): CommittedPages {
    this.#finishRunning();
    this.#pages.open();
    const { position, commitPages } = this;
    const pageSize = this.#log.pageSize;
    const pages: { pgno: number; data: Uint8Array }[] = [];
    const retry: number[] = [];
    const sum = new Uint32Array(2);
    for (const pgno of pgnos) {
      if (pgno > commitPages || pgno === lockPgno(pageSize)) continue;
      const data = this.#read(pgno, pageSize);
      pageChecksumInto(pgno, data, sum, 0);
      // Trap 8: in rollback mode `database` holds uncommitted pages while a transaction runs.
      if (this.#log.isCommitted(pgno, sum)) pages.push({ pgno, data: Uint8Array.from(data) });
      else retry.push(pgno);
    }
    return { position, pageSize, commitPages, pages, retry };
  }

  /** See Capture.differingPages. */
  differing(firstPgno: number, theirs: Uint32Array): DifferingPages {
    this.#finishRunning();
    return {
      pageSize: this.#log.pageSize,
      commitPages: this.commitPages,
      pgnos: this.#log.differing(firstPgno, theirs),
    };
  }

  /** Writes the page checksums with their position, durably: who reads them next need not compute them. */
  flush(): void {
    this.#finishRunning();
    if (this.position.txid === 0n) return;
    this.#pages.open();
    this.#log.flush(this.#read(1, this.#log.pageSize));
  }

  /** Captures what is committed. */
  drain(): void {
    this.#finishRunning();
    finish(this.#captureUpTo(Infinity));
  }

  /** Lets go of all files. */
  close(): void {
    this.#running?.return(false);
    this.#running = undefined;
    this.#wal.close();
    this.#pages.close();
  }

  /** Goes past the frames that the log's last file says it has, without emitting them. */
  #passCapturedFrames(walIsLogged: boolean): void {
    const last = this.log.lastFile;
    if (!last) return;
    const { nodeId, walOffset, walSizeBytes, walSalt1, walSalt2 } = readLtxHeader(last);
    // Another node's file means another WAL: ours was written by the applier, out of that same log.
    const foreign = walIsLogged || nodeId !== this.#options.nodeId;
    const end = foreign ? Infinity : walOffset + walSizeBytes;
    finish(this.#acceptWal(end, (salt1, salt2) => foreign || (salt1 === walSalt1 && salt2 === walSalt2)));
  }

  *#acceptWal(endBytes: number, isKnown: (salt1: number, salt2: number) => boolean): Generator<void, void> {
    for (;;) {
      const found = yield* this.#wal.scan(endBytes);
      const place = this.#wal.place;
      if (!found || !place || !isKnown(place.salt1, place.salt2)) return;
      this.#wal.accept(found);
    }
  }

  #finishRunning(): void {
    if (!this.#running) return;
    const running = this.#running;
    this.#running = undefined;
    finish(running);
  }

  *#captureOnce(endBytes: number): Generator<void, boolean> {
    try {
      const found = yield* this.#wal.scan(endBytes);
      if (found) yield* this.#emitCommits(found);
      return found !== undefined;
    } finally {
      this.#running = undefined;
    }
  }

  *#captureUpTo(endBytes: number): Generator<void, void> {
    const end = Math.min(endBytes, this.#walLimit, this.#wal.sizeBytes());
    for (;;) {
      const found = yield* this.#wal.scan(end);
      if (!found) return;
      yield* this.#emitCommits(found);
    }
  }

  *#emitCommits(found: ScannedCommits): Generator<void, void> {
    const before = this.#wal.place;
    if (!before) return;
    const { pageSize } = this.#wal;
    this.#payOwed();
    this.#pages.open();
    yield* this.#log.append({
      pgnos: found.frames.keys(),
      read: (pgno) => {
        const frame = found.frames.get(pgno);
        const page = frame === undefined ? this.#read(pgno, pageSize) : this.#wal.readFrame(frame);
        if (!page) throw this.#damaged(`frame ${frame} of the WAL is gone`);
        return page;
      },
      commitPages: found.commitPages,
      leastPages: found.leastPages,
      pageSize,
      transactions: found.commits,
      dropUnchanged: false,
      wal: { ...before, sizeBytes: this.#wal.offsetAfter(found.end) - before.offset },
    });
    this.#wal.accept(found);
  }

  /** Captured frames from `fromBytes` on are about to go: readers never saw the commits they belong to. */
  #compensateOverwrite(fromBytes: number): void {
    const place = this.#wal.place;
    if (place && fromBytes < place.offset) {
      for (const pgno of this.#wal.rewind(fromBytes)) this.#owed.add(pgno);
    }
    this.#payOwed();
  }

  /** Apart from the rewinding, which cannot be repeated when the log cannot be written (a full disk). */
  #payOwed(): void {
    if (this.#owed.size === 0) return;
    this.#pages.open();
    this.#compensate([...this.#owed], (pgno) => this.#read(pgno, this.#log.pageSize), this.#wal.commitPages);
    this.#owed.clear();
  }

  /** Restores what readers see; `walPages` is the size that the rest of the WAL says, 0 when `database` counts. */
  #compensate(pgnos: readonly number[], read: (pgno: number) => Uint8Array, walPages: number): void {
    if (pgnos.length === 0) return;
    const emitted = finish(
      this.#log.append({
        pgnos,
        read,
        commitPages: walPages || this.#pages.pageCount(this.#log.pageSize),
        pageSize: this.#log.pageSize,
        transactions: 1,
        dropUnchanged: true,
        wal: this.#wal.place,
      }),
    );
    if (emitted) this.#options.onCompensated();
  }

  /**
   * Free pages that hold nothing: what a rolled-back transaction wrote there stays, because SQLite does not
   * journal them (sqlite.org/fileformat2.html §1.5).
   */
  #freeLeaves(pageSize: number): Set<number> {
    const leaves = new Set<number>();
    const trunks = new Set<number>();
    let trunk = this.#read(1, pageSize).readUInt32BE(32);
    while (trunk > 0 && !trunks.has(trunk)) {
      trunks.add(trunk);
      const page = this.#read(trunk, pageSize);
      const count = Math.min(page.readUInt32BE(4), pageSize / 4 - 2);
      for (let i = 0; i < count; i++) leaves.add(page.readUInt32BE(8 + i * 4));
      trunk = page.readUInt32BE(0);
    }
    return leaves;
  }

  /** After a start: there is no page. */
  #reconcileEmpty(): void {
    const last = this.log.lastFile;
    if (!last || last.commitPages === 0) return;
    // Its first transaction was in the log, but not committed yet: SQLite has rolled it back to nothing.
    const isFirst = last.maxTxid === 1n || last.preApplyChecksum === CHECKSUM_FLAG;
    if (!isFirst) throw this.#damaged('its file is gone or empty');
    this.#emitDeletion();
  }

  #emitDeletion(): void {
    if (this.commitPages === 0) return;
    finish(this.#log.append(this.#changeOfReaders([], 0, this.#log.pageSize)));
  }

  #changeOfReaders(pgnos: Iterable<number>, commitPages: number, pageSize: number): Change {
    return {
      pgnos,
      read: (pgno) => this.#read(pgno, pageSize),
      commitPages,
      pageSize,
      transactions: 1,
      dropUnchanged: true,
      wal: this.#wal.place,
    };
  }

  /** Pages that changed while nobody captured. */
  #differingAfterStop(all: boolean, commitPages: number): number[] {
    if (all || commitPages !== this.commitPages) return finish(this.#differing(commitPages));
    if (finish(this.#differing(1)).length === 0) return [];
    // A replica's copy is in WAL mode whatever the primary's was (DESIGN §6): that alone changes page 1 only.
    const versions = this.#log.flushedVersions;
    const page = Buffer.from(this.#read(1, this.#log.pageSize));
    if (versions) page.set([versions.write, versions.read], WRITE_VERSION_OFFSET);
    const sum = new Uint32Array(2);
    pageChecksumInto(1, page, sum, 0);
    return this.#log.isCommitted(1, sum) ? [1] : finish(this.#differing(commitPages));
  }

  /** Pages up to `lastPgno`, as readers see them, whose checksums are not those of the log's end. */
  *#differing(lastPgno: number): Generator<void, number[]> {
    const differing: number[] = [];
    const pageSize = this.#log.pageSize;
    const lock = lockPgno(pageSize);
    const sum = new Uint32Array(2);
    for (let pgno = 1; pgno <= lastPgno; pgno++) {
      if (pgno % PAGES_PER_STEP === 0) yield;
      if (pgno === lock) continue;
      pageChecksumInto(pgno, this.#read(pgno, pageSize), sum, 0);
      if (!this.#log.isCommitted(pgno, sum)) differing.push(pgno);
    }
    return differing;
  }

  /** A page as readers see it: from the WAL, else from `database`. Valid until the next call. */
  #read(pgno: number, pageSize: number): Buffer {
    const frame = this.#wal.map.get(pgno);
    const page = frame === undefined ? undefined : this.#wal.readFrame(frame);
    return page ?? this.#pages.read(pgno, pageSize);
  }

  #currentPageSize(): number {
    return (this.#wal.commitPages > 0 && this.#wal.pageSize) || this.#databasePageSize();
  }

  /** Page size that `database` says; 0 when it is empty or absent. Throws when it is no SQLite database. */
  #databasePageSize(): number {
    if (this.#pages.sizeBytes === 0) return 0;
    const header = this.#pages.header();
    if (!header) throw this.#damaged('the file is no SQLite database');
    return header.pageSize;
  }

  #damaged(what: string): KiteError {
    return new KiteError('ERR_CAPTURE_DAMAGED', `database ${this.name}: ${what}`);
  }
}

/** The first bytes of a file; empty when there is none. */
function readStart(path: string, bytes: number): Buffer {
  const start = Buffer.alloc(bytes);
  try {
    const fd = openSync(path, 'r');
    try {
      return start.subarray(0, readSync(fd, start, 0, bytes, 0));
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return start.subarray(0, 0);
    throw error;
  }
}
