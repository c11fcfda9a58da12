import { DatabaseChecksum, pageChecksumInto } from '../ltx/checksum.js';
import { CHECKSUM_FLAG, lockPgno } from '../ltx/format.js';
import { KiteError } from '../errors.js';
import { READ_VERSION_OFFSET, WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import type { DatabasePaths } from '../store/data-directory.js';
import type { Log } from '../store/log.js';
import { PageChecksums, type JournalVersions } from '../store/page-checksums.js';
import type { EpochPosition } from '../store/types.js';
import { DatabasePages } from './database-pages.js';
import type { JournalCommit } from './gate.js';
import { borrowWriter, returnWriter, type WrittenFile } from './ltx-file-writer.js';
import type { CommittedPages, WalChange } from './messages.js';
import { readLtxHeader, recoverChecksums } from './recovered-checksums.js';
import { finish, WalReader, type ScannedCommits } from './wal-reader.js';

export interface DatabaseCaptureOptions {
  readonly name: string;
  readonly paths: DatabasePaths;
  readonly log: Log;
  /** Goes into the header of each file: whose WAL the WAL fields mean. Not 0n. */
  readonly nodeId: bigint;
  /** Epoch under which transactions are written. */
  readonly epoch: bigint;
  /** Throws when this node may not write under that epoch any more; asked before each file enters the log. */
  readonly mayAppend: () => void;
  readonly onFile: (written: WrittenFile) => void;
  readonly nowMs: () => number;
}

/** A change of the database, on its way into the log. */
interface Change {
  /** Pages that may have changed. Those by which the database grew are added. */
  readonly pgnos: Iterable<number>;
  readonly read: (pgno: number) => Uint8Array;
  readonly commitPages: number;
  /** Smallest size on the way, pages. */
  readonly leastPages?: number;
  readonly pageSize: number;
  readonly transactions: number;
  /** Leave out pages that are as they were, and write nothing when none is left. */
  readonly dropUnchanged: boolean;
  readonly wal?: { readonly offset: number; readonly sizeBytes: number };
}

/** After this much was written to the log, the page checksums are flushed, which bounds a restart's work. */
const FLUSH_AFTER_BYTES = 64 << 20;
const FLUSH_AFTER_FILES = 4096;
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
  readonly #log: Log;
  readonly #wal: WalReader;
  #pages: DatabasePages;
  #checksums = new PageChecksums();
  /** The checksums are not those of the log's end: the next transaction must hold every page. */
  #unknown = false;
  #position: EpochPosition = { txid: 0n, checksum: 0n, epoch: 0n };
  #pageSize = 0;
  #running: Generator<void, boolean> | undefined;
  /** Nothing from here on counts until the mount has published a commit beyond it: it is being destroyed. */
  #walLimit = Infinity;
  /** Bytes 18 and 19 of page 1 at the last flush, which the local page 1 of a former replica need not have. */
  #flushedVersions: JournalVersions | undefined;
  #bytesSinceFlush = 0;
  #filesSinceFlush = 0;
  readonly counts = { transactions: 0, files: 0, compensations: 0 };

  constructor(options: DatabaseCaptureOptions) {
    this.name = options.name;
    this.#options = options;
    this.#log = options.log;
    this.#wal = new WalReader(options.paths.wal);
    this.#pages = new DatabasePages(options.paths.database);
  }

  get position(): EpochPosition {
    return this.#position;
  }

  /** Up to where the WAL was captured, bytes. */
  get walEnd(): number {
    return this.#wal.place?.offset ?? 0;
  }

  /** Size of the database at `position`, pages. */
  get commitPages(): number {
    return this.#log.lastFile?.commitPages ?? 0;
  }

  get log(): Log {
    return this.#log;
  }

  /**
   * Loads the log's end and adds to the log what committed transactions in the WAL it lacks. SQLite must not
   * have touched the database since the crash (trap 7). Returns whether the checksums were current.
   */
  load(): { current: boolean } {
    const recovered = recoverChecksums(this.#log, this.#options.paths.checksums);
    this.#unknown = recovered === undefined;
    this.#flushedVersions = recovered?.journalVersions;
    this.#checksums = recovered?.checksums ?? new PageChecksums();
    this.#position = this.#log.lastPosition ?? this.#position;
    this.#pageSize = this.#log.lastFile?.pageSize ?? 0;
    this.#passCapturedFrames();
    finish(this.#captureUpTo(Infinity));
    return { current: recovered?.current === true };
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
    if (!this.#unknown && pageSize === this.#pageSize && this.commitPages > 0) {
      differing = this.#differingAfterStop(all, commitPages);
      // SQLite changes page 1 with every rollback-mode transaction, and the WAL holds every page of the others.
      const explained = differing[0] === 1 || commitPages !== this.commitPages;
      const free = explained ? undefined : this.#freeLeaves(pageSize);
      if (free && differing.some((pgno) => !this.#wal.map.has(pgno) && !free.has(pgno))) {
        const pages = differing.slice(0, 5).join(', ');
        throw this.#damaged(`${differing.length} of its pages are not as they were committed: ${pages}…`);
      }
    }
    finish(this.#emit(this.#changeOfReaders(differing, commitPages, pageSize)));
  }

  /**
   * Captures about 1 MiB of what is committed below `endBytes` of the WAL. Call `next` until it is done: true
   * means there may be more. A long transaction yields in between.
   */
  captureWal(endBytes: number): Generator<void, boolean> {
    if (endBytes > this.#walLimit) this.#walLimit = Infinity;
    this.#running ??= this.#captureOnce(Math.min(endBytes, this.#walLimit));
    return this.#running;
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
    this.#compensate(pgnos, (pgno) => this.#pages.read(pgno, this.#pageSize), 0);
    this.#wal.forgetFrames();
    this.#walLimit = 0;
    this.#flushWhenDue();
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
      this.#emit({
        pgnos: commit.dirtyPages,
        read: (pgno) => this.#pages.read(pgno, pageSize),
        commitPages: this.#pages.pageCount(pageSize),
        leastPages,
        pageSize,
        transactions: 1,
        dropUnchanged: true,
      }),
    );
    this.#flushWhenDue();
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
      const known = !this.#unknown && pageSize === this.#pageSize;
      const pgnos = known ? finish(this.#differing(commitPages)) : [];
      finish(this.#emit(this.#changeOfReaders(pgnos, commitPages, pageSize)));
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
    const pageSize = this.#pageSize;
    if (pageSize === 0 || this.#unknown) return false;
    if (offsetBytes % pageSize !== 0 || bytes.length % pageSize !== 0) return false;
    const sum = new Uint32Array(2);
    for (let at = 0; at < bytes.length; at += pageSize) {
      const pgno = (offsetBytes + at) / pageSize + 1;
      pageChecksumInto(pgno, bytes.subarray(at, at + pageSize), sum, 0);
      if (!this.#isCommitted(pgno, sum)) return false;
    }
    return true;
  }

  /** Committed content of some pages; the lock page and pages past the end are left out. */
  readCommitted(pgnos: readonly number[]): CommittedPages {
    this.#finishRunning();
    this.#pages.open();
    const { position, commitPages } = this;
    const pageSize = this.#pageSize;
    const pages: { pgno: number; data: Uint8Array }[] = [];
    const retry: number[] = [];
    const sum = new Uint32Array(2);
    for (const pgno of pgnos) {
      if (pgno > commitPages || pgno === lockPgno(pageSize)) continue;
      const data = this.#read(pgno, pageSize);
      pageChecksumInto(pgno, data, sum, 0);
      // Trap 8: in rollback mode `database` holds uncommitted pages while a transaction runs.
      if (this.#isCommitted(pgno, sum)) pages.push({ pgno, data: Uint8Array.from(data) });
      else retry.push(pgno);
    }
    return { position, pageSize, commitPages, pages, retry };
  }

  /** Writes the page checksums with their position, durably: who reads them next need not compute them. */
  flush(): void {
    this.#finishRunning();
    if (this.#unknown || this.#position.txid === 0n) return;
    this.#pages.open();
    const page1 = this.#read(1, this.#pageSize);
    this.#checksums.save(this.#options.paths.checksums, {
      position: this.#position,
      pageSize: this.#pageSize,
      journalVersions: {
        write: page1.readUInt8(WRITE_VERSION_OFFSET),
        read: page1.readUInt8(READ_VERSION_OFFSET),
      },
    });
    this.#bytesSinceFlush = 0;
    this.#filesSinceFlush = 0;
  }

  #flushWhenDue(): void {
    if (this.#bytesSinceFlush > FLUSH_AFTER_BYTES || this.#filesSinceFlush > FLUSH_AFTER_FILES) {
      this.flush();
    }
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
  #passCapturedFrames(): void {
    const last = this.#log.lastFile;
    if (!last) return;
    const { nodeId, walOffset, walSizeBytes, walSalt1, walSalt2 } = readLtxHeader(last);
    // Another node's file means another WAL: ours was written by the applier, out of that same log.
    const foreign = nodeId !== this.#options.nodeId;
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
    if (found.end.frames === 0) return;
    yield* this.#emit({
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
      wal: { offset: before.offset, sizeBytes: this.#wal.offsetAfter(found.end) - before.offset },
    });
    this.#wal.accept(found);
  }

  /** Captured frames from `fromBytes` on are about to go: readers never saw the commits they belong to. */
  #compensateOverwrite(fromBytes: number): void {
    const place = this.#wal.place;
    if (!place || fromBytes >= place.offset) return;
    const lost = this.#wal.rewind(fromBytes);
    this.#pages.open();
    this.#compensate([...lost], (pgno) => this.#read(pgno, this.#pageSize), this.#wal.commitPages);
  }

  /** Restores what readers see; `walPages` is the size that the rest of the WAL says, 0 when `database` counts. */
  #compensate(pgnos: readonly number[], read: (pgno: number) => Uint8Array, walPages: number): void {
    if (pgnos.length === 0) return;
    const emitted = finish(
      this.#emit({
        pgnos,
        read,
        commitPages: walPages || this.#pages.pageCount(this.#pageSize),
        pageSize: this.#pageSize,
        transactions: 1,
        dropUnchanged: true,
      }),
    );
    if (emitted) this.counts.compensations++;
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
    const last = this.#log.lastFile;
    if (!last || last.commitPages === 0) return;
    // Its first transaction was in the log, but not committed yet: SQLite has rolled it back to nothing.
    const isFirst = last.maxTxid === 1n || last.preApplyChecksum === CHECKSUM_FLAG;
    if (!isFirst) throw this.#damaged('its file is gone or empty');
    this.#emitDeletion();
  }

  #emitDeletion(): void {
    if (this.commitPages === 0) return;
    finish(this.#emit(this.#changeOfReaders([], 0, this.#pageSize)));
  }

  #changeOfReaders(pgnos: Iterable<number>, commitPages: number, pageSize: number): Change {
    return {
      pgnos,
      read: (pgno) => this.#read(pgno, pageSize),
      commitPages,
      pageSize,
      transactions: 1,
      dropUnchanged: true,
    };
  }

  /** Writes a change into the log. Nothing of our state changes before it is there. */
  *#emit(change: Change): Generator<void, boolean> {
    const { commitPages, pageSize } = change;
    const whole = this.#unknown || pageSize !== this.#pageSize;
    const oldPages = whole ? 0 : this.#checksums.pages;
    const pgnos = sortedPages(change, whole ? 0 : Math.min(oldPages, change.leastPages ?? oldPages));
    const sums = new Uint32Array(pgnos.length * 2);
    const total = new DatabaseChecksum(whole ? 0n : this.#checksums.checksum);
    const writer = borrowWriter();
    let kept = 0;
    try {
      for (let i = 0; i < pgnos.length; i++) {
        if (i % PAGES_PER_STEP === PAGES_PER_STEP - 1) yield;
        const pgno = pgnos[i] as number;
        const page = change.read(pgno);
        if (change.dropUnchanged && !whole) {
          pageChecksumInto(pgno, page, sums, kept * 2);
          const [high, low] = [sums[kept * 2] as number, sums[kept * 2 + 1] as number];
          if (pgno <= oldPages && this.#checksums.matches(pgno, high, low)) continue;
        }
        if (!writer.started) writer.begin(this.#log, this.#header(change));
        writer.addPage(pgno, page, sums, kept * 2);
        total.toggle(sums[kept * 2] as number, sums[kept * 2 + 1] as number);
        if (pgno <= oldPages) total.toggle(this.#checksums.high(pgno), this.#checksums.low(pgno));
        pgnos[kept++] = pgno;
      }
      if (!writer.started) {
        if (change.dropUnchanged && commitPages === this.commitPages && !whole) return false;
        writer.begin(this.#log, this.#header(change));
      }
      for (let pgno = commitPages + 1; pgno <= oldPages; pgno++) {
        total.toggle(this.#checksums.high(pgno), this.#checksums.low(pgno));
      }
      const checksum = commitPages === 0 ? CHECKSUM_FLAG : total.value;
      const written = writer.end(checksum, this.#options.mayAppend);
      if (whole) this.#checksums.clear();
      this.#checksums.resize(commitPages);
      for (let i = 0; i < kept; i++) {
        this.#checksums.set(pgnos[i] as number, sums[i * 2] as number, sums[i * 2 + 1] as number);
      }
      this.#unknown = false;
      this.#pageSize = pageSize;
      this.#position = { txid: written.file.maxTxid, checksum, epoch: written.file.epoch };
      this.counts.transactions += change.transactions;
      this.counts.files++;
      this.#bytesSinceFlush += written.file.sizeBytes;
      this.#filesSinceFlush++;
      this.#options.onFile(written);
      return true;
    } finally {
      returnWriter(writer);
    }
  }

  #header(change: Change) {
    const place = this.#wal.place;
    const minTxid = this.#position.txid + 1n;
    return {
      pageSize: change.pageSize,
      commitPages: change.commitPages,
      minTxid,
      maxTxid: this.#position.txid + BigInt(change.transactions),
      timestampMs: this.#options.nowMs(),
      preApplyChecksum: minTxid === 1n ? 0n : this.#position.checksum,
      // Where a recovery goes on reading the WAL: after these frames, or where we stand now.
      walOffset: change.wal?.offset ?? place?.offset ?? 0,
      walSizeBytes: change.wal?.sizeBytes ?? 0,
      walSalt1: place?.salt1 ?? 0,
      walSalt2: place?.salt2 ?? 0,
      nodeId: this.#options.nodeId,
      epoch: this.#options.epoch,
    };
  }

  /** Pages that changed while nobody captured. */
  #differingAfterStop(all: boolean, commitPages: number): number[] {
    if (all || commitPages !== this.commitPages) return finish(this.#differing(commitPages));
    if (finish(this.#differing(1)).length === 0) return [];
    // A replica's copy is in WAL mode whatever the primary's was (DESIGN §6): that alone changes page 1 only.
    const versions = this.#flushedVersions;
    const page = Buffer.from(this.#read(1, this.#pageSize));
    if (versions) page.set([versions.write, versions.read], WRITE_VERSION_OFFSET);
    const sum = new Uint32Array(2);
    pageChecksumInto(1, page, sum, 0);
    return this.#isCommitted(1, sum) ? [1] : finish(this.#differing(commitPages));
  }

  /** Pages up to `lastPgno`, as readers see them, whose checksums are not those of the log's end. */
  *#differing(lastPgno: number): Generator<void, number[]> {
    const differing: number[] = [];
    const pageSize = this.#pageSize;
    const lock = lockPgno(pageSize);
    const sum = new Uint32Array(2);
    for (let pgno = 1; pgno <= lastPgno; pgno++) {
      if (pgno % PAGES_PER_STEP === 0) yield;
      if (pgno === lock) continue;
      pageChecksumInto(pgno, this.#read(pgno, pageSize), sum, 0);
      if (!this.#isCommitted(pgno, sum)) differing.push(pgno);
    }
    return differing;
  }

  #isCommitted(pgno: number, sum: Uint32Array): boolean {
    if (pgno > this.#checksums.pages) return false;
    return this.#checksums.matches(pgno, sum[0] as number, sum[1] as number);
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

/** The pages of a change in ascending order, with those by which the database grew, without the lock page. */
function sortedPages(change: Change, leastPages: number): Uint32Array {
  const all = new Set<number>();
  const lock = lockPgno(change.pageSize);
  for (const pgno of change.pgnos) if (pgno >= 1 && pgno <= change.commitPages) all.add(pgno);
  for (let pgno = leastPages + 1; pgno <= change.commitPages; pgno++) all.add(pgno);
  all.delete(lock);
  return Uint32Array.from(all).toSorted();
}
