import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { KiteError } from '../errors.js';
import { LtxCompactor } from '../ltx/compactor.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { LtxEncoder, type LtxPage } from '../ltx/encoder.js';
import {
  HEADER_BYTES,
  parseHeader,
  TRAILER_BYTES,
  type LtxHeader,
  type LtxHeaderFields,
} from '../ltx/format.js';
import { writeFully } from '../util/files.js';
import type { ObjectBody } from './destination.js';

/** Begins the names of files in the folder for temporary ones. */
export const TEMPORARY = 'backup-';
/** Files up to this size are read into memory. */
export const SMALL_BYTES = 1 << 20;
/** What is made stays in memory up to this size. */
const IN_MEMORY_BYTES = 16 << 20;
/** Pages between two looks at the event loop. */
const STEP_PAGES = 256;

/** An LTX file to merge: its bytes, or where it is. */
export type MergeSource = Buffer | string;

export interface Merged {
  readonly body: ObjectBody;
  readonly sizeBytes: number;
  readonly pageSize: number;
  readonly timestampMs: number;
  /** Removes what is on disk. */
  dispose(): Promise<void>;
}

/** Merges one after another, with an encoder's buffers that are used again. */
class MergeQueue {
  readonly encoder = new LtxEncoder();
  #last: Promise<unknown> = Promise.resolve();

  run<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(work);
    this.#last = mine.catch(() => undefined);
    return mine;
  }
}

/** Two, so that what was just committed never waits behind a snapshot; no more, so that memory does not grow with the databases. */
const small = new MergeQueue();
const large = new MergeQueue();

/**
 * Merges LTX files of one range, oldest first, into an object of a bucket: without checksums of the database, as Litestream wants
 * them, and with what `as` says in its header. Every input is verified. A large one goes by a file in `tmpDir`; memory does not grow
 * with the sizes. Throws as LtxCompactor does.
 */
export async function merge(
  sources: readonly MergeSource[],
  as: Partial<LtxHeaderFields>,
  tmpDir: string,
): Promise<Merged> {
  const queue = sources.every((source) => typeof source !== 'string') ? small : large;
  return await queue.run(() => mergeNow(sources, as, tmpDir, queue.encoder));
}

async function mergeNow(
  sources: readonly MergeSource[],
  as: Partial<LtxHeaderFields>,
  tmpDir: string,
  encoder: LtxEncoder,
): Promise<Merged> {
  const descriptors: number[] = [];
  const out = new Spill(join(tmpDir, TEMPORARY + randomUUID()));
  try {
    const inputs = sources.map((source) => decoderOf(source, descriptors));
    const compactor = new LtxCompactor(inputs, encoder, (chunk) => out.write(chunk), {
      noChecksum: true,
      as,
    });
    while (!compactor.step(STEP_PAGES)) await new Promise((resolve) => setImmediate(resolve));
    const { pageSize, timestampMs } = inputs.at(-1)!.header;
    const body = out.end();
    return {
      body,
      sizeBytes: out.sizeBytes,
      pageSize,
      timestampMs: as.timestampMs ?? timestampMs,
      dispose: () => out.remove(),
    };
  } catch (error) {
    await out.remove();
    throw error;
  } finally {
    for (const fd of descriptors) closeSync(fd);
  }
}

/** What it opens is added to `descriptors`, which the caller closes. */
function decoderOf(source: MergeSource, descriptors: number[]): LtxDecoder {
  if (typeof source !== 'string') return LtxDecoder.fromBuffer(source);
  const fd = openSync(source, 'r');
  descriptors.push(fd);
  return LtxDecoder.fromFile(fd);
}

/** Bytes in memory, or in a file once there are many. */
class Spill {
  readonly #path: string;
  #chunks: Buffer[] = [];
  #fd: number | undefined;
  #isOnDisk = false;
  sizeBytes = 0;

  constructor(path: string) {
    this.#path = path;
  }

  write(chunk: Buffer): void {
    this.sizeBytes += chunk.length;
    if (this.#fd === undefined && this.sizeBytes > IN_MEMORY_BYTES) {
      this.#fd = openSync(this.#path, 'wx');
      this.#isOnDisk = true;
      for (const earlier of this.#chunks.splice(0)) writeFully(this.#fd, earlier);
    }
    if (this.#fd === undefined) this.#chunks.push(Buffer.from(chunk));
    else writeFully(this.#fd, chunk);
  }

  end(): ObjectBody {
    if (this.#fd === undefined) return Buffer.concat(this.#chunks.splice(0));
    this.#close();
    return { path: this.#path, sizeBytes: this.sizeBytes };
  }

  async remove(): Promise<void> {
    this.#close();
    if (this.#isOnDisk) await rm(this.#path, { force: true });
  }

  #close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

/** What a file says of itself, unverified: `merge` verifies it. */
export interface LtxSource {
  readonly source: MergeSource;
  readonly sizeBytes: number;
  readonly header: LtxHeader;
  readonly postApplyChecksum: bigint;
}

/**
 * A file on disk for `merge`: its bytes when it is small. Read at once, because at thousands of files a second the four thread
 * hops of an asynchronous read each cost more than the read: a core that the primary would lack.
 */
export function fileSource(path: string): LtxSource {
  const fd = openSync(path, 'r');
  try {
    const { size: sizeBytes } = fstatSync(fd);
    const isSmall = sizeBytes <= SMALL_BYTES;
    const bytes = Buffer.allocUnsafeSlow(isSmall ? sizeBytes : HEADER_BYTES);
    for (let done = 0; done < bytes.length;) {
      const got = readSync(fd, bytes, done, bytes.length - done, done);
      if (got === 0) throw new KiteError('ERR_LTX_DAMAGED', `${path} became shorter`);
      done += got;
    }
    if (isSmall) return bytesSource(bytes);
    const trailer = Buffer.alloc(TRAILER_BYTES);
    readSync(fd, trailer, 0, TRAILER_BYTES, sizeBytes - TRAILER_BYTES);
    const { header } = parseHeader(bytes);
    return { source: path, sizeBytes, header, postApplyChecksum: trailer.readBigUInt64BE(0) };
  } finally {
    closeSync(fd);
  }
}

export function bytesSource(bytes: Buffer): LtxSource {
  const { header } = parseHeader(bytes);
  const at = Math.max(0, bytes.length - TRAILER_BYTES);
  return { source: bytes, sizeBytes: bytes.length, header, postApplyChecksum: bytes.readBigUInt64BE(at) };
}

/** The first page of a file, all of which is verified; undefined when it has none. Throws as LtxDecoder does. */
export async function firstPage(source: MergeSource): Promise<LtxPage | undefined> {
  const descriptors: number[] = [];
  try {
    const ltx = decoderOf(source, descriptors);
    let first: LtxPage | undefined;
    while (ltx.next()) {
      first ??= { pgno: ltx.pgno, data: Buffer.from(ltx.page) };
      if (ltx.pageCount % STEP_PAGES === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    return first;
  } finally {
    for (const fd of descriptors) closeSync(fd);
  }
}
