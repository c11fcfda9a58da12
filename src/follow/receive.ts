import { randomUUID } from 'node:crypto';
import { closeSync, createReadStream, openSync, readSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Destination } from '../backup/destination.js';
import type { BackupFile } from '../backup/layout.js';
import { stampOf } from '../backup/stamp.js';
import { KiteError, toKiteError } from '../errors.js';
import { pageChecksumInto } from '../ltx/checksum.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { LtxEncoder } from '../ltx/encoder.js';
import { lockPgno, type LtxHeaderFields } from '../ltx/format.js';
import { samePosition, type Position } from '../ltx/position.js';
import type { ChecksumSource, ReplicationStore } from '../replication/store.js';
import { listFiles } from '../restore/bucket.js';
import { fetchHeader, fetchPart } from '../restore/fetch.js';
import { newestWhere } from '../restore/moments.js';
import { reachOf } from '../restore/plan.js';
import { restore } from '../restore/restore.js';
import { DATABASE_HEADER_BYTES, parseDatabaseHeader } from '../sqlite/database-header.js';
import { CHECKSUM_BYTES, parseChecksums } from '../store/page-difference.js';
import type { EpochPosition } from '../store/types.js';
import { writeFully } from '../util/files.js';

/** Objects up to this are taken in memory. */
const SMALL_BYTES = 1 << 20;
const PIECE_BYTES = 256 << 10;
/** Pages between two turns for others. */
const TURN_PAGES = 256;

const notOurs = (url: string): KiteError =>
  new KiteError(
    'ERR_RESTORE_NOTHING',
    `${url} has objects of Litestream only: KiteFS must have shipped what is followed`,
  );

/** The object of the bucket at whose end a position is; undefined when there is none. A few small requests. Throws ERR_BACKUP_*. */
export async function locate(from: Destination, folder: string, at: Position): Promise<bigint | undefined> {
  const found = await newestWhere(
    reachOf(await listFiles(from, folder)).files,
    async (file) => await fetchHeader(from, file).catch(unusable),
    (header) => header.clusterChecksum !== 0n && header.clusterTxid <= at.txid,
  );
  const stamp = found && stampOf(found.header);
  return stamp && samePosition(stamp, at) ? found.file.maxTxid : undefined;
}

/** Gone since it was listed, or damaged: its neighbours say as much. */
function unusable(error: unknown): undefined {
  if (!/^ERR_(BACKUP_MISSING|LTX_)/.test(toKiteError(error).code)) throw error;
}

interface Change {
  readonly from: Destination;
  readonly store: ReplicationStore;
  readonly tmpDir: string;
  readonly name: string;
  readonly file: BackupFile;
  /** Where the log stands. */
  readonly after: EpochPosition;
}

/**
 * Receives one object as the transaction that follows ours; returns where it leads, or in words why it does not follow. Throws
 * ERR_BACKUP_*, ERR_LTX_*, and as `ReplicationStore.receive`.
 */
export async function receiveChange(change: Change): Promise<EpochPosition | string> {
  const { from, store, tmpDir, name, file, after } = change;
  const temporary = new Temporary(tmpDir);
  try {
    const source = await fetchObject(from, file, temporary);
    const { header } = source;
    const stamp = stampOf(header);
    if (!stamp) throw notOurs(from.url);
    if (samePosition(stamp, after)) return after;
    if (stamp.txid <= after.txid)
      return `the history went on from before TXID ${after.txid}, in epoch ${stamp.epoch}`;
    if (header.pageSize !== store.pagesOf(name)?.pageSize) return 'its page size was changed';
    const fields = {
      pageSize: header.pageSize,
      commitPages: header.commitPages,
      minTxid: after.txid + 1n,
      maxTxid: stamp.txid,
      timestampMs: header.timestampMs,
      preApplyChecksum: after.checksum,
      epoch: stamp.epoch,
    };
    const encoded = new Encoded(temporary, fields);
    while (source.next()) {
      encoded.add(source.pgno, source.page);
      if (source.pageCount % TURN_PAGES === 0) await nextTurn();
    }
    await encoded.receive(store, name, stamp.checksum);
    return stamp;
  } finally {
    temporary.remove();
  }
}

