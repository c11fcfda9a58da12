import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { KiteError } from '../errors.js';
import { joinHalves } from '../ltx/checksum.js';
import { isErrno, replaceFile } from '../util/files.js';
import type { EpochPosition } from './types.js';

/** Bytes 18 and 19 of page 1 as the primary has them (DESIGN §6): 1 = rollback journal, 2 = WAL. */
export interface JournalVersions {
  readonly write: number;
  readonly read: number;
}

/** What the `checksums` file says beside the checksums themselves. */
export interface ChecksumsFlush {
  readonly position: EpochPosition;
  readonly pageSize: number;
  /** The primary's bytes 18 and 19, which the local page 1 need not have. */
  readonly journalVersions: JournalVersions;
}

/*
 * The file: 64 bytes of header, 8 bytes per page (high and low half, little-endian), SHA-256 of all that.
 *   0 magic, 8 page size u32, 12 pages u32, 16 epoch u64, 24 TXID u64, 32 checksum u64, 40 write, 41 read version
 */
const MAGIC = Buffer.from('KITESUM1', 'latin1');
const HEADER_BYTES = 64;
const DIGEST_BYTES = 32;

/**
 * The checksum of each page of one database and the rolling checksum over all of them. A checksum is
 * handed in and out as two unsigned 32-bit halves: no bigint is made per page. The lock page has none.
 * It belongs to one thread at a time; the `checksums` file hands it over.
 */
export class PageChecksums {
  /** High and low half per page; all zero past `#pages`. */
  #halves: Uint32Array<ArrayBuffer>;
  #pages = 0;
  #xorHigh = 0;
  #xorLow = 0;

  constructor() {
    this.#halves = new Uint32Array(2048);
  }

  /** Database size in pages. */
  get pages(): number {
    return this.#pages;
  }

  /** Rolling checksum of the database: what a Position holds. `1 << 63` when empty. */
  get checksum(): bigint {
    return joinHalves(this.#xorHigh | 0x80000000, this.#xorLow);
  }

  /** High half of a page's checksum; 0 (with low 0) = no checksum: the lock page, or past the end. */
  high(pgno: number): number {
    return this.#halves[pgno * 2 - 2] ?? 0;
  }

  low(pgno: number): number {
    return this.#halves[pgno * 2 - 1] ?? 0;
  }

  /** Whether a page's checksum is this one. */
  matches(pgno: number, high: number, low: number): boolean {
    return this.high(pgno) === high >>> 0 && this.low(pgno) === low >>> 0;
  }

  /** Sets a page's checksum; grows the database to `pgno` when it was smaller. */
  set(pgno: number, high: number, low: number): void {
    if (pgno > this.#pages) this.resize(pgno);
    const at = pgno * 2 - 2;
    this.#xorHigh ^= this.#halves[at]! ^ high;
    this.#xorLow ^= this.#halves[at + 1]! ^ low;
    this.#halves[at] = high;
    this.#halves[at + 1] = low;
  }

  /** Sets the size in pages; checksums past it are taken out. Growing adds pages without a checksum. */
  resize(pages: number): void {
    if (pages * 2 > this.#halves.length) {
      // Twice the size, so that growing page by page copies each checksum a few times in all.
      const grown = new Uint32Array(Math.max(pages * 2, this.#halves.length * 2));
      grown.set(this.#halves.subarray(0, this.#pages * 2));
      this.#halves = grown;
    }
    for (let at = pages * 2; at < this.#pages * 2; at += 2) {
      this.#xorHigh ^= this.#halves[at]!;
      this.#xorLow ^= this.#halves[at + 1]!;
      this.#halves[at] = 0;
      this.#halves[at + 1] = 0;
    }
    this.#pages = pages;
  }

  clear(): void {
    this.resize(0);
  }

  /**
   * Writes the `checksums` file durably and atomically: after a crash the old file is there or the new one.
   * An old one is right too: it says its position, and pages named by later LTX files are computed again.
   * Throws ERR_INTERNAL when `flush.position.checksum` is not `checksum`.
   */
  save(path: string, flush: ChecksumsFlush): void {
    if (flush.position.checksum !== this.checksum) {
      throw new KiteError(
        'ERR_INTERNAL',
        `checksums of position ${flush.position.txid} make ${this.checksum.toString(16)}, not ${flush.position.checksum.toString(16)}`,
      );
    }
    const header = Buffer.alloc(HEADER_BYTES);
    MAGIC.copy(header);
    header.writeUInt32LE(flush.pageSize, 8);
    header.writeUInt32LE(this.#pages, 12);
    header.writeBigUInt64LE(flush.position.epoch, 16);
    header.writeBigUInt64LE(flush.position.txid, 24);
    header.writeBigUInt64LE(flush.position.checksum, 32);
    header.writeUInt8(flush.journalVersions.write, 40);
    header.writeUInt8(flush.journalVersions.read, 41);
    const halves = Buffer.from(this.#halves.buffer, 0, this.#pages * 8);
    const digest = createHash('sha256').update(header).update(halves).digest();
    try {
      replaceFile(path, header, halves, digest);
    } catch (error) {
      if (!isErrno(error, 'ENOSPC', 'EDQUOT')) throw error;
      throw new KiteError('ERR_STORE_FULL', `no space for ${path}`, { cause: error });
    }
  }

  /** Reads a `checksums` file; undefined when there is none or it is damaged (then rebuild). */
  static load(path: string): { checksums: PageChecksums; flush: ChecksumsFlush } | undefined {
    let bytes: Buffer;
    try {
      bytes = readFileSync(path);
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return undefined;
      throw error;
    }
    const body = bytes.subarray(0, Math.max(0, bytes.length - DIGEST_BYTES));
    if (body.length < HEADER_BYTES || !body.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
    if (!createHash('sha256').update(body).digest().equals(bytes.subarray(body.length))) return undefined;
    const pages = body.readUInt32LE(12);
    const position = {
      epoch: body.readBigUInt64LE(16),
      txid: body.readBigUInt64LE(24),
      checksum: body.readBigUInt64LE(32),
    };
    const checksums = new PageChecksums();
    checksums.resize(pages);
    for (let pgno = 1, at = HEADER_BYTES; pgno <= pages; pgno += 1, at += 8) {
      checksums.set(pgno, body.readUInt32LE(at), body.readUInt32LE(at + 4));
    }
    if (checksums.checksum !== position.checksum) return undefined;
    return {
      checksums,
      flush: {
        position,
        pageSize: body.readUInt32LE(8),
        journalVersions: { write: body.readUInt8(40), read: body.readUInt8(41) },
      },
    };
  }
}
