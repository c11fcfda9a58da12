import Database from 'better-sqlite3';
import { closeSync, existsSync, ftruncateSync, openSync, renameSync, rmSync, statSync } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Destination } from '../backup/destination.js';
import type { BackupFile } from '../backup/layout.js';
import { KiteError, toKiteError } from '../errors.js';
import { formatTxid } from '../ltx/position.js';
import { fsyncDirectory, isErrno } from '../util/files.js';
import { listFiles, listGenerations } from './bucket.js';
import { DatabaseWriter, type WrittenState } from './database-writer.js';
import { fetchHeader } from './fetch.js';
import { isLevelFolder } from './inventory.js';
import { newestWhere, type Point } from './moments.js';
import { prefersGenerations, restoreGeneration } from './old-generations.js';
import { planRestore, reachOf } from './plan.js';
import { RestoreState } from './restore-state.js';
import { BadFile, handOver, PART_BYTES, SPARE_PARTS } from './hand-over.js';
import type { AppliedLtx } from './writer-thread.js';
import { Writer } from './writer.js';

/** Which state is wanted. TXIDs are the bucket's, which count uploads; the cluster's are in the files' stamps. */
export type Wanted =
  | { readonly kind: 'latest' }
  | { readonly kind: 'txid'; readonly txid: bigint }
  | { readonly kind: 'cluster-txid'; readonly txid: bigint }
  | { readonly kind: 'time'; readonly timestampMs: number };

export type IntegrityCheck = 'none' | 'quick' | 'full';

export interface RestoreRequest {
  readonly from: Destination;
  /** Of the database in the destination, with a slash at its end; empty when the destination's path is the database's. */
  readonly folder: string;
  readonly output: string;
  readonly wanted: Wanted;
  /** Requests at a time. */
  readonly parallelism: number;
  readonly integrityCheck: IntegrityCheck;
  /** The least time between two notes of how far it is. */
  readonly noteMs?: number;
  /** Takes what a person should know. */
  readonly say: (line: string) => void;
  /** Called often: bytes fetched, of how many. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

export interface Restored {
  /** The bucket's; undefined for a backup of Litestream 0.3. */
  readonly txid: bigint | undefined;
  readonly clusterTxid: bigint | undefined;
  /** Of the primary that wrote the last object; undefined when KiteFS did not. */
  readonly epoch: bigint | undefined;
  readonly timestampMs: number;
  readonly sizeBytes: number;
  readonly files: number;
  /** Whether the database's checksum was that of the commit (backups of KiteFS have it). */
  readonly verified: boolean;
}

/** How often is noted how far it is, unless the request says: a note needs an fsync of what was written. */
const NOTE_MS = 3_000;
/** A bucket whose files vanish while they are fetched is listed again so often. */
const MAX_LISTINGS = 5;

/**
 * Restores a database to a file that does not exist yet. It is written beside it and gets its name when it is whole, checked
 * and durable. Interrupted, the next call for the same file goes on after the last whole object. Memory does not grow with the database.
 *
 * An object that is missing or damaged is gone round when other objects lead to the same moment, and that is said; else
 * ERR_RESTORE_DAMAGED names what can be restored. Throws ERR_RESTORE_*, ERR_BACKUP_*.
 */
export async function restore(request: RestoreRequest): Promise<Restored> {
  const { output } = request;
  refuseExisting(output);
  const temporary = `${output}.kitefs-restore`;
  const state = RestoreState.open(`${temporary}-state`);
  try {
    const restored = await restoreInto(request, temporary, state);
    if (request.integrityCheck !== 'none') checkIntegrity(temporary, request.integrityCheck, output);
    // Looked at again: it may have been made meanwhile, and a rename would replace it.
    refuseExisting(output);
    renameSync(temporary, output);
    fsyncDirectory(dirname(output));
    state.remove();
    return restored;
  } catch (error) {
    const failed = asRestoreError(error, output);
    if (state.load() === undefined || failed.code === 'ERR_RESTORE_CHECK') {
      for (const part of ['', '-wal', '-shm']) rmSync(`${temporary}${part}`, { force: true });
      state.remove();
    } else state.close();
    throw failed;
  }
}

