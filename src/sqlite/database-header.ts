import { isPageSize } from '../ltx/format.js';

/** The first 100 bytes of a database file (sqlite.org/fileformat2.html §1.3). */

export const DATABASE_HEADER_BYTES = 100;

/** Where page 1 says how it is written and read: 1 = rollback journal, 2 = WAL. */
export const WRITE_VERSION_OFFSET = 18;
export const READ_VERSION_OFFSET = 19;

export const WAL_VERSION = 2;

const MAGIC = Buffer.from('SQLite format 3\0', 'latin1');

export interface DatabaseHeader {
  /** Bytes. */
  readonly pageSize: number;
  /** Byte 18. */
  readonly writeVersion: number;
  /** Byte 19. */
  readonly readVersion: number;
  /** Bytes at the end of each page that SQLite leaves to extensions. */
  readonly reservedBytes: number;
  /** Raised by each rollback-mode transaction. */
  readonly changeCounter: number;
  /**
   * Size in pages; undefined when the last writer was older than SQLite 3.7.0 and the size of the file
   * counts instead.
   */
  readonly pageCount: number | undefined;
}

/**
 * Takes the start of a file, at least 100 bytes. Returns undefined when it is no SQLite database by the
 * rules SQLite itself applies (lockBtree in btree.c). An empty file is a database too, but has no header.
 */
export function parseDatabaseHeader(bytes: Uint8Array): DatabaseHeader | undefined {
  if (bytes.length < DATABASE_HEADER_BYTES) return undefined;
  const header = Buffer.from(bytes.buffer, bytes.byteOffset, DATABASE_HEADER_BYTES);
  if (!header.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
  const sizeField = header.readUInt16BE(16);
  const pageSize = sizeField === 1 ? 65536 : sizeField;
  const reservedBytes = header.readUInt8(20);
  if (!isPageSize(pageSize) || pageSize - reservedBytes < 480) return undefined;
  // Payload fractions: fixed by the format, and refused by SQLite when they differ.
  if (header.readUInt8(21) !== 64 || header.readUInt8(22) !== 32 || header.readUInt8(23) !== 32)
    return undefined;
  const changeCounter = header.readUInt32BE(24);
  const statedPages = header.readUInt32BE(28);
  const versionValidFor = header.readUInt32BE(92);
  return {
    pageSize,
    writeVersion: header.readUInt8(WRITE_VERSION_OFFSET),
    readVersion: header.readUInt8(READ_VERSION_OFFSET),
    reservedBytes,
    changeCounter,
    pageCount: statedPages > 0 && versionValidFor === changeCounter ? statedPages : undefined,
  };
}

const CHANGE_COUNTER_OFFSET = 24;
const SCHEMA_COOKIE_OFFSET = 40;
const VERSION_VALID_FOR_OFFSET = 92;

/**
 * Page 1 of an older state, made fit to follow on a newer one in the same database, as SQLite's backup does: counters only grow, because
 * open connections compare them with what they remember (two schemas under one cookie would be taken for the same), and the
 * journal mode is the newer one's. Returns a copy.
 */
export function carryHeader(older: Uint8Array, newer: Uint8Array): Buffer {
  const page = Buffer.from(older);
  const now = Buffer.from(newer.buffer, newer.byteOffset, DATABASE_HEADER_BYTES);
  page.set([now[WRITE_VERSION_OFFSET]!, now[READ_VERSION_OFFSET]!], WRITE_VERSION_OFFSET);
  const counter = (now.readUInt32BE(CHANGE_COUNTER_OFFSET) + 1) >>> 0;
  page.writeUInt32BE(counter, CHANGE_COUNTER_OFFSET);
  page.writeUInt32BE(counter, VERSION_VALID_FOR_OFFSET);
  page.writeUInt32BE((now.readUInt32BE(SCHEMA_COOKIE_OFFSET) + 1) >>> 0, SCHEMA_COOKIE_OFFSET);
  return page;
}
