import { DatabaseChecksum, joinHalves, pageChecksumInto } from '../ltx/checksum.js';
import { CHECKSUM_FLAG, lockPgno, type LtxHeaderFields } from '../ltx/format.js';
import { READ_VERSION_OFFSET, WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import type { DatabasePaths } from '../store/data-directory.js';
import type { Log } from '../store/log.js';
import { PageChecksums, type JournalVersions } from '../store/page-checksums.js';
import { differingPages } from '../store/page-difference.js';
import type { EpochPosition } from '../store/types.js';
import { borrowWriter, returnWriter, type WrittenFile } from './ltx-file-writer.js';
import { recoverChecksums } from './recovered-checksums.js';
import type { WalPlace } from './wal-reader.js';

export interface TransactionLogOptions {
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
export interface Change {
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
  /** The frames that it comes from; without a size, where reading the WAL goes on after it. */
  readonly wal: (WalPlace & { readonly sizeBytes?: number }) | undefined;
}

/** After this much was written to the log, the page checksums are flushed, which bounds a restart's work. */
const FLUSH_AFTER_BYTES = 64 << 20;
const FLUSH_AFTER_FILES = 4096;
/** Pages between two yields of a long job. */
const PAGES_PER_STEP = 256;

/** The log of one database while it is captured, and what is known of the database at the log's end. */
export class TransactionLog {
  readonly #options: TransactionLogOptions;
  #checksums = new PageChecksums();
  /** The checksums are not those of the log's end: the next transaction must hold every page. */
  #unknown = false;
  #position: EpochPosition = { txid: 0n, checksum: 0n, epoch: 0n };
  #pageSize = 0;
  /** Bytes 18 and 19 of page 1 at the last flush, which the local page 1 of a former replica need not have. */
  #flushedVersions: JournalVersions | undefined;
  #bytesSinceFlush = 0;
  #filesSinceFlush = 0;

  constructor(options: TransactionLogOptions) {
    this.#options = options;
  }

  get log(): Log {
    return this.#options.log;
  }

  get position(): EpochPosition {
    return this.#position;
  }

  /** Page size at `position`, bytes; 0 when there is none. */
  get pageSize(): number {
    return this.#pageSize;
  }

  /** Size of the database at `position`, pages. */
  get commitPages(): number {
    return this.log.lastFile?.commitPages ?? 0;
  }

  /** What bytes 18 and 19 of page 1 were when another part flushed the checksums. */
  get flushedVersions(): JournalVersions | undefined {
    return this.#flushedVersions;
  }

  /** Whether pages of this size can be compared with the log's end. */
  knows(pageSize: number): boolean {
    return !this.#unknown && pageSize === this.#pageSize;
  }

  /** Loads the log's end. Returns whether the flushed checksums were those of it. */
  load(): { current: boolean } {
    const recovered = recoverChecksums(this.log, this.#options.paths.checksums);
    this.#unknown = recovered === undefined;
    this.#flushedVersions = recovered?.journalVersions;
    this.#checksums = recovered?.checksums ?? new PageChecksums();
    this.#position = this.log.lastPosition ?? this.#position;
    this.#pageSize = this.log.lastFile?.pageSize ?? 0;
    return { current: recovered?.current === true };
  }

  /** Whether a page with this checksum (two halves) is as it is at the log's end. */
  isCommitted(pgno: number, sum: Uint32Array): boolean {
    if (pgno > this.#checksums.pages) return false;
    return this.#checksums.matches(pgno, sum[0] as number, sum[1] as number);
  }

  /** Checksum of a page at the log's end. */
  checksumOf(pgno: number): bigint {
    return joinHalves(this.#checksums.high(pgno), this.#checksums.low(pgno));
  }

  /** Pages from `firstPgno` on that are otherwise at the log's end than with these checksums. */
  differing(firstPgno: number, theirs: Uint32Array): number[] {
    return differingPages(this.#checksums, firstPgno, theirs);
  }

  /** Writes a change into the log. Nothing of our state changes before it is there. */
  *append(change: Change): Generator<void, boolean> {
    const { commitPages, pageSize } = change;
    const whole = !this.knows(pageSize);
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
        if (!writer.started) writer.begin(this.#options.log, this.#header(change));
        writer.addPage(pgno, page, sums, kept * 2);
        total.toggle(sums[kept * 2] as number, sums[kept * 2 + 1] as number);
        if (pgno <= oldPages) total.toggle(this.#checksums.high(pgno), this.#checksums.low(pgno));
        pgnos[kept++] = pgno;
      }
      if (!writer.started) {
        if (change.dropUnchanged && commitPages === this.commitPages && !whole) return false;
        writer.begin(this.#options.log, this.#header(change));
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
      this.#bytesSinceFlush += written.file.sizeBytes;
      this.#filesSinceFlush++;
      this.#options.onFile(written);
      return true;
    } finally {
      returnWriter(writer);
    }
  }

  /** So much was logged since the last `flush` that a restart would take long. */
  get flushDue(): boolean {
    return this.#bytesSinceFlush > FLUSH_AFTER_BYTES || this.#filesSinceFlush > FLUSH_AFTER_FILES;
  }

  /** Writes the page checksums with their position, durably: who reads them next need not compute them. */
  flush(page1: Buffer): void {
    if (this.#unknown) return;
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

  #header(change: Change): LtxHeaderFields {
    const minTxid = this.#position.txid + 1n;
    const { wal } = change;
    return {
      pageSize: change.pageSize,
      commitPages: change.commitPages,
      minTxid,
      maxTxid: this.#position.txid + BigInt(change.transactions),
      timestampMs: this.#options.nowMs(),
      preApplyChecksum: minTxid === 1n ? 0n : this.#position.checksum,
      // Where a recovery goes on reading the WAL: after these frames.
      walOffset: wal?.offset ?? 0,
      walSizeBytes: wal?.sizeBytes ?? 0,
      walSalt1: wal?.salt1 ?? 0,
      walSalt2: wal?.salt2 ?? 0,
      nodeId: this.#options.nodeId,
      epoch: this.#options.epoch,
    };
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