async function restoreInto(
  request: RestoreRequest,
  temporary: string,
  state: RestoreState,
): Promise<Restored> {
  const { from, folder, say } = request;
  const bad = new Set<string>();
  let files: BackupFile[] | undefined;
  let target: bigint | undefined;
  for (let listings = 0; ;) {
    if (!files) {
      listings += 1;
      files = (await listFiles(from, folder)).filter(({ key }) => !bad.has(key));
      const generations = await listGenerations(request);
      if (prefersGenerations(generations, files, request.wanted))
        return await restoreGeneration(request, generations, temporary);
    }
    target ??= await targetOf(request, files);
    const begun = goOn(request, files, target, temporary, state);
    const path = begun?.rest ?? planRestore(files, target);
    if (!path) throw await outOfReach(request, files, target, bad.size > 0);
    if (!begun) {
      state.save(undefined);
      closeSync(openSync(temporary, 'w'));
    }
    try {
      return await applyPath(request, { path, target, temporary, state, begun });
    } catch (error) {
      if (!(error instanceof BadFile)) throw error;
      const { key, reason } = error;
      if (reason.code === 'ERR_BACKUP_MISSING' && listings < MAX_LISTINGS) {
        // Compaction or retention may have taken it away since it was listed, and left something as good.
        files = undefined;
        continue;
      }
      if (begun) {
        // Perhaps it is only what was there that does not fit.
        state.save(undefined);
        say(`${reason.message}. Beginning anew`);
        continue;
      }
      // Of a damaged file some pages may have been written that no other file brings again.
      state.save(undefined);
      say(`${from.url}/${key} cannot be used: ${reason.message}. Looking for another way to the same moment`);
      bad.add(key);
      files = files.filter((file) => file.key !== key);
    }
  }
}

/** What an earlier call has left that can be gone on from. */
interface Begun {
  /** Keys of the files that are applied. */
  readonly done: readonly string[];
  readonly rest: readonly BackupFile[];
  /** From which of them on the file is a whole state again: the earlier call may have written pages of all before. */
  readonly wholeFrom: number;
  readonly state: WrittenState;
}

/**
 * Goes on only along the same path, and beyond its end when a later state is wanted: whatever the earlier call wrote of the
 * files after the last whole one is then written again.
 */
function goOn(
  request: RestoreRequest,
  files: readonly BackupFile[],
  target: bigint,
  temporary: string,
  state: RestoreState,
): Begun | undefined {
  const progress = existsSync(temporary) ? state.load() : undefined;
  if (!progress || progress.source !== sourceOf(request)) return undefined;
  const end = BigInt(`0x${progress.target}`);
  const byKey = new Map(files.map((file) => [file.key, file]));
  const same = progress.path.slice(progress.done).map((key) => byKey.get(key));
  const beyond = target >= end ? planRestore(files, target, end) : undefined;
  if (!beyond || !same.every((file) => file !== undefined) || same.length + beyond.length === 0)
    return undefined;
  const { pages, pageSize } = progress;
  const done = progress.path.slice(0, progress.done);
  request.say(
    `going on after ${done.length} of ${progress.path.length} objects that an earlier call has restored`,
  );
  const fd = openSync(temporary, 'r+');
  try {
    ftruncateSync(fd, pages * pageSize);
    const wholeFrom = Math.max(0, same.length - 1);
    return {
      done,
      rest: [...same, ...beyond],
      wholeFrom,
      state: DatabaseWriter.measure(fd, pageSize, pages),
    };
  } finally {
    closeSync(fd);
  }
}

const sourceOf = ({ from, folder }: RestoreRequest): string => `${from.url}/${folder}`;

/** The TXID of the bucket that is wanted. Throws ERR_RESTORE_MOMENT, ERR_RESTORE_NOTHING, ERR_BACKUP_*. */
async function targetOf(request: RestoreRequest, files: readonly BackupFile[]): Promise<bigint> {
  const { from, folder, wanted } = request;
  if (files.length === 0) {
    const inside = (await from.folders(folder)).filter(
      (name) => !isLevelFolder(name) && !name.startsWith('.'),
    );
    const names = inside.length > 0 ? `; below it are ${inside.slice(0, 10).join(', ')}` : '';
    throw new KiteError('ERR_RESTORE_NOTHING', `${from.url}/${folder} has no backup of a database${names}`);
  }
  if (wanted.kind === 'txid') return wanted.txid;
  if (wanted.kind === 'latest') return newestOf(files);
  const reach = reachOf(files);
  const newest = async (among: readonly BackupFile[]): Promise<Point | undefined> =>
    await newestWhere(
      among,
      async (file) => await readHeader(from, file),
      wanted.kind === 'time'
        ? (header) => header.timestampMs <= wanted.timestampMs
        : (header) => header.clusterChecksum !== 0n && header.clusterTxid <= wanted.txid,
    );
  const best = await newest(reach.files);
  const asked =
    wanted.kind === 'time'
      ? `at ${iso(wanted.timestampMs)}`
      : `with the cluster's TXID ${formatTxid(wanted.txid)}`;
  if (!best)
    throw new KiteError(
      'ERR_RESTORE_MOMENT',
      `${from.url} has nothing ${asked} or before${await oldestOf(request, reach.files)}`,
    );
  if (wanted.kind === 'cluster-txid' && best.header.clusterTxid !== wanted.txid)
    throw new KiteError(
      'ERR_RESTORE_MOMENT',
      `${from.url} has no state ${asked}: it is newer than the backup or was uploaded with later ones. The one before is ${describe(best)}`,
    );
  const end = newestOf(reach.files);
  const later = await newest(files.filter(({ maxTxid }) => maxTxid > end));
  // Files that should count and hang in the air. Where a later state can be had, only the single steps are gone.
  if (later) throw await outOfReach(request, files, later.file.maxTxid, false);
  return best.file.maxTxid;
}

