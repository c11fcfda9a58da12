import { fdatasyncSync, ftruncateSync, readSync } from 'node:fs';
import { KiteError } from '../errors.js';
import { DatabaseChecksum, pageChecksumInto } from '../ltx/checksum.js';
import type { LtxDecoder } from '../ltx/decoder.js';
import { lockPgno, type LtxHeader } from '../ltx/format.js';
import { stampOf } from '../backup/stamp.js';
import { writeFully } from '../util/files.js';

/** Pages that follow one another are written together, up to so much. */
const RUN_BYTES = 1024 * 1024;

const damaged = (what: string): KiteError => new KiteError('ERR_LTX_DAMAGED', what);

/** How far the database in the file is. */
export interface WrittenState {
  readonly pageSize: number;
  readonly pages: number;
  /** The rolling checksum of its pages. */
  readonly checksum: bigint;
}

/**
 * Writes LTX files into a database file, oldest first. Its memory does not grow with the database. Nothing that is in the file
 * counts before `apply` has returned for the last one: a file's checksum comes at its end.
 */
export class DatabaseWriter {
  readonly #fd: number;
  readonly #run = Buffer.allocUnsafeSlow(RUN_BYTES);
  #runStart = 0;
  #runLength = 0;
  #pageSize = 0;
  #pages = 0;
  #checksum = new DatabaseChecksum();
  #old = Buffer.alloc(0);
  #zeros = Buffer.alloc(0);
  readonly #halves = new Uint32Array(2);

  /** Takes a descriptor to read and write: of an empty file, or of one that is in the given state. */
  constructor(fd: number, from: WrittenState = { pageSize: 0, pages: 0, checksum: 0n }) {
    this.#fd = fd;
    this.#pageSize = from.pageSize;
    this.#pages = from.pages;
    this.#checksum = new DatabaseChecksum(from.checksum);
  }

  /** The state of a file of so many pages, whatever they hold: reads all of them. */
  static measure(fd: number, pageSize: number, pages: number): WrittenState {
    const writer = new DatabaseWriter(fd, { pageSize, pages, checksum: 0n });
    for (let pgno = 1; pgno <= pages; pgno += 1) if (pgno !== lockPgno(pageSize)) writer.#takeOut(pgno);
    return writer.state;
  }

  get state(): WrittenState {
    return { pageSize: this.#pageSize, pages: this.#pages, checksum: this.#checksum.value };
  }

  /**
   * Applies a file and checks it: every page, that none is missing of those by which the database grows, and the database's
   * checksum when KiteFS has stamped the file and `isWhole`: pages of later files may be there after an interruption. Throws ERR_LTX_DAMAGED, ERR_LTX_FOREIGN, errors of node:fs.
   */
  apply(ltx: LtxDecoder, isWhole = true): LtxHeader {
    const { header } = ltx;
    if (header.pageSize !== this.#pageSize) this.#startOver(header.pageSize);
    const before = this.#pages;
    let grown = 0;
    if (this.#zeros.length !== header.pageSize) this.#zeros = Buffer.alloc(header.pageSize);
    while (ltx.next()) {
      const isNew = ltx.pgno > before;
      if (isNew) grown += 1;
      else this.#takeOut(ltx.pgno);
      this.#checksum.toggle(ltx.checksumHigh, ltx.checksumLow);
      // Beyond its end the file has nothing yet: zeros are left out, and `#resize` gives it its length.
      if (!(isNew && ltx.page.equals(this.#zeros))) this.#put(ltx.pgno, ltx.page);
    }
    this.#flush();
    this.#resize(before, header.commitPages, grown);
    const stamp = stampOf(header);
    if (isWhole && stamp && stamp.checksum !== this.#checksum.value)
      throw damaged(
        `pages that are not those of the transaction: the database's checksum is ${hex(this.#checksum.value)} where ${hex(stamp.checksum)} was committed`,
      );
    return header;
  }

  /** Makes durable what was written so far. */
  sync(): void {
    fdatasyncSync(this.#fd);
  }

  /** Another page size: such a file must bring every page, which `#resize` checks. */
  #startOver(pageSize: number): void {
    ftruncateSync(this.#fd, 0);
    this.#pageSize = pageSize;
    this.#pages = 0;
    this.#checksum = new DatabaseChecksum();
    this.#old = Buffer.allocUnsafe(pageSize);
  }

  /** The size after a file: pages beyond it leave the checksum; those new below it must all have come. */
  #resize(before: number, after: number, grown: number): void {
    const lock = lockPgno(this.#pageSize);
    const expected = Math.max(0, after - before) - Number(before < lock && lock <= after);
    if (grown !== expected)
      throw damaged(`${grown} new pages in an LTX file by which the database grows by ${expected}`);
    for (let pgno = after + 1; pgno <= before; pgno += 1) if (pgno !== lock) this.#takeOut(pgno);
    // Also when it grew: where the lock page is the last one, nothing was written for it.
    ftruncateSync(this.#fd, after * this.#pageSize);
    this.#pages = after;
  }

  #takeOut(pgno: number): void {
    const { length } = this.#old;
    if (length !== this.#pageSize) this.#old = Buffer.allocUnsafe(this.#pageSize);
    for (let got = 0; got < this.#pageSize;) {
      const count = readSync(
        this.#fd,
        this.#old,
        got,
        this.#pageSize - got,
        (pgno - 1) * this.#pageSize + got,
      );
      if (count === 0)
        throw new KiteError('ERR_INTERNAL', `the file being restored ends before page ${pgno}`);
      got += count;
    }
    pageChecksumInto(pgno, this.#old, this.#halves, 0);
    this.#checksum.toggle(this.#halves[0]!, this.#halves[1]!);
  }

  #put(pgno: number, page: Buffer): void {
    const offset = (pgno - 1) * page.length;
    if (offset !== this.#runStart + this.#runLength || this.#runLength + page.length > RUN_BYTES) {
      this.#flush();
      this.#runStart = offset;
    }
    page.copy(this.#run, this.#runLength);
    this.#runLength += page.length;
  }

  #flush(): void {
    if (this.#runLength === 0) return;
    writeFully(this.#fd, this.#run.subarray(0, this.#runLength), this.#runStart);
    this.#runLength = 0;
  }
}

const hex = (value: bigint): string => value.toString(16).padStart(16, '0');
