import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { KiteError } from '../errors.js';
import { ltxFileName, parseLtxFileName, type Position, type TxidRange } from '../ltx/position.js';
import { fsyncDirectory, isErrno, writeFully } from '../util/files.js';
import { readLogFile, sortFolder, verifyLogFile, whyNotAfter, type FolderContents } from './log-files.js';
import { readSyncedTxid, syncFiles, writeSyncedTxid } from './log-sync.js';
import type { LostAndFound, LostTransactions } from './lost-and-found.js';
import type { EpochPosition, LogContents, LogFile } from './types.js';

/**
 * How many files of the log are named at a time: reading 100 000 headers at once holds the main thread for
 * seconds. Who asks comes again until there are none.
 */
export const FILES_PER_READ = 1000;

/** Ends the name of a file that `open` has set aside. */
const TORN = '.torn';
/** Ends the name of a file that is about to be the whole log. */
const NEXT = '.next';

/** What a file of the log says of itself, without where it is. */
export type LogFileMeta = Omit<LogFile, 'path'>;

/** Keeps files after a TXID from retention. */
export interface LogHold {
  move(afterTxid: bigint): void;
  release(): void;
}

/** A file of the chain; its header is read when it is first asked for. */
interface Entry extends TxidRange {
  file?: LogFile | undefined;
  sizeBytes?: number;
}

/** Descriptions of the newest files stay in memory: a log of 10 minutes at 500 commits/s would be over 200 MB of them. */
const FILES_REMEMBERED = 2000;

/**
 * The log of one database, `<data>/dbs/<encoded name>/ltx`: a chain of LTX files `<min16>-<max16>.ltx`, each of which starts where the
 * one before it ended. One thread writes (capture on a primary, the main thread on a replica); other
 * threads may have a Log of their own on the same folder and are told of new files with `noted`.
 *
 * Files are written under their final names, because at 10 000 commits a second a rename each costs half
 * as much again as the file. What a crash leaves of one is found by `open`: files after the TXID in
 * `<ltx>/synced` are read whole and verified, earlier ones were fsynced.
 */
export class Log {
  readonly #directory: string;
  #entries: Entry[] = [];
  #last: LogFile | undefined;
  #syncedTxid: bigint;
  readonly #holds = new Set<{ afterTxid: bigint }>();
  /** Files that the newest snapshot has taken the place of; removed once it is durable. */
  #superseded: string[] = [];
  /** Files that are out of the log and still there. */
  readonly #doomed = new Set<string>();
  #removing = Promise.resolve();
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #syncError: unknown;
  #temporaries = 0;
  #setAside: string[] = [];

  private constructor(directory: string) {
    this.#directory = directory;
    this.#syncedTxid = readSyncedTxid(directory);
  }

  /**
   * Opens the log in `directory` (made when missing). With `repair`, which only the owner does and
   * before other threads open it: removes temporary files and renames torn files at the end, and what
   * comes after them, to `*.torn` (see `setAside`). Throws ERR_STORE_LOG_DAMAGED, changing nothing, when
   * a file that was durable is damaged or missing.
   */
  static open(directory: string, options: { repair: boolean }): Log {
    mkdirSync(directory, { recursive: true });
    const log = new Log(directory);
    if (options.repair) log.#repairReplacement();
    if (options.repair) log.#repair();
    else log.#view();
    return log;
  }

  /**
   * Opens a log of which another thread's Log says what it holds, which may not change any more: to list its folder would take
   * 1.5 µs for each file.
   */
  static openAs(directory: string, { txids, last }: LogContents): Log {
    const log = new Log(directory);
    for (let i = 0; i < txids.length; i += 2)
      log.#entries.push({ minTxid: txids[i]!, maxTxid: txids[i + 1]! });
    log.#last = last;
    const newest = log.#entries.at(-1);
    if (newest) newest.file = last;
    return log;
  }