const newestOf = (files: readonly BackupFile[]): bigint =>
  files.reduce((newest, { maxTxid }) => (maxTxid > newest ? maxTxid : newest), 0n);

/** The header of a file; undefined when it is gone or damaged: restoring looks for a way round it later. */
async function readHeader(from: Destination, file: BackupFile): Promise<Point['header'] | undefined> {
  try {
    return await fetchHeader(from, file);
  } catch (error) {
    if (/^ERR_(BACKUP_MISSING|LTX_)/.test(toKiteError(error).code)) return undefined;
    throw error;
  }
}

async function oldestOf(request: RestoreRequest, files: readonly BackupFile[]): Promise<string> {
  const [file] = files;
  const header = file && (await readHeader(request.from, file));
  return header ? `; the oldest moment is ${describe({ file, header })}` : '';
}

/** Says why a TXID cannot be restored, and what can instead. */
async function outOfReach(
  request: RestoreRequest,
  files: readonly BackupFile[],
  target: bigint,
  damage: boolean,
): Promise<KiteError> {
  const { from, wanted } = request;
  const reach = reachOf(files);
  const before = reach.files.findLast(({ maxTxid }) => maxTxid <= target);
  const header = before && (await readHeader(from, before));
  const instead = header
    ? `what can be restored is ${describe({ file: before, header })}`
    : 'nothing before it can be restored';
  const hole = reach.holes.find(({ to }) => to < target && (!before || to > before.maxTxid));
  const why = hole
    ? `TXIDs ${formatTxid(hole.from)} to ${formatTxid(hole.to)} are missing`
    : damage
      ? 'objects on the way are missing or damaged'
      : 'no object ends there';
  const exact = wanted.kind === 'txid' && !hole && !damage;
  return new KiteError(
    exact ? 'ERR_RESTORE_MOMENT' : 'ERR_RESTORE_DAMAGED',
    `${from.url}: TXID ${formatTxid(target)} cannot be restored, because ${why}; ${instead}`,
  );
}

const iso = (ms: number): string => new Date(ms).toISOString();

/** A moment, for a person: with what one would give to restore it. */
const describe = ({ file, header }: Point): string =>
  `-txid ${formatTxid(file.maxTxid)} (${header.clusterChecksum === 0n ? '' : `cluster TXID ${formatTxid(header.clusterTxid)}, `}${iso(header.timestampMs)})`;

interface Application {
  readonly path: readonly BackupFile[];
  readonly target: bigint;
  readonly temporary: string;
  readonly state: RestoreState;
  readonly begun: Begun | undefined;
}

