import fs from 'node:fs';

import { pageChecksumInto } from '../ltx/checksum.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { lockPgno } from '../ltx/format.js';
import { LtxPageIndex } from '../ltx/page-index.js';
import { READ_VERSION_OFFSET, WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import type { Log } from '../store/log.js';
import { PageChecksums, type JournalVersions } from '../store/page-checksums.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import type { PageReader } from './page-reader.js';

/** Where a database stands. */
export interface Located {
  readonly position: EpochPosition;
  readonly checksums: PageChecksums;
  readonly journalVersions: JournalVersions;
}

/** The primary's bytes 18 and 19 are one of these; the local ones need not be (DESIGN §6). */
const JOURNAL_VERSIONS: readonly JournalVersions[] = [
  { write: 1, read: 1 },
  { write: 2, read: 2 },
];

interface Candidate {
  readonly position: EpochPosition;
  /** Undefined: not known, the checksum alone says it. */
  readonly pages: number | undefined;
}

/** How many bytes are read before others get a turn. */
const TURN_BYTES = 4 << 20;

/**
 * Finds the position whose checksum the database's pages have. With `trusted` (no power cut since they were saved) only the
 * pages that the log, or the WAL, has changed since the saved checksums are computed again; else, or if that finds
 * nothing, all of them. Undefined when they match no position of the log.
 */
export async function locatePosition(
  pages: PageReader,
  log: Log,
  checksumsPath: string,
  trusted: boolean,
): Promise<Located | undefined> {
  const saved = trusted ? PageChecksums.load(checksumsPath) : undefined;
  const savedAt = saved && placeInLog(log, saved.flush.position);
  const later = savedAt && log.filesAfter(savedAt);
  if (saved && savedAt && later && saved.flush.pageSize === pages.pageSize) {
    const { checksums, flush } = saved;
    const candidates = [{ position: savedAt, pages: checksums.pages }, ...later.map(endOf)];
    await recompute(pages, checksums, changedPages(pages, checksums.pages, later), flush.journalVersions);
    const found = match(pages, checksums, candidates, flush.journalVersions);
    if (found) return found;
  }
  const candidates = wholeLog(log);
  if (candidates.length === 0) return undefined;
  const checksums = new PageChecksums();
  const [versions] = JOURNAL_VERSIONS;
  await recompute(pages, checksums, everyPage(pages.pageCount), versions!);
  return match(pages, checksums, candidates, versions!);
}

/**
 * Where a database that was at `position` stands in a log. A log that begins with a difference (DESIGN §7) begins where
 * that database is, whatever its position was called before: equal checksums are equal pages. Undefined: nowhere.
 */
export function placeInLog(log: Log, position: EpochPosition): EpochPosition | undefined {
  if (log.contains(position)) return position;
  const start = startOf(log);
  return start && start.checksum === position.checksum ? start : undefined;
}

/** Where a log begins; undefined when that is nothing, before a snapshot. */
function startOf(log: Log): EpochPosition | undefined {
  const first = log.firstFile;
  if (!first || first.minTxid === 1n) return undefined;
  return { txid: first.minTxid - 1n, checksum: first.preApplyChecksum, epoch: first.epoch };
}

/** The newest file of a log that deletes the database: what follows it makes the database from nothing. */
export const lastDeletion = (log: Log): LogFile | undefined =>
  filesOf(log).findLast(({ commitPages }) => commitPages === 0);

function filesOf(log: Log): readonly LogFile[] {
  const first = log.firstFile;
  return (first && log.filesAfter({ txid: first.minTxid - 1n, checksum: first.preApplyChecksum })) ?? [];
}

const endOf = (file: LogFile): Candidate => ({
  position: { txid: file.maxTxid, checksum: file.postApplyChecksum, epoch: file.epoch },
  pages: file.commitPages,
});

function wholeLog(log: Log): Candidate[] {
  const start = startOf(log);
  return [...(start ? [{ position: start, pages: undefined }] : []), ...filesOf(log).map(endOf)];
}

/** The newest candidate that the checksums are those of, with either journal mode in page 1. */
function match(
  pages: PageReader,
  checksums: PageChecksums,
  candidates: readonly Candidate[],
  known: JournalVersions,
): Located | undefined {
  for (const journalVersions of [known, ...JOURNAL_VERSIONS]) {
    if (pages.pageCount > 0) setPage(pages, checksums, 1, journalVersions, new Uint32Array(2));
    const found = candidates.findLast(
      ({ position, pages: count }) =>
        position.checksum === checksums.checksum && (count ?? checksums.pages) === checksums.pages,
    );
    if (found) return { position: found.position, checksums, journalVersions };
  }
  return undefined;
}

/** Checksums of all pages as they are, where they are at no position of a log. */
export async function checksumsOf(
  pages: PageReader,
  journalVersions: JournalVersions,
): Promise<PageChecksums> {
  const checksums = new PageChecksums();
  await recompute(pages, checksums, everyPage(pages.pageCount), journalVersions);
  return checksums;
}

async function recompute(
  pages: PageReader,
  checksums: PageChecksums,
  pgnos: Iterable<number>,
  journalVersions: JournalVersions,
): Promise<void> {
  const halves = new Uint32Array(2);
  let bytes = 0;
  checksums.resize(pages.pageCount);
  for (const pgno of pgnos) {
    if (pgno > pages.pageCount || pgno === lockPgno(pages.pageSize)) continue;
    setPage(pages, checksums, pgno, journalVersions, halves);
    bytes += pages.pageSize;
    if (bytes < TURN_BYTES) continue;
    bytes = 0;
    await new Promise(setImmediate);
  }
}

function setPage(
  pages: PageReader,
  checksums: PageChecksums,
  pgno: number,
  journalVersions: JournalVersions,
  halves: Uint32Array,
): void {
  const page = pages.read(pgno);
  if (pgno === 1) {
    page[WRITE_VERSION_OFFSET] = journalVersions.write;
    page[READ_VERSION_OFFSET] = journalVersions.read;
  }
  pageChecksumInto(pgno, page, halves, 0);
  checksums.set(pgno, halves[0]!, halves[1]!);
}

function* everyPage(count: number): Generator<number> {
  for (let pgno = 1; pgno <= count; pgno += 1) yield pgno;
}

/** Pages that may differ from the saved checksums: named by a later file, in the WAL, or grown since. */
function changedPages(pages: PageReader, savedPages: number, later: readonly LogFile[]): Set<number> {
  const changed = new Set(pages.walPages);
  let smallest = savedPages;
  for (const file of later) {
    for (const pgno of pgnosOf(file)) changed.add(pgno);
    smallest = Math.min(smallest, file.commitPages);
  }
  for (let pgno = smallest + 1; pgno <= pages.pageCount; pgno += 1) changed.add(pgno);
  return changed;
}

function pgnosOf(file: LogFile): Iterable<number> {
  const fd = fs.openSync(file.path, 'r');
  try {
    const decoder = LtxDecoder.fromFile(fd);
    // LiteFS's files have no index: they are read.
    if (decoder.version !== 'v1') return [...LtxPageIndex.fromFile(fd).pgnos()];
    const pgnos: number[] = [];
    while (decoder.next()) pgnos.push(decoder.pgno);
    return pgnos;
  } finally {
    fs.closeSync(fd);
  }
}
