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

let copies = 0;

/**
 * Copies a database that goes on being written (trap 8: only pages that match the committed checksums count)
 * and returns it as one snapshot LTX at a position of the log. `log` is the main thread's, told of each new
 * file. Needs room for two copies in `tmpDir` for a while, one until it is sent. Rejects with
 * ERR_CAPTURE_COPY when the database was dropped or its pages did not come to rest.
 */
export async function buildSnapshot(
  capture: Pick<Capture, 'position' | 'readCommittedPages'>,
  name: string,
  log: Log,
  tmpDir: string,
): Promise<SnapshotSource> {
  const id = `${process.pid}-${++copies}`;
  const imagePath = join(tmpDir, `copy-${id}.image`);
  const ltxPath = join(tmpDir, `copy-${id}.ltx`);
  const start = await capture.position(name);
  if (!start || start.txid === 0n) throw noCopy(name, 'it has no transaction yet');
  // The transactions made while the copy runs complete it: retention must leave them.
  const hold = log.hold(start.txid);
  const image = new Image(imagePath);
  try {
    const end = await copyImage(capture, name, log, image, start);
    const file = await encodeImage(image, end, ltxPath);
    return { file, chunks: () => sendAndRemove(ltxPath) };
  } catch (error) {
    await rm(ltxPath, { force: true });
    throw error;
  } finally {
    hold.release();
    image.close();
    await rm(imagePath, { force: true });
  }
}

/** Fills the image; returns the position at which its checksum is the log's. */
async function copyImage(
  capture: Pick<Capture, 'readCommittedPages'>,
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

  for (let next = 1, pages = 1; next <= pages; next += BATCH_PAGES) {
    pages = await read(Array.from({ length: BATCH_PAGES }, (_, i) => next + i));
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
    const again = missing.splice(0);
    for (let i = 0; i < again.length; i += BATCH_PAGES) await read(again.slice(i, i + BATCH_PAGES));
  }
  throw noCopy(name, 'its pages did not come to rest');
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

async function encodeImage(image: Image, at: EpochPosition, path: string): Promise<SnapshotSource['file']> {
  const { pageSize, pages } = image;
  const encoder = new LtxEncoder();
  const fd = openSync(path, 'wx');
  try {
    encoder.begin(
      {
        pageSize,
        commitPages: pages,
        minTxid: 1n,
        maxTxid: at.txid,
        timestampMs: Date.now(),
        preApplyChecksum: 0n,
        epoch: at.epoch,
      },
      (chunk) => {
        for (let done = 0; done < chunk.length;) done += writeSync(fd, chunk, done);
      },
    );
    const lock = lockPgno(pageSize);
    for (let pgno = 1; pgno <= pages; pgno++) {
      if (pgno !== lock) encoder.addPage(pgno, image.read(pgno));
      if (pgno % BATCH_PAGES === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    const { sizeBytes } = encoder.end(at.checksum);
    return {
      minTxid: 1n,
      maxTxid: at.txid,
      sizeBytes,
      epoch: at.epoch,
      preApplyChecksum: 0n,
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

/** A database file under construction, and the checksum of what is in it. */
class Image {
  readonly #fd: number;
  readonly #total = new DatabaseChecksum();
  #sums = new Uint32Array(2048);
  #page = Buffer.alloc(0);
  pages = 0;

  constructor(path: string) {
    this.#fd = openSync(path, 'wx+');
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
