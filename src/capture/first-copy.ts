import { closeSync, createReadStream, openSync, readSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';

import { KiteError } from '../errors.js';
import { DatabaseChecksum, pageChecksumInto } from '../ltx/checksum.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { LtxEncoder } from '../ltx/encoder.js';
import { lockPgno } from '../ltx/format.js';
import type { SnapshotSource } from '../replication/store.js';
import type { Log } from '../store/log.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import type { Capture } from './capture.js';

const BATCH_PAGES = 64;
const CHUNK_BYTES = 256 * 1024;
const RETRY_MS = 20;
const RETRIES_MAX = 1500; // 30 s: longer than any sane rollback-mode transaction holds its pages

/** Pages that are compared at a time: 256 KiB of checksums. */
const COMPARE_PAGES = 32_768;

let copies = 0;

type CopiedFrom = Pick<Capture, 'position' | 'readCommittedPages' | 'differingPages'>;

/** What a replica has of a database, by checksums: a difference to it is sent instead of all pages. */
export interface CopyBase {
  /** The transaction that it has, of this history; the difference stands for those after it. */
  readonly txid: bigint;
  /** Of all its pages. */
  readonly checksum: bigint;
  /** Two halves per page, from page 1. Pages past these are taken for ones that it has not got. */
  readonly halves: Uint32Array;
}

/**
 * Copies a database that goes on being written (trap 8: only pages that match the committed checksums count)
 * and returns it as one LTX at a position of the log: a snapshot, or, given a `base`, the pages that differ from it, to
 * be applied to it (its pre-apply checksum is that of the base). `log` is the main thread's, told of each new
 * file; whoever does not take its chunks removes the file at `path`. Needs room for two copies (of what is sent) in `tmpDir` for a while, one until it is sent. Rejects with
 * ERR_CAPTURE_COPY when the database was dropped, its pages did not come to rest, or no difference to the base can be one
 * (another page size; no transaction after the first).
 */
export async function buildSnapshot(
  capture: CopiedFrom,
  name: string,
  log: Log,
  tmpDir: string,
  base?: CopyBase,
): Promise<SnapshotSource & { readonly path: string }> {
  const id = `${process.pid}-${++copies}`;
  const imagePath = join(tmpDir, `copy-${id}.image`);
  const ltxPath = join(tmpDir, `copy-${id}.ltx`);
  const start = await capture.position(name);
  if (!start || start.txid === 0n) throw noCopy(name, 'it has no transaction yet');
  // The transactions made while the copy runs complete it: retention must leave them.
  const hold = log.hold(start.txid);
  const image = new Image(imagePath, base?.halves);
  try {
    const end = await copyImage(capture, name, log, image, start);
    const file = await encodeImage(image, end, ltxPath, base && headerAfter(name, base, end));
    return { file, path: ltxPath, chunks: () => sendAndRemove(ltxPath) };
  } catch (error) {
    await rm(ltxPath, { force: true });
    throw error;
  } finally {
    hold.release();
    image.close();
    await rm(imagePath, { force: true });
  }
}

/** What the header of a difference says of where it begins. Only a snapshot begins at TXID 1 (LTX). */
function headerAfter(
  name: string,
  base: CopyBase,
  end: EpochPosition,
): { minTxid: bigint; checksum: bigint } {
  if (end.txid < 2n) throw noCopy(name, 'its only transaction is a snapshot');
  const after = base.txid > 0n && base.txid < end.txid ? base.txid : end.txid - 1n;
  return { minTxid: after + 1n, checksum: base.checksum };
}

/** Fills the image; returns the position at which its checksum is the log's. */
async function copyImage(
  capture: CopiedFrom,
  name: string,
  log: Log,
  image: Image,
  start: EpochPosition,
): Promise<EpochPosition> {
  let applied: EpochPosition = start;
  let readAt: EpochPosition = start;
  let missing: number[] = [];

  const read = async (pgnos: number[]): Promise<number> => {
    const batch = await capture.readCommittedPages(name, pgnos);
    if (batch.commitPages === 0) throw noCopy(name, 'it was dropped');
    if (!image.setPageSize(batch.pageSize)) throw noCopy(name, 'its page size was changed');
    for (const { pgno, data } of batch.pages) image.write(pgno, data);
    missing.push(...batch.retry);
    readAt = batch.position;
    return batch.commitPages;
  };

  const readMissing = async (): Promise<void> => {
    const again = missing.splice(0);
    for (let i = 0; i < again.length; i += BATCH_PAGES) await read(again.slice(i, i + BATCH_PAGES));
  };

  if (image.base) {
    missing = await comparePages(capture, name, image);
    await readMissing();
  } else {
    for (let next = 1, pages = 1; next <= pages; next += BATCH_PAGES) {
      pages = await read(Array.from({ length: BATCH_PAGES }, (_, i) => next + i));
    }
  }
  for (let tries = 0; tries < RETRIES_MAX; tries++) {
    // A page may have been read newer than the file that is overlaid now; a later file then mends it.
    const files = log.filesAfter(applied);
    if (!files) throw noCopy(name, 'its log was cut off');
    for (const file of files ?? []) {
      await overlay(image, name, file);
      applied = { txid: file.maxTxid, checksum: file.postApplyChecksum, epoch: file.epoch };
      if (applied.txid >= readAt.txid && image.checksum === applied.checksum) return applied;
    }
    if (applied.txid >= readAt.txid && image.checksum === applied.checksum) return applied;
    if (applied.txid >= readAt.txid) {
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    } else {
      await new Promise((resolve) => setImmediate(resolve)); // its notice is on the way
    }
    await readMissing();
  }
  throw noCopy(name, 'its pages did not come to rest');
}

/**
 * The pages whose committed content is not that of the image's base. What changes while they are compared is in the log
 * after the copy's start, which is laid over the image anyway.
 */
async function comparePages(capture: CopiedFrom, name: string, image: Image): Promise<number[]> {
  const differing: number[] = [];
  for (let next = 1, pages = 1; next <= pages; next += COMPARE_PAGES) {
    const { pageSize, commitPages, pgnos } = await capture.differingPages(
      name,
      next,
      image.baseHalves(next, COMPARE_PAGES),
    );
    if (commitPages === 0) throw noCopy(name, 'it was dropped');
    if (!image.setPageSize(pageSize)) throw noCopy(name, 'its page size was changed');
    if (commitPages < image.pages) image.resize(commitPages);
    differing.push(...pgnos);
    pages = commitPages;
  }
  return differing;
}

async function overlay(image: Image, name: string, file: LogFile): Promise<void> {
  if (file.commitPages === 0) throw noCopy(name, 'it was dropped');
  if (!image.setPageSize(file.pageSize)) throw noCopy(name, 'its page size was changed');
  const fd = openSync(file.path, 'r');
  try {
    const ltx = LtxDecoder.fromFile(fd);
    for (let i = 1; ltx.next(); i++) {
      image.write(ltx.pgno, ltx.page);
      if (i % BATCH_PAGES === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    image.resize(file.commitPages);
  } finally {
    closeSync(fd);
  }
}

async function encodeImage(
  image: Image,
  at: EpochPosition,
  path: string,
  after: { minTxid: bigint; checksum: bigint } = { minTxid: 1n, checksum: 0n },
): Promise<SnapshotSource['file']> {
  const { pageSize, pages } = image;
  const { minTxid, checksum: preApplyChecksum } = after;
  const encoder = new LtxEncoder();
  const fd = openSync(path, 'wx');
  try {
    encoder.begin(
      {
        pageSize,
        commitPages: pages,
        minTxid,
        maxTxid: at.txid,
        timestampMs: Date.now(),
        preApplyChecksum,
        epoch: at.epoch,
      },
      (chunk) => {
        for (let done = 0; done < chunk.length;) done += writeSync(fd, chunk, done);
      },
    );
    const lock = lockPgno(pageSize);
    for (let pgno = 1; pgno <= pages; pgno++) {
      if (pgno !== lock && image.differs(pgno)) encoder.addPage(pgno, image.read(pgno));
      if (pgno % BATCH_PAGES === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    const { sizeBytes } = encoder.end(at.checksum);
    return {
      minTxid,
      maxTxid: at.txid,
      sizeBytes,
      epoch: at.epoch,
      preApplyChecksum,
      postApplyChecksum: at.checksum,
      pageSize,
      commitPages: pages,
    };
  } finally {
    closeSync(fd);
  }
}

async function* sendAndRemove(path: string): AsyncGenerator<Buffer> {
  try {
    yield* createReadStream(path, { highWaterMark: CHUNK_BYTES }) as AsyncIterable<Buffer>;
  } finally {
    await rm(path, { force: true });
  }
}

/**
 * A database file under construction, and the checksum of what is in it. With a base it starts as that, whose pages are
 * not in the file, only their checksums are known.
 */
class Image {
  readonly #fd: number;
  readonly base: Uint32Array | undefined;
  readonly #total = new DatabaseChecksum();
  /** Two halves per page, from page 0 on, which there is not. */
  #sums = new Uint32Array(2048);
  #page = Buffer.alloc(0);
  pages = 0;

  constructor(path: string, base: Uint32Array | undefined) {
    this.#fd = openSync(path, 'wx+');
    this.base = base;
    if (!base) return;
    this.pages = base.length / 2;
    this.#sums = new Uint32Array(Math.max(2048, base.length + 2));
    this.#sums.set(base, 2);
    for (let at = 0; at < base.length; at += 2) this.#total.toggle(base[at]!, base[at + 1]!);
  }

  /** Checksums of the base, zero where it has no page. */
  baseHalves(firstPgno: number, count: number): Uint32Array {
    const halves = new Uint32Array(count * 2);
    halves.set(this.base?.subarray(firstPgno * 2 - 2, (firstPgno + count) * 2 - 2) ?? []);
    return halves;
  }

  /** Whether a page is not that of the base. */
  differs(pgno: number): boolean {
    const at = pgno * 2;
    return this.#sums[at] !== (this.base?.[at - 2] ?? 0) || this.#sums[at + 1] !== (this.base?.[at - 1] ?? 0);
  }

  get pageSize(): number {
    return this.#page.length;
  }

  get checksum(): bigint {
    return this.#total.value;
  }

  /** Whether it is the page size that it has had so far. */
  setPageSize(pageSize: number): boolean {
    if (this.pageSize === 0) this.#page = Buffer.alloc(pageSize);
    return this.pageSize === pageSize;
  }

  write(pgno: number, data: Uint8Array): void {
    const at = pgno * 2;
    if (at + 2 > this.#sums.length) {
      const more = new Uint32Array(Math.max(at + 2, this.#sums.length * 2));
      more.set(this.#sums);
      this.#sums = more;
    }
    this.#total.toggle(this.#sums[at]!, this.#sums[at + 1]!);
    pageChecksumInto(pgno, data, this.#sums, at);
    this.#total.toggle(this.#sums[at]!, this.#sums[at + 1]!);
    this.pages = Math.max(this.pages, pgno);
    const start = (pgno - 1) * this.pageSize;
    for (let done = 0; done < data.length;)
      done += writeSync(this.#fd, data, done, data.length - done, start + done);
  }

  resize(pages: number): void {
    for (let pgno = pages + 1; pgno <= this.pages; pgno++) {
      this.#total.toggle(this.#sums[pgno * 2]!, this.#sums[pgno * 2 + 1]!);
      this.#sums.fill(0, pgno * 2, pgno * 2 + 2);
    }
    this.pages = pages;
  }

  read(pgno: number): Buffer {
    const bytes = readSync(this.#fd, this.#page, 0, this.pageSize, (pgno - 1) * this.pageSize);
    this.#page.fill(0, bytes);
    return this.#page;
  }

  close(): void {
    closeSync(this.#fd);
  }
}

const noCopy = (name: string, why: string): KiteError =>
  new KiteError('ERR_CAPTURE_COPY', `no copy of ${name} was made: ${why}`);
