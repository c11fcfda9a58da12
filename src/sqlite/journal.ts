import { isPageSize, lockPgno } from '../ltx/format.js';

/**
 * The rollback journal `-journal` (sqlite.org/fileformat2.html §3, pager.c): the pages of `database` as they
 * were before the transaction. Nothing here rolls anything back: SQLite does (DESIGN §3).
 */

export const JOURNAL_HEADER_BYTES = 28;

const MAGIC = Buffer.from('d9d505f920a163d7', 'hex');
const COUNT_FROM_SIZE = 0xffffffff;

export interface JournalHeader {
  /** Records after this header; undefined = as many as the file holds (synchronous=OFF writes none). */
  readonly records: number | undefined;
  /** Start value of each record's checksum. */
  readonly nonce: number;
  /** Size of `database` before the transaction, pages. */
  readonly oldPages: number;
  /** Headers and the first record after them start at multiples of this. */
  readonly sectorBytes: number;
  readonly pageSize: number;
}

/** A page as it was before the transaction. */
export interface JournalRecord {
  readonly pgno: number;
  /** Where its bytes start in the journal. */
  readonly dataOffset: number;
}

/** Reads a journal header at `offset`; undefined when there is none that SQLite would use. */
export function parseJournalHeader(bytes: Uint8Array, offset = 0): JournalHeader | undefined {
  if (bytes.length < offset + JOURNAL_HEADER_BYTES) return undefined;
  const header = Buffer.from(bytes.buffer, bytes.byteOffset + offset, JOURNAL_HEADER_BYTES);
  if (!header.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
  const records = header.readUInt32BE(8);
  const sectorBytes = header.readUInt32BE(20);
  const pageSize = header.readUInt32BE(24);
  const sectorValid = sectorBytes >= 32 && sectorBytes <= 65536 && (sectorBytes & (sectorBytes - 1)) === 0;
  if (!sectorValid || !isPageSize(pageSize)) return undefined;
  return {
    records: records === COUNT_FROM_SIZE ? undefined : records,
    nonce: header.readUInt32BE(12),
    oldPages: header.readUInt32BE(16),
    sectorBytes,
    pageSize,
  };
}

/** The checksum of a record: the nonce and every 200th byte of the page, from its end (pager_cksum). */
function journalRecordChecksum(nonce: number, page: Uint8Array): number {
  let sum = nonce;
  for (let i = page.length - 200; i > 0; i -= 200) sum = (sum + page[i]!) | 0;
  return sum >>> 0;
}

/** The records that SQLite would play back, in order, of a journal that is in memory as a whole. */
export function* journalRecords(journal: Uint8Array): Generator<JournalRecord> {
  const bytes = Buffer.from(journal.buffer, journal.byteOffset, journal.byteLength);
  const first = parseJournalHeader(bytes);
  if (!first) return;
  let header: JournalHeader | undefined = first;
  let offset = 0;
  // A transaction that synced its journal in between has several headers, each at a sector's start.
  while (header) {
    offset += first.sectorBytes;
    const recordBytes = first.pageSize + 8;
    const fitting = Math.floor((bytes.length - offset) / recordBytes);
    // 0 records in the first header: the writer died, or runs still, before its first sync. SQLite's
    // own rollback then counts by size, but a hot journal is played back only as far as it was synced.
    const count = Math.min(header.records ?? fitting, fitting);
    for (let i = 0; i < count; i += 1, offset += recordBytes) {
      const pgno = bytes.readUInt32BE(offset);
      if (pgno === 0 || pgno === lockPgno(first.pageSize)) return;
      if (pgno > first.oldPages) continue;
      const page = bytes.subarray(offset + 4, offset + 4 + first.pageSize);
      if (bytes.readUInt32BE(offset + 4 + first.pageSize) !== journalRecordChecksum(header.nonce, page))
        return;
      yield { pgno, dataOffset: offset + 4 };
    }
    offset = Math.ceil(offset / first.sectorBytes) * first.sectorBytes;
    header = parseJournalHeader(bytes, offset);
  }
}

/**
 * The super-journal that a journal names, or undefined. Takes the end of the journal: all of it, or at least
 * the longest name and 16 bytes. The transaction counts as committed once that file is gone (trap 6).
 */
export function superJournalName(end: Uint8Array): string | undefined {
  const bytes = Buffer.from(end.buffer, end.byteOffset, end.byteLength);
  const tail = bytes.length - 16;
  if (tail < 0 || !bytes.subarray(tail + 8).equals(MAGIC)) return undefined;
  const length = bytes.readUInt32BE(tail);
  if (length === 0 || length > tail) return undefined;
  const name = bytes.subarray(tail - length, tail);
  // readSuperJournal adds the bytes up as `char`, which is signed on x86 and unsigned on ARM.
  let signed = 0;
  let unsigned = 0;
  for (const byte of name) {
    signed = (signed + ((byte << 24) >> 24)) | 0;
    unsigned = (unsigned + byte) | 0;
  }
  const stated = bytes.readInt32BE(tail + 4);
  return stated === signed || stated === unsigned ? name.toString('utf8') : undefined;
}

/**
 * Whether a journal file would be rolled back if no process holds a RESERVED lock (hasHotJournal): the
 * database is not empty and the journal's first byte is not 0 (PERSIST mode zeroes it, TRUNCATE mode leaves
 * no byte). A hot journal that names a super-journal which is gone is committed instead.
 */
export const isHotJournal = (journalStart: Uint8Array, databaseBytes: number): boolean =>
  databaseBytes > 0 && (journalStart[0] ?? 0) !== 0;
