import { randomBytes } from 'node:crypto';

import { KiteError } from '../errors.js';
import { frameOffset, buildWalHeader, FRAME_HEADER_BYTES, parseWalHeader, sealFrame } from '../sqlite/wal.js';
import type { WalChecksum, WalHeaderFields } from '../sqlite/wal.js';
import {
  parseWalIndexHeader,
  planWalIndexAppend,
  WAL_INDEX_BLOCK_BYTES,
  WAL_INDEX_HEADER_BYTES,
  type WalIndexHeader,
} from '../sqlite/wal-index.js';
import { writeFully } from '../util/files.js';
import { readFully } from './descriptor-io.js';
import type { DatabaseFiles } from './database-files.js';

/** The mount serves one request at a time per database: a bigger write would hold up the others (trap 17). */
const PIECE_BYTES = 1 << 20;

/**
 * One transaction appended to the WAL the way SQLite's sqlite3WalFrames does it (DESIGN §6). The caller holds the
 * WAL write lock from `begin` to the end. Until `commit` nothing of it is seen by anyone: the frames are past
 * the last one of the wal-index, and none of them is a commit frame.
 */
export class WalTransaction {
  readonly #files: DatabaseFiles;
  readonly #index: WalIndexHeader;
  readonly #wal: WalHeaderFields;
  readonly #pageSize: number;
  readonly #pgnos: number[] = [];
  readonly #buffer: Buffer;
  #buffered = 0;
  #sealed = 0;
  #checksum: WalChecksum;
  #offset: number;

  private constructor(files: DatabaseFiles, index: WalIndexHeader, pageSize: number, frames: number) {
    this.#files = files;
    this.#index = index;
    this.#pageSize = pageSize;
    if (index.mxFrame === 0) {
      const { bytes, header } = buildWalHeader(newWal(files, index, pageSize));
      writeFully(files.walFd, bytes, 0);
      this.#wal = header;
      this.#checksum = header;
    } else {
      this.#wal = runningWal(files, index);
      this.#checksum = index;
    }
    this.#offset = frameOffset(index.mxFrame + 1, pageSize);
    const frameBytes = FRAME_HEADER_BYTES + pageSize;
    const perPiece = Math.floor(PIECE_BYTES / frameBytes);
    this.#buffer = Buffer.allocUnsafeSlow(Math.min(perPiece, Math.max(1, frames)) * frameBytes);
  }

  /**
   * Reads where the WAL ends: somebody else may have restarted it since (trap 15). Undefined when pages of this size cannot
   * go into it, so that it has to be restarted first. `frames`: about how many will come. Throws ERR_APPLIER_IO when `-wal` and `-shm` do not belong together.
   */
  static begin(files: DatabaseFiles, pageSize: number, frames: number): WalTransaction | undefined {
    const index = readIndexHeader(files.shmFd);
    const fits = index.mxFrame === 0 || (index.pageSize === pageSize && !index.bigEndianChecksum);
    return fits ? new WalTransaction(files, index, pageSize, frames) : undefined;
  }

  get frames(): number {
    return this.#pgnos.length;
  }

  /** Takes a copy of the page. */
  add(pgno: number, page: Uint8Array): void {
    this.#seal(0);
    if (this.#buffered === this.#buffer.length) this.#flush();
    this.#buffer.set(page, this.#buffered + FRAME_HEADER_BYTES);
    this.#buffered += FRAME_HEADER_BYTES + this.#pageSize;
    this.#pgnos.push(pgno);
  }

  /** Whether the next `add` writes: a good moment to let others run. */
  get full(): boolean {
    return this.#buffered === this.#buffer.length;
  }

  /** Ends the transaction with the database at `pages`. When it returns, readers see it. Returns the size of the WAL. */
  commit(pages: number): number {
    this.#seal(pages);
    this.#flush();
    const next: WalIndexHeader = {
      change: this.#index.change + 1,
      bigEndianChecksum: this.#wal.bigEndianChecksum,
      pageSize: this.#pageSize,
      mxFrame: this.#index.mxFrame + this.#pgnos.length,
      pages,
      salt1: this.#wal.salt1,
      salt2: this.#wal.salt2,
      ...this.#checksum,
    };
    const { shmFd } = this.#files;
    for (const write of planWalIndexAppend(
      this.#index,
      (block) => readBlock(shmFd, block),
      this.#pgnos,
      next,
    )) {
      writeFully(shmFd, write.bytes, write.offset);
    }
    return this.#offset;
  }

  /** Completes the last frame; only then is it known whether it ends the transaction. */
  #seal(commitPages: number): void {
    const pgno = this.#pgnos.at(-1);
    if (pgno === undefined || this.#sealed === this.#pgnos.length) return;
    const at = this.#buffered - FRAME_HEADER_BYTES - this.#pageSize;
    this.#checksum = sealFrame(this.#buffer, at, this.#wal, { pgno, commitPages }, this.#checksum);
    this.#sealed = this.#pgnos.length;
  }

  #flush(): void {
    writeFully(this.#files.walFd, this.#buffer.subarray(0, this.#buffered), this.#offset);
    this.#offset += this.#buffered;
    this.#buffered = 0;
  }
}

/** The header of the wal-index, which is valid whenever somebody holds the write lock. */
export function readIndexHeader(shmFd: number): WalIndexHeader {
  const bytes = Buffer.alloc(2 * WAL_INDEX_HEADER_BYTES);
  readFully(shmFd, bytes, 0);
  const header = parseWalIndexHeader(bytes);
  if (!header) throw new KiteError('ERR_APPLIER_IO', 'the header of -shm is not valid under the write lock');
  return header;
}

/** A block of `-shm`; makes the file long enough first, because readers map whole blocks only. */
function readBlock(shmFd: number, block: number): Buffer {
  const bytes = Buffer.alloc(WAL_INDEX_BLOCK_BYTES);
  const offset = block * WAL_INDEX_BLOCK_BYTES;
  if (readFully(shmFd, bytes, offset) < bytes.length) writeFully(shmFd, bytes, offset);
  return bytes;
}

/** What a restarted WAL starts with. */
function newWal(files: DatabaseFiles, index: WalIndexHeader, pageSize: number): WalHeaderFields {
  const old = readWalHeader(files.walFd);
  // Whoever restarted the WAL has put the new salts into the wal-index; a new one has none yet. Never those of
  // the header on disk: frames behind it could then count again.
  const given = index.salt1 !== 0 || index.salt2 !== 0;
  const same = old !== undefined && old.salt1 === index.salt1 && old.salt2 === index.salt2;
  const random = randomBytes(8);
  const { salt1, salt2 } =
    given && !same ? index : { salt1: random.readUInt32BE(0), salt2: random.readUInt32BE(4) };
  const checkpointSequence = old ? (old.checkpointSequence + 1) >>> 0 : 0;
  return { bigEndianChecksum: false, pageSize, checkpointSequence, salt1, salt2 };
}

function runningWal(files: DatabaseFiles, index: WalIndexHeader): WalHeaderFields {
  const header = readWalHeader(files.walFd);
  if (!header || header.salt1 !== index.salt1 || header.salt2 !== index.salt2) {
    throw new KiteError('ERR_APPLIER_IO', 'the header of -wal is not the one that -shm says');
  }
  return header;
}

function readWalHeader(walFd: number): WalHeaderFields | undefined {
  const bytes = Buffer.alloc(32);
  return parseWalHeader(bytes.subarray(0, readFully(walFd, bytes, 0)));
}