  /** See `openAs`. */
  get contents(): LogContents {
    const txids = new BigUint64Array(this.#entries.length * 2);
    for (const [i, { minTxid, maxTxid }] of this.#entries.entries()) {
      txids[i * 2] = minTxid;
      txids[i * 2 + 1] = maxTxid;
    }
    return { txids, last: this.#last };
  }

  /** Names of the files that `open` has set aside, for the log of the daemon. */
  get setAside(): readonly string[] {
    return this.#setAside;
  }

  /** End of the log, or undefined when it is empty. */
  get lastPosition(): EpochPosition | undefined {
    const last = this.#last;
    return last && { txid: last.maxTxid, checksum: last.postApplyChecksum, epoch: last.epoch };
  }

  /** The last file, or undefined when the log is empty. */
  get lastFile(): LogFile | undefined {
    return this.#last;
  }

  /** The oldest file, or undefined when the log is empty. */
  get firstFile(): LogFile | undefined {
    return this.#entries.length > 0 ? this.#file(0) : undefined;
  }

  /** Whether the log alone makes the database: it begins with all of it. */
  get beginsWithDatabase(): boolean {
    return this.#entries[0]?.minTxid === 1n;
  }

  /** How many files there are. */
  get fileCount(): number {
    return this.#entries.length;
  }

  /** A name for a file to be prepared and given to `appendPrepared`; in the log's folder, so that a rename is enough. */
  temporaryPath(): string {
    this.#temporaries += 1;
    return join(this.#directory, `${process.pid}-${Date.now()}-${this.#temporaries}.tmp`);
  }

  /**
   * Adds a whole LTX file that is in memory. Not durable until `sync`. It must follow the end of the
   * log (TXID, checksum, epoch not lower) or be a snapshot that is newer than everything here, which
   * then replaces it. Throws ERR_STORE_LOG_ORDER, ERR_STORE_FULL; then nothing has changed.
   */
  append(bytes: Uint8Array, meta: LogFileMeta): LogFile {
    this.#checkOrder(meta);
    const path = join(this.#directory, ltxFileName(meta));
    try {
      // 'wx': a file of that name that is not in the chain is somebody's mistake, never overwritten.
      const fd = openSync(path, 'wx', 0o644);
      try {
        writeFully(fd, bytes);
      } catch (error) {
        rmSync(path, { force: true });
        throw error;
      } finally {
        closeSync(fd);
      }
    } catch (error) {
      throw asStoreError(path, error);
    }
    return this.#appended({ ...meta, sizeBytes: bytes.length, path });
  }

  /** As `append`, for a file written to `temporaryPath()`. On an error that file is still there. */
  appendPrepared(temporaryPath: string, meta: LogFileMeta): LogFile {
    this.#checkOrder(meta);
    const path = join(this.#directory, ltxFileName(meta));
    try {
      renameSync(temporaryPath, path);
    } catch (error) {
      throw asStoreError(path, error);
    }
    return this.#appended({ ...meta, path });
  }

  /** Tells this Log of a file that another thread's Log has appended. */
  noted(file: LogFile): void {
    if (this.#last && file.maxTxid <= this.#last.maxTxid) return;
    this.#appended(file);
  }

  /** Makes everything appended so far durable. Callers that meet share one round of fsyncs. */
  sync(): Promise<void> {
    if (this.#next) return this.#next;
    if (!this.#running) return this.#round();
    // The running round may have begun before the caller's file was there: the next one has it.
    this.#next = this.#running
      .catch(() => undefined)
      .then(() => {
        this.#next = undefined;
        return this.#round();
      });
    return this.#next;
  }

  /**
   * Files after a position, oldest first; undefined when the log does not hold that position. Reads the
   * headers of files it has not seen yet; at most `limit` files are returned.
   */
  filesAfter(position: Position, limit = Number.POSITIVE_INFINITY): LogFile[] | undefined {
    const files: LogFile[] = [];
    try {
      if (!this.contains(position)) return undefined;
      const end = Math.min(this.#entries.length, this.#firstAfter(position.txid) + limit);
      for (let i = this.#firstAfter(position.txid); i < end; i += 1) files.push(this.#file(i));
    } catch (error) {
      // Retention in another thread has removed files that this Log still lists.
      if (!(error instanceof KiteError) || !isErrno(error.cause, 'ENOENT')) throw error;
      const missing = this.#entries.findLastIndex(
        (entry) => !existsSync(join(this.#directory, ltxFileName(entry))),
      );
      this.#entries.splice(0, missing + 1);
      return undefined;
    }
    return files;
  }

  /** As `filesAfter`, by their names only: without a look into any of them. */
  rangesAfter(position: Position, limit: number): TxidRange[] | undefined {
    if (!this.contains(position)) return undefined;
    const first = this.#firstAfter(position.txid);
    return this.#entries.slice(first, first + limit).map(({ minTxid, maxTxid }) => ({ minTxid, maxTxid }));
  }

  /**
   * Whether the history here went through this position and can go on from it. TXID and checksum decide:
   * equal checksums are equal pages, under whatever epoch. A position inside a file (trap 21) is not one to
   * go on from.
   */
  contains(position: Position): boolean {
    const after = this.#firstAfter(position.txid);
    const before = this.#entries[after - 1];
    if (before) {
      return (
        before.maxTxid === position.txid && this.#file(after - 1).postApplyChecksum === position.checksum
      );
    }
    const first = this.#entries[0];
    return (
      first !== undefined &&
      first.minTxid === position.txid + 1n &&
      this.#file(0).preApplyChecksum === position.checksum
    );
  }

  /** Whether there is a file of which retention can think that all of it is below `txid`: the last one always stays. */
  endsBefore(txid: bigint): boolean {
    return this.#entries.length > 1 && this.#entries[0]!.maxTxid < txid;
  }

  /** Whether there are older files than the newest ones that are within `maxBytes` together. */
  exceeds(maxBytes: number): boolean {
    return this.#newestWithin(maxBytes) > 0;
  }

  /** Keeps the files after `afterTxid` from `removeBefore` until released. */
  hold(afterTxid: bigint): LogHold {
    const held = { afterTxid };
    this.#holds.add(held);
    return {
      move: (txid) => {
        held.afterTxid = txid;
      },
      release: () => this.#holds.delete(held),
    };
  }

  /**
   * Retention: removes files whose transactions are all below `txid` and that nobody holds; the last file
   * always stays. Returns them. They are out of the log at once; the files go one by one in the
   * background, because an unlink can take milliseconds on a busy disk. Oldest first, so that a crash leaves a
   * chain, only a longer one.
   */
  removeBefore(txid: bigint): TxidRange[] {
    let limit = txid - 1n;
    for (const held of this.#holds) if (held.afterTxid < limit) limit = held.afterTxid;
    let count = 0;
    while (count < this.#entries.length - 1 && this.#entries[count]!.maxTxid <= limit) {
      count += 1;
    }
    const removed = this.#entries.splice(0, count);
    this.#removeLater(removed.map((entry) => join(this.#directory, ltxFileName(entry))));
    return removed;
  }

  /**
   * As `removeBefore` for what makes the log larger than `maxBytes`, whoever holds it: a replica that lags so far gets the
   * pages that differ instead. Files after `lastTxid`, and the last one, stay. Returns how many were removed, and whether
   * somebody held one of them.
   */
  trimTo(maxBytes: number, lastTxid: bigint): { readonly count: number; readonly wasHeld: boolean } {
    const removed = this.#entries.splice(
      0,
      Math.min(this.#newestWithin(maxBytes), this.#firstAfter(lastTxid)),
    );
    this.#removeLater(removed.map((entry) => join(this.#directory, ltxFileName(entry))));
    const end = removed.at(-1)?.maxTxid ?? 0n;
    return { count: removed.length, wasHeld: [...this.#holds].some((held) => held.afterTxid < end) };
  }

  /**
   * The end of what was written under this epoch and earlier ones: where a history with other transactions of a later epoch
   * may leave this one. Undefined when the log does not reach back to there.
   */
  endOfEpoch(epoch: bigint): EpochPosition | undefined {
    let low = 0;
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#file(middle).epoch > epoch) high = middle;
      else low = middle + 1;
    }
    if (low === 0) return undefined;
    const last = this.#file(low - 1);
    return { txid: last.maxTxid, checksum: last.postApplyChecksum, epoch: last.epoch };
  }

  /**
   * Makes a durable file at `temporaryPath()`, which need not follow anything here, the whole log. A crash leaves the log as it
   * was, or the next `open` with `repair` makes it this file: what was durable here is never gone before the file counts.
   */
  async replaceWith(temporaryPath: string, meta: LogFileMeta): Promise<LogFile> {
    const path = join(this.#directory, ltxFileName(meta));
    await this.#removing;
    this.#lowerSynced(0n);
    // Left by an attempt that failed: only one may count.
    for (const name of readdirSync(this.#directory)) {
      if (name.endsWith(NEXT)) rmSync(join(this.#directory, name));
    }
    renameSync(temporaryPath, path + NEXT);
    fsyncDirectory(this.#directory);
    const entries = this.#entries.splice(0);
    const old = [
      ...this.#superseded.splice(0),
      ...entries.map((entry) => join(this.#directory, ltxFileName(entry))),
    ];
    this.#last = undefined;
    for (const gone of old) {
      await unlink(gone).catch((error: unknown) => {
        if (!isErrno(error, 'ENOENT')) throw error;
      });
    }
    this.#finishReplacement(ltxFileName(meta));
    return this.#appended({ ...meta, path });
  }

  #finishReplacement(name: string): void {
    const path = join(this.#directory, name);
    // The names that are gone must not come back beside it.
    fsyncDirectory(this.#directory);
    renameSync(path + NEXT, path);
    fsyncDirectory(this.#directory);
  }

  /** A crash in `replaceWith`, after the new file counted. */
  #repairReplacement(): void {
    const names = readdirSync(this.#directory);
    const next = names.find((name) => name.endsWith(NEXT))?.slice(0, -NEXT.length);
    if (next === undefined) return;
    for (const name of names) if (parseLtxFileName(name)) rmSync(join(this.#directory, name));
    this.#finishReplacement(next);
  }

  /**
   * Gives up the transactions after `txid`: their files are moved to lost+found, newest first. A file
   * that holds TXIDs on both sides goes too. Returns the folder in lost+found, or undefined when there were none.
   */
  setAsideAfter(
    txid: bigint,
    lostAndFound: LostAndFound,
    reason: string,
    lost?: LostTransactions,
  ): string | undefined {
    const keep = this.#entries.findIndex((entry) => entry.maxTxid > txid);
    if (keep === -1) return undefined;
    // What a snapshot has replaced would count again without it.
    for (const path of this.#doomed) rmSync(path, { force: true });
    this.#doomed.clear();
    const end = keep > 0 ? this.#file(keep - 1) : undefined;
    // Before other files get these TXIDs: they would count as durable, and not be verified at a start.
    this.#lowerSynced(end?.maxTxid ?? 0n);
    const replaced = keep === 0 ? this.#superseded.splice(0) : [];
    const given = this.#entries.slice(keep).map((entry) => join(this.#directory, ltxFileName(entry)));
    const paths = [...replaced, ...given];
    const encodedName = basename(dirname(this.#directory));
    const directory = lostAndFound.setAside(encodedName, paths, reason, lost);
    this.#entries.length = keep;
    this.#last = end;
    return directory;
  }

  /** Makes everything durable and ends use. */
  async close(): Promise<void> {
    await this.sync();
    await this.#removing;
  }

  #repair(): void {
    const { names, chain, superseded, stray, temporary } = readFolder(this.#directory);
    // Nobody has seen these: a file counts from its rename on.
    for (const name of temporary) rmSync(join(this.#directory, name), { force: true });
    const bad = this.#verifyUnsynced(chain);
    if (bad === undefined) return this.#repair();
    const aside = [...chain.slice(bad), ...stray];
    if (aside.length > 0) {
      this.#refuseDurable(aside);
      // Newest first: at every moment what is left is a chain.
      for (const range of aside.toReversed()) {
        const name = ltxFileName(range);
        renameSync(join(this.#directory, name), join(this.#directory, name + TORN));
        this.#setAside.unshift(name);
      }
      fsyncDirectory(this.#directory);
      // A torn snapshot had older files behind it, which count again.
      if (superseded.length > 0) return this.#repair();
    }
    this.#entries = chain.slice(0, bad);
    for (const name of pastRetention(names, this.#entries))
      rmSync(join(this.#directory, name), { force: true });
    this.#superseded = superseded.map((range) => join(this.#directory, ltxFileName(range)));
    if (this.#entries.length > 0) this.#last = this.#file(this.#entries.length - 1);
    // Somebody has removed files: new ones with these TXIDs are not durable yet.
    if (this.#syncedTxid > (this.#last?.maxTxid ?? 0n)) this.#lowerSynced(this.#last?.maxTxid ?? 0n);
  }

  /**
   * Index of the first file that is torn or does not follow; the chain's length when all is well. undefined when
   * retention in another thread has removed a file since it was listed: gone is not torn.
   */
  #verifyUnsynced(chain: readonly Entry[]): number | undefined {
    let last: LogFile | undefined;
    for (const [i, entry] of chain.entries()) {
      if (entry.maxTxid <= this.#syncedTxid) continue;
      try {
        const file = verifyLogFile(join(this.#directory, ltxFileName(entry)));
        last ??= i > 0 ? this.#read(chain[i - 1]!) : undefined;
        if (last && whyNotAfter(last, file)) return i;
        entry.file = file;
        last = file;
      } catch (error) {
        if (!(error instanceof KiteError) || error.code !== 'ERR_STORE_LOG_DAMAGED') throw error;
        return isErrno(error.cause, 'ENOENT') ? undefined : i;
      }
    }
    return chain.length;
  }

  /** A crash takes no file that was fsynced: when one of those is unusable, a person must look. */
  #refuseDurable(ranges: readonly TxidRange[]): void {
    const durable = ranges.find((range) => range.maxTxid <= this.#syncedTxid);
    if (!durable) return;
    throw new KiteError(
      'ERR_STORE_LOG_DAMAGED',
      `${join(this.#directory, ltxFileName(durable))} does not follow the files before it: one is missing`,
    );
  }

  /** The folder as another thread keeps it; its newest file may be half written, and will be `noted`. */
  #view(): void {
    this.#entries = [...readFolder(this.#directory).chain];
    while (this.#entries.length > 0) {
      try {
        this.#last = verifiedIfNew(this.#entries.at(-1)!, this.#directory, this.#syncedTxid);
        this.#entries.at(-1)!.file = this.#last;
        return;
      } catch (error) {
        if (this.#entries.at(-1)!.maxTxid <= this.#syncedTxid) throw error;
        this.#entries.pop();
      }
    }
  }

  #checkOrder(meta: LogFileMeta): void {
    const last = this.#last;
    if (!last) return;
    const isNewSnapshot = meta.minTxid === 1n && meta.maxTxid > last.maxTxid && meta.epoch >= last.epoch;
    const why = isNewSnapshot ? undefined : whyNotAfter(last, meta);
    if (why) throw new KiteError('ERR_STORE_LOG_ORDER', `${this.#directory} cannot take ${why}`);
  }

  #appended(file: LogFile): LogFile {
    if (file.minTxid === 1n && this.#entries.length > 0) {
      this.#superseded.push(...this.#entries.map((entry) => join(this.#directory, ltxFileName(entry))));
      this.#entries = [];
    }
    this.#entries.push({ minTxid: file.minTxid, maxTxid: file.maxTxid, file });
    const older = this.#entries.at(-1 - FILES_REMEMBERED);
    if (older?.file) {
      older.sizeBytes = older.file.sizeBytes;
      older.file = undefined;
    }
    this.#last = file;
    return file;
  }

  #round(): Promise<void> {
    const round = this.#syncRound().finally(() => {
      if (this.#running === round) this.#running = undefined;
    });
    this.#running = round;
    return round;
  }

  async #syncRound(): Promise<void> {
    // The kernel reports a failed write-back once and then takes the pages for clean: a later fsync that
    // works would prove nothing.
    if (this.#syncError !== undefined) throw this.#syncError;
    // Another thread's Log on this folder may have synced more than this one.
    const marker = readSyncedTxid(this.#directory);
    if (marker > this.#syncedTxid && marker <= (this.#last?.maxTxid ?? 0n)) this.#syncedTxid = marker;
    const target = this.#entries.at(-1);
    if (!target || target.maxTxid <= this.#syncedTxid) return;
    const superseded = this.#superseded;
    this.#superseded = [];
    const from = this.#firstAfter(this.#syncedTxid);
    const paths = this.#entries.slice(from).map((entry) => join(this.#directory, ltxFileName(entry)));
    try {
      await syncFiles(this.#directory, paths);
    } catch (error) {
      this.#syncError = asStoreError(this.#directory, error);
      throw this.#syncError;
    }
    // setAsideAfter may have given files up meanwhile; then the marker stays as low as it has put it.
    if (this.#entries[this.#firstAfter(target.maxTxid) - 1] !== target) return;
    this.#syncedTxid = target.maxTxid;
    writeSyncedTxid(this.#directory, target.maxTxid, false);
    this.#removeLater(superseded);
  }

  /**
   * A file that cannot be removed stays until the next start or retention finds it: no harm but its space. Each is
   * renamed first: an unlink under way never meets a new file of the same TXIDs.
   */
  #removeLater(paths: readonly string[]): void {
    for (const path of paths) this.#doomed.add(path);
    this.#removing = this.#removing.then(async () => {
      for (const path of paths) {
        const temporary = this.temporaryPath();
        if (this.#doomed.delete(path) && isRenamed(path, temporary)) await unlink(temporary).catch(() => {});
      }
    });
  }

  /** Index of the first of the newest files that are within `maxBytes` together; the last one is, whatever its size. */
  #newestWithin(maxBytes: number): number {
    let bytes = 0;
    let first = this.#entries.length;
    while (first > 0) {
      bytes += this.#sizeOf(this.#entries[first - 1]!);
      if (bytes > maxBytes && first < this.#entries.length) break;
      first -= 1;
    }
    return first;
  }

  #lowerSynced(txid: bigint): void {
    if (txid >= this.#syncedTxid) return;
    writeSyncedTxid(this.#directory, txid, true);
    this.#syncedTxid = txid;
  }

  /** Index of the first file that ends after `txid`. */
  #firstAfter(txid: bigint): number {
    let low = 0;
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#entries[middle]!.maxTxid > txid) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #file(index: number): LogFile {
    const entry = this.#entries[index]!;
    entry.file ??= this.#read(entry);
    return entry.file;
  }

  #sizeOf(entry: Entry): number {
    entry.sizeBytes ??=
      entry.file?.sizeBytes ??
      statSync(join(this.#directory, ltxFileName(entry)), { throwIfNoEntry: false })?.size ??
      0;
    return entry.sizeBytes;
  }

  #read(entry: Entry): LogFile {
    return entry.file ?? readLogFile(join(this.#directory, ltxFileName(entry)));
  }
}

/**
 * What is in a log's folder. A listing is not of one moment: while retention in another thread removes files it may
 * show an older one and lack a newer one that went in between. As the oldest go first, the file before such a hole
 * is gone too by then; when it is still there, the hole is real.
 */
function readFolder(directory: string): FolderContents & { readonly names: readonly string[] } {
  for (;;) {
    const names = readdirSync(directory);
    const contents = sortFolder(names);
    const beforeHole = contents.stray.length > 0 ? contents.chain.at(-1) : undefined;
    if (!beforeHole || existsSync(join(directory, ltxFileName(beforeHole)))) return { names, ...contents };
  }
}

function isRenamed(from: string, to: string): boolean {
  try {
    renameSync(from, to);
    return true;
  } catch {
    return false;
  }
}

/** Files set aside by earlier starts that retention would have removed by now. */
const pastRetention = (names: readonly string[], chain: readonly TxidRange[]): string[] =>
  names.filter((name) => {
    const range = name.endsWith(TORN) ? parseLtxFileName(name.slice(0, -TORN.length)) : undefined;
    return range && chain[0] && range.maxTxid < chain[0].minTxid;
  });

const verifiedIfNew = (range: TxidRange, directory: string, syncedTxid: bigint): LogFile => {
  const path = join(directory, ltxFileName(range));
  return range.maxTxid > syncedTxid ? verifyLogFile(path) : readLogFile(path);
};

function asStoreError(path: string, error: unknown): unknown {
  if (isErrno(error, 'ENOSPC', 'EDQUOT')) {
    return new KiteError('ERR_STORE_FULL', `no space for ${path}`, { cause: error });
  }
  return error;
}
