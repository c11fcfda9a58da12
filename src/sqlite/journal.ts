import { isPageSize } from '../ltx/format.js';

/**
 * The rollback journal `-journal` (sqlite.org/fileformat2.html §3, pager.c): the pages of `database` as they
 * were before the transaction. Nothing here rolls anything back: SQLite does (DESIGN §3).
 */

export const JOURNAL_HEADER_BYTES = 28;

const MAGIC = Buffer.from('d9d505f920a163d7', 'hex');

export interface JournalHeader {
  /** Size of `database` before the transaction, pages. */
  readonly oldPages: number;
  /** Headers and the first record after them start at multiples of this. */
  readonly sectorBytes: number;
  readonly pageSize: number;
}

/** Reads a journal header at `offset`; undefined when there is none that SQLite would use. */
export function parseJournalHeader(bytes: Uint8Array, offset = 0): JournalHeader | undefined {
  if (bytes.length < offset + JOURNAL_HEADER_BYTES) return undefined;
  const header = Buffer.from(bytes.buffer, bytes.byteOffset + offset, JOURNAL_HEADER_BYTES);
  if (!header.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
  const sectorBytes = header.readUInt32BE(20);
  const pageSize = header.readUInt32BE(24);
  const sectorValid = sectorBytes >= 32 && sectorBytes <= 65536 && (sectorBytes & (sectorBytes - 1)) === 0;
  if (!sectorValid || !isPageSize(pageSize)) return undefined;
  return {
    oldPages: header.readUInt32BE(16),
    sectorBytes,
    pageSize,
  };
}

/**
 * Whether a journal file would be rolled back if no process holds a RESERVED lock (hasHotJournal): the
 * database is not empty and the journal's first byte is not 0 (PERSIST mode zeroes it, TRUNCATE mode leaves
 * no byte). A hot journal that names a super-journal which is gone is committed instead.
 */
export const isHotJournal = (journalStart: Uint8Array, databaseBytes: number): boolean =>
  databaseBytes > 0 && (journalStart[0] ?? 0) !== 0;