/** Fetches, decodes and writes the files of a path. Throws BadFile for one that cannot be used. */
async function applyPath(
  request: RestoreRequest,
  { path, target, temporary, state, begun }: Application,
): Promise<Restored> {
  const { from, parallelism, onProgress } = request;
  const totalBytes = path.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const doneBefore = begun?.done ?? [];
  const applied: AppliedLtx[] = [];
  const file = await open(temporary, 'r+');
  const notes = new Notes(file, request.noteMs ?? NOTE_MS, (count) => {
    const { pageSize, pages } = applied[count - 1]!.state;
    state.save({
      source: sourceOf(request),
      target: formatTxid(target),
      path: [...doneBefore, ...path.map(({ key }) => key)],
      done: doneBefore.length + count,
      pageSize,
      pages,
    });
  });
  const writer = new Writer({
    path: temporary,
    from: begun?.state,
    buffers: parallelism + SPARE_PARTS,
    bufferBytes: PART_BYTES,
    onApplied: (ltx) => {
      applied.push(ltx!);
      notes.applied(applied.length);
    },
  });
  try {
    const objects = path.map((one, at) => ({
      ...one,
      of: { type: 'ltx', isWhole: at >= (begun?.wholeFrom ?? 0) } as const,
    }));
    await handOver({ from, objects, writer, appliedCount: () => applied.length }, (bytes, done) => {
      notes.wrote(bytes);
      onProgress?.(done, totalBytes);
    });
  } catch (error) {
    // On a full disk the note needs room: what was begun after the last whole object is of no use.
    const whole = applied.at(-1)?.state;
    if (whole) await writer.close().then(async () => await file.truncate(whole.pages * whole.pageSize));
    throw error;
  } finally {
    await writer.close();
    await notes.end();
    await file.close();
  }
  const last = applied.at(-1)!;
  return {
    txid: target,
    clusterTxid: last.moment.clusterTxid,
    epoch: last.moment.epoch,
    timestampMs: last.moment.timestampMs,
    sizeBytes: last.state.pages * last.state.pageSize,
    files: doneBefore.length + path.length,
    verified: last.moment.verified,
  };
}

/** Makes durable what was written while more is, so that the last fsync is short, and notes now and then how far it is. */
class Notes {
  readonly #file: FileHandle;
  readonly #intervalMs: number;
  readonly #save: (applied: number) => void;
  #running: Promise<void> | undefined;
  #unsyncedBytes = 0;
  #applied = 0;
  #noted = 0;
  #notedMs = Date.now();

  constructor(file: FileHandle, intervalMs: number, save: (applied: number) => void) {
    this.#file = file;
    this.#intervalMs = intervalMs;
    this.#save = save;
  }

  wrote(bytes: number): void {
    this.#unsyncedBytes += bytes;
    if (this.#unsyncedBytes >= 64 * 1024 * 1024) this.#sync();
  }

  applied(count: number): void {
    this.#applied = count;
    if (Date.now() - this.#notedMs >= this.#intervalMs) this.#sync();
  }

  #sync(): void {
    if (this.#running) return;
    const applied = this.#applied;
    this.#unsyncedBytes = 0;
    // A failure is met by the thread that writes, or by the last fsync.
    this.#running = this.#file
      .datasync()
      .then(() => {
        if (applied === this.#noted) return;
        this.#save(applied);
        this.#noted = applied;
        this.#notedMs = Date.now();
      })
      .catch(() => undefined)
      .finally(() => (this.#running = undefined));
  }

  /** Also after a failure: what is whole stays. */
  async end(): Promise<void> {
    await this.#running;
    if (this.#applied > this.#noted) {
      this.#sync();
      await this.#running;
    }
  }
}

/** Throws ERR_RESTORE_EXISTS when the file, or what SQLite would take for a part of it, is there. */
function refuseExisting(output: string): void {
  for (const path of [output, `${output}-wal`, `${output}-shm`, `${output}-journal`]) {
    const found = statSync(path, { throwIfNoEntry: false });
    if (found)
      throw new KiteError('ERR_RESTORE_EXISTS', `cannot restore, output path already exists: ${path}`);
  }
}

function checkIntegrity(temporary: string, kind: 'quick' | 'full', output: string): void {
  const db = new Database(temporary, { fileMustExist: true });
  let said: unknown;
  try {
    said = db.pragma(kind === 'quick' ? 'quick_check(10)' : 'integrity_check(10)', { simple: true });
  } catch (error) {
    said = (error as Error).message;
  } finally {
    db.close();
  }
  for (const side of ['-wal', '-shm']) rmSync(`${temporary}${side}`, { force: true });
  if (said !== 'ok')
    throw new KiteError('ERR_RESTORE_CHECK', `${output}: SQLite's ${kind} check says: ${String(said)}`);
}

function asRestoreError(error: unknown, output: string): KiteError {
  const code = toKiteError(error).code;
  if (code === 'ERR_STORE_FULL')
    return new KiteError('ERR_RESTORE_FULL', `the disk of ${output} is full`, { cause: error });
  if (error instanceof BadFile) return error.reason;
  if (isErrno(error, 'EACCES', 'EPERM', 'EROFS', 'ENOENT', 'ENOTDIR', 'EIO'))
    return new KiteError('ERR_RESTORE_FILE', `cannot write ${output} (${(error as Error).message})`, {
      cause: error,
    });
  return toKiteError(error);
}