/** An object, in memory or on disk. Nothing of it counts before `next` has returned false. */
async function fetchObject(from: Destination, file: BackupFile, temporary: Temporary): Promise<LtxDecoder> {
  if (file.sizeBytes <= SMALL_BYTES) {
    const bytes = Buffer.allocUnsafeSlow(file.sizeBytes);
    await fetchPart(from, file.key, 0, bytes);
    return LtxDecoder.fromBuffer(bytes);
  }
  const { fd } = temporary.open();
  const piece = Buffer.allocUnsafeSlow(SMALL_BYTES);
  for (let at = 0; at < file.sizeBytes; at += SMALL_BYTES) {
    const part = piece.subarray(0, Math.min(SMALL_BYTES, file.sizeBytes - at));
    await fetchPart(from, file.key, at, part);
    writeFully(fd, part, at);
  }
  return LtxDecoder.fromFile(fd);
}

/** What `fetchWhole` has brought. */
interface Whole {
  readonly position: EpochPosition;
  /** What the log held before; undefined when there was nothing. */
  readonly before: EpochPosition | undefined;
  /** The object of level 0 that it stands at. */
  readonly k: bigint;
}

/**
 * Restores the newest state beside the database and receives what differs as one transaction, or all of it where there is nothing to
 * compare with; undefined when the bucket has nothing of it. What is here came from this bucket, so nothing is set aside as lost.
 */
export async function fetchWhole(of: {
  readonly from: Destination;
  readonly store: ReplicationStore;
  readonly tmpDir: string;
  readonly name: string;
  readonly folder: string;
}): Promise<Whole | undefined> {
  const { from, store, tmpDir, name, folder } = of;
  const files = await listFiles(from, folder);
  if (files.length === 0) return undefined;
  const output = join(tmpDir, `follow-${randomUUID()}`);
  const temporary = new Temporary(tmpDir);
  let source: ChecksumSource | undefined;
  try {
    const request = { parallelism: 8, integrityCheck: 'none', say: () => undefined } as const;
    const restored = await restore({ from, folder, output, wanted: { kind: 'latest' }, ...request });
    const k = restored.txid;
    const last = (await listFiles(from, folder)).find(({ maxTxid }) => maxTxid === k);
    const stamp = last && stampOf(await fetchHeader(from, last));
    if (!stamp || k === undefined || !restored.verified) throw notOurs(from.url);
    const fd = temporary.adopt(output);
    const head = Buffer.alloc(DATABASE_HEADER_BYTES);
    readSync(fd, head, 0, head.length, 0);
    const pageSize = parseDatabaseHeader(head)?.pageSize;
    if (pageSize === undefined)
      throw new KiteError('ERR_LTX_DAMAGED', `${name}: what was restored is no database`);
    const before = store.position(name) ?? store.needsResync(name)?.at;
    if (store.position(name) && before && samePosition(before, stamp)) return { position: stamp, before, k };
    const commitPages = statSync(output).size / pageSize;
    // Only a snapshot begins at TXID 1 (LTX).
    source = stamp.txid > 1n ? await store.pageChecksums(name, pageSize) : undefined;
    const isAfter = source && source.txid > 0n && source.txid < stamp.txid;
    const encoded = new Encoded(temporary, {
      pageSize,
      commitPages,
      minTxid: source ? (isAfter ? source.txid + 1n : stamp.txid) : 1n,
      maxTxid: stamp.txid,
      timestampMs: restored.timestampMs,
      preApplyChecksum: source?.checksum ?? 0n,
      epoch: stamp.epoch,
    });
    await addDifferent(encoded, fd, { pageSize, commitPages }, source);
    // Where our history ends is on that of the bucket, as far as this node is concerned.
    const fork = before && { ...before, epoch: before.epoch };
    await encoded.receive(store, name, stamp.checksum, { difference: source !== undefined, fork });
    return { position: stamp, before, k };
  } finally {
    source?.release();
    temporary.remove();
    for (const end of ['', '.kitefs-restore', '.kitefs-restore-state'])
      rmSync(`${output}${end}`, { force: true });
  }
}

