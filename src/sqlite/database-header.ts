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