/** Adds the pages of a file that are others than those that are here. */
async function addDifferent(
  encoded: Encoded,
  fd: number,
  { pageSize, commitPages }: { pageSize: number; commitPages: number },
  source: ChecksumSource | undefined,
): Promise<void> {
  const page = Buffer.allocUnsafeSlow(pageSize);
  const halves = new Uint32Array(2);
  const lock = lockPgno(pageSize);
  const look = (pgno: number, theirs: Uint32Array | undefined, at: number): void => {
    if (pgno === lock) return;
    readSync(fd, page, 0, pageSize, (pgno - 1) * pageSize);
    pageChecksumInto(pgno, page, halves, 0);
    if (theirs && theirs[at] === halves[0] && theirs[at + 1] === halves[1]) return;
    encoded.add(pgno, page);
  };
  let compared = 0;
  for await (const chunk of source?.chunks() ?? []) {
    const theirs = parseChecksums(chunk);
    const end = Math.min(commitPages, compared + chunk.length / CHECKSUM_BYTES);
    for (let pgno = compared + 1; pgno <= end; pgno += 1) {
      look(pgno, theirs, 2 * (pgno - compared - 1));
      if (pgno % TURN_PAGES === 0) await nextTurn();
    }
    compared = end;
  }
  for (let pgno = compared + 1; pgno <= commitPages; pgno += 1) {
    look(pgno, undefined, 0);
    if (pgno % TURN_PAGES === 0) await nextTurn();
  }
}

/** Files that are removed in the end. */
class Temporary {
  readonly #dir: string;
  readonly #paths: string[] = [];
  readonly #fds: number[] = [];

  constructor(dir: string) {
    this.#dir = dir;
  }

  open(): { readonly fd: number; readonly path: string } {
    const path = join(this.#dir, `follow-${randomUUID()}`);
    const fd = openSync(path, 'wx+');
    this.#paths.push(path);
    this.#fds.push(fd);
    return { fd, path };
  }

  /** A file of somebody else's, who removes it. */
  adopt(path: string): number {
    const fd = openSync(path, 'r');
    this.#fds.push(fd);
    return fd;
  }

  remove(): void {
    for (const fd of this.#fds) closeSync(fd);
    for (const path of this.#paths) rmSync(path, { force: true });
  }
}

/** An LTX file that is made for our log: in memory, or on disk once it is large. */
class Encoded {
  readonly #encoder = new LtxEncoder();
  readonly #temporary: Temporary;
  readonly #fields: LtxHeaderFields & { epoch: bigint };
  #chunks: Buffer[] = [];
  #sizeBytes = 0;
  #file: { readonly fd: number; readonly path: string } | undefined;

  constructor(temporary: Temporary, fields: LtxHeaderFields & { epoch: bigint }) {
    this.#temporary = temporary;
    this.#fields = fields;
    this.#encoder.begin(fields, (chunk) => this.#write(chunk));
  }

  add(pgno: number, page: Uint8Array): void {
    this.#encoder.addPage(pgno, page);
  }

  async receive(
    store: ReplicationStore,
    name: string,
    postApplyChecksum: bigint,
    replacement?: Parameters<ReplicationStore['receive']>[2],
  ): Promise<void> {
    const { sizeBytes } = this.#encoder.end(postApplyChecksum);
    const { pageSize, commitPages, minTxid, maxTxid, preApplyChecksum, epoch } = this.#fields;
    const meta = {
      minTxid,
      maxTxid,
      preApplyChecksum,
      postApplyChecksum,
      pageSize,
      commitPages,
      epoch,
      sizeBytes,
    };
    const incoming = await store.receive(name, meta, replacement);
    try {
      if (!this.#file) for (const chunk of this.#chunks) await incoming.write(chunk);
      else {
        const pieces = createReadStream(this.#file.path, { highWaterMark: PIECE_BYTES });
        for await (const piece of pieces as AsyncIterable<Buffer>) await incoming.write(piece);
      }
    } catch (error) {
      await incoming.abort();
      throw error;
    }
    await incoming.finish({ durable: false });
  }

  #write(chunk: Buffer): void {
    this.#sizeBytes += chunk.length;
    if (!this.#file && this.#sizeBytes > SMALL_BYTES) {
      this.#file = this.#temporary.open();
      for (const earlier of this.#chunks.splice(0)) writeFully(this.#file.fd, earlier);
    }
    if (this.#file) writeFully(this.#file.fd, chunk);
    else this.#chunks.push(Buffer.from(chunk));
  }
}
