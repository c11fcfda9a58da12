import { randomUUID } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Applier } from '../applier/applier.js';
import { databaseFolder } from '../backup/layout.js';
import type { BackupSettings } from '../backup/messages.js';
import { openDestination } from '../backup/open.js';
import type { Capture } from '../capture/capture.js';
import { KiteError, toKiteError } from '../errors.js';
import { DatabaseChecksum, pageChecksumInto } from '../ltx/checksum.js';
import { LtxEncoder } from '../ltx/encoder.js';
import { lockPgno } from '../ltx/format.js';
import { restore, type IntegrityCheck, type Restored, type Wanted } from '../restore/restore.js';
import { carryHeader, parseDatabaseHeader } from '../sqlite/database-header.js';
import type { EpochPosition } from '../store/types.js';
import { writeFully } from '../util/files.js';

/** A plan that nobody confirms is given up, with the copy on disk, after this. */
const PLAN_LIMIT_MS = 10 * 60_000;
const LOCK_LIMIT_MS = 10_000;
/** Checksums that are compared at a time: 256 KiB. */
const COMPARE_PAGES = 32_768;
/** Pages between two looks at the event loop, on which the lease is renewed. */
const STEP_PAGES = 64;

export type Progress = (doneBytes: number, totalBytes: number) => void;

/** What a rewind will change, as of when it was asked. */
export interface RewindPlan {
  /** For `commit`. */
  readonly id: string;
  readonly name: string;
  /** Where the moment was found. */
  readonly url: string;
  readonly timestampMs: number;
  /** The bucket's and the cluster's TXID of the moment; undefined: written by another program. */
  readonly txid: bigint | undefined;
  readonly clusterTxid: bigint | undefined;
  /** Where the database is now. */
  readonly position: EpochPosition;
  /** Pages that differ, of so many, and their bytes. */
  readonly pages: number;
  readonly ofPages: number;
  readonly bytes: number;
  /** All pages are written, because the page size or the journal mode leaves no other way. */
  readonly whole: boolean;
}

/** What a repair has put in place. */
export interface Repaired {
  /** Of the backup, or the node that had it. */
  readonly url: string;
  /** The node that is the primary now instead of this one. */
  readonly primary?: string | undefined;
  readonly timestampMs: number;
  readonly clusterTxid: bigint | undefined;
  readonly position: EpochPosition;
}

interface Prepared {
  readonly plan: RewindPlan;
  readonly path: string;
  readonly timer: NodeJS.Timeout;
}

export interface RewindParts {
  readonly backups: readonly BackupSettings[];
  readonly tmpDir: string;
  readonly applier: Pick<Applier, 'halt' | 'haltWrite' | 'unhalt' | 'import' | 'remove'>;
  readonly capture: Pick<Capture, 'position' | 'differingPages' | 'readCommittedPages'>;
}

/**
 * `kitefs rewind` on the primary: a moment of the backups is restored beside the data, and the pages in which it differs from the
 * database become one transaction, which is captured, streamed and shipped as any other. Nothing before it is lost:
 * it stays in the backups. Decision 026.
 */
export class Rewinds {
  readonly #parts: RewindParts;
  readonly #prepared = new Map<string, Prepared>();

  constructor(parts: RewindParts) {
    this.#parts = parts;
  }

  /**
   * Restores the moment and says what would change. The copy stays until `commit`, `cancel` or ten minutes. Rejects with
   * ERR_RESTORE_*, ERR_BACKUP_*.
   */
  async prepare(name: string, wanted: Wanted, onProgress: Progress): Promise<RewindPlan> {
    const id = randomUUID();
    const path = join(this.#parts.tmpDir, `rewind-${id}.db`);
    try {
      const { restored, url } = await this.#restore(name, wanted, path, onProgress);
      const position = await this.#position(name);
      const then = await Moment.read(path);
      try {
        const now = await this.#parts.capture.differingPages(name, 1, new Uint32Array(0));
        const isOtherSize = now.pageSize !== then.pageSize;
        const differing = isOtherSize ? undefined : await this.#differing(name, then);
        const pages = differing?.length ?? then.pages;
        const { timestampMs, txid, clusterTxid } = restored;
        const timer = setTimeout(() => this.cancel(id), PLAN_LIMIT_MS);
        timer.unref();
        const plan: RewindPlan = {
          id,
          name,
          url,
          timestampMs,
          txid,
          clusterTxid,
          position,
          pages,
          ofPages: then.pages,
          bytes: pages * then.pageSize,
          whole: isOtherSize,
        };
        this.#prepared.set(id, { plan, path, timer });
        return plan;
      } finally {
        then.close();
      }
    } catch (error) {
      rmSync(path, { force: true });
      throw error;
    }
  }

  /** Throws ERR_REWIND_GONE for a plan that is over. */
  planned(id: string): RewindPlan {
    return this.#planned(id).plan;
  }

  #planned(id: string): Prepared {
    const prepared = this.#prepared.get(id);
    if (prepared) return prepared;
    throw new KiteError('ERR_REWIND_GONE', 'this rewind was made already, or was given up after ten minutes');
  }

  /** Makes a plan true; resolves with the position after it. Rejects with ERR_REWIND_GONE for a plan that is over. */
  async commit(id: string): Promise<EpochPosition> {
    const { plan, path, timer } = this.#planned(id);
    this.#prepared.delete(id);
    clearTimeout(timer);
    try {
      return await this.#commit(plan.name, path);
    } finally {
      rmSync(path, { force: true });
    }
  }

  cancel(id: string): void {
    const prepared = this.#prepared.get(id);
    if (!prepared) return;
    clearTimeout(prepared.timer);
    this.#prepared.delete(id);
    rmSync(prepared.path, { force: true });
  }

  /**
   * Puts the latest state of the backups in the place of a database that is out of service: it is removed and made again, as two transactions.
   * `setAside` keeps what is there. Rejects with ERR_RESTORE_*, ERR_BACKUP_*; then nothing has changed.
   */
  async repair(name: string, setAside: () => Promise<void>, onProgress: Progress): Promise<Repaired> {
    const path = join(this.#parts.tmpDir, `repair-${randomUUID()}.db`);
    try {
      const { restored, url } = await this.#restore(name, { kind: 'latest' }, path, onProgress, 'quick');
      await setAside();
      await this.#parts.applier.remove(name);
      await this.#parts.applier.import(name, path);
      const { timestampMs, clusterTxid } = restored;
      return { url, timestampMs, clusterTxid, position: await this.#position(name) };
    } finally {
      rmSync(path, { force: true });
    }
  }

  stop(): void {
    for (const id of this.#prepared.keys()) this.cancel(id);
  }

  /** From the first destination that can give it. */
  async #restore(
    name: string,
    wanted: Wanted,
    output: string,
    onProgress: Progress,
    integrityCheck: IntegrityCheck = 'none',
  ): Promise<{ restored: Restored; url: string }> {
    let failed: KiteError | undefined;
    for (const { destination } of this.#parts.backups) {
      const from = await openDestination(destination);
      try {
        const folder = databaseFolder(name);
        const request = { from, folder, output, wanted, parallelism: 8, integrityCheck, onProgress } as const;
        return { restored: await restore({ ...request, say: () => undefined }), url: from.url };
      } catch (thrown) {
        const error = toKiteError(thrown);
        if (!/^ERR_(BACKUP_|RESTORE_(NOTHING|MOMENT|DAMAGED|CHECK))/.test(error.code)) throw error;
        failed = !failed || failed.code === 'ERR_RESTORE_NOTHING' ? error : failed;
      } finally {
        from.close();
      }
    }
    throw (
      failed ??
      new KiteError(
        'ERR_RESTORE_NOTHING',
        'this node has no backups configured, and no replica that has everything and could be the primary',
      )
    );
  }

  async #commit(name: string, path: string): Promise<EpochPosition> {
    const { applier } = this.#parts;
    try {
      await applier.halt(name, LOCK_LIMIT_MS);
    } catch (error) {
      // SQLite itself writes the journal then; of the pages that it writes only those that changed come into the log.
      if (toKiteError(error).code !== 'ERR_HALT_JOURNAL_MODE') throw error;
      await applier.import(name, path);
      return await this.#position(name);
    }
    let isWhole = false;
    try {
      isWhole = !(await this.#writeDifference(name, path));
    } finally {
      await applier.unhalt(name);
    }
    if (isWhole) await applier.import(name, path);
    return await this.#position(name);
  }

  /** Under the write lock, so what differs is final. Returns false, having done nothing, when the page sizes differ. */
  async #writeDifference(name: string, path: string): Promise<boolean> {
    const { capture, applier } = this.#parts;
    const before = await this.#position(name);
    const then = await Moment.read(path);
    const ltx = `${path}.ltx`;
    try {
      const now = await capture.readCommittedPages(name, [1]);
      const first = now.pages[0]?.data;
      if (now.pageSize !== then.pageSize || !first) return false;
      then.setFirstPage(first);
      const pgnos = await this.#differing(name, then);
      const end = await then.encode(pgnos, before, ltx);
      await applier.haltWrite(name, ltx);
      const after = await this.#position(name);
      if (after.checksum !== end) {
        throw new KiteError('ERR_INTERNAL', `${name} is not what it was to be after its rewind`);
      }
      return true;
    } finally {
      then.close();
      rmSync(ltx, { force: true });
    }
  }

  /** Pages of the moment that the database has otherwise, or not. */
  async #differing(name: string, then: Moment): Promise<number[]> {
    const differing: number[] = [];
    let pagesNow = 0;
    for (let next = 1; next <= then.pages; next += COMPARE_PAGES) {
      const found = await this.#parts.capture.differingPages(name, next, then.halves(next, COMPARE_PAGES));
      pagesNow = found.commitPages;
      for (const pgno of found.pgnos) if (pgno <= then.pages) differing.push(pgno);
    }
    const lock = lockPgno(then.pageSize);
    for (let pgno = pagesNow + 1; pgno <= then.pages; pgno += 1) if (pgno !== lock) differing.push(pgno);
    return differing;
  }

  async #position(name: string): Promise<EpochPosition> {
    const position = await this.#parts.capture.position(name);
    if (position) return position;
    throw new KiteError('ERR_DAEMON_NOT_PRIMARY', `${name} is not written on this node any more`);
  }
}

/** A restored database: its pages, and their checksums in memory (8 bytes per page). */
class Moment {
  readonly #fd: number;
  readonly #sums: Uint32Array;
  readonly #page: Buffer;
  #first: Buffer | undefined;

  private constructor(
    fd: number,
    readonly pageSize: number,
    readonly pages: number,
  ) {
    this.#fd = fd;
    this.#sums = new Uint32Array(pages * 2);
    this.#page = Buffer.alloc(pageSize);
  }

  static async read(path: string): Promise<Moment> {
    const fd = openSync(path, 'r');
    const start = Buffer.alloc(100);
    readSync(fd, start, 0, 100, 0);
    const header = parseDatabaseHeader(start);
    if (!header) {
      closeSync(fd);
      throw new KiteError('ERR_RESTORE_DAMAGED', 'what was restored is no SQLite database');
    }
    const moment = new Moment(fd, header.pageSize, Math.floor(fstatSync(fd).size / header.pageSize));
    const lock = lockPgno(moment.pageSize);
    for (let pgno = 1; pgno <= moment.pages; pgno += 1) {
      if (pgno % STEP_PAGES === 0) await new Promise((resolve) => setImmediate(resolve));
      if (pgno !== lock) pageChecksumInto(pgno, moment.#read(pgno), moment.#sums, pgno * 2 - 2);
    }
    return moment;
  }

  /** Page 1 as it has to be in the database as it is now: see carryHeader. */
  setFirstPage(now: Uint8Array): void {
    this.#first = carryHeader(this.#read(1), now);
    pageChecksumInto(1, this.#first, this.#sums, 0);
  }

  halves(firstPgno: number, count: number): Uint32Array {
    // A copy: it goes to another thread.
    return this.#sums.slice(firstPgno * 2 - 2, (firstPgno - 1 + count) * 2);
  }

  /** Writes these pages as the transaction that follows `before`; returns the checksum of the database after it. */
  async encode(pgnos: readonly number[], before: EpochPosition, path: string): Promise<bigint> {
    const total = new DatabaseChecksum();
    for (let at = 0; at < this.#sums.length; at += 2) total.toggle(this.#sums[at]!, this.#sums[at + 1]!);
    const fd = openSync(path, 'wx', 0o600);
    try {
      const encoder = new LtxEncoder();
      encoder.begin(
        {
          pageSize: this.pageSize,
          commitPages: this.pages,
          minTxid: before.txid + 1n,
          maxTxid: before.txid + 1n,
          timestampMs: Date.now(),
          preApplyChecksum: before.checksum,
          epoch: before.epoch,
        },
        (chunk) => writeFully(fd, chunk),
      );
      for (const [i, pgno] of pgnos.entries()) {
        if (i % STEP_PAGES === 0) await new Promise((resolve) => setImmediate(resolve));
        encoder.addPage(pgno, pgno === 1 && this.#first ? this.#first : this.#read(pgno));
      }
      return encoder.end(total.value).postApplyChecksum;
    } finally {
      closeSync(fd);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  #read(pgno: number): Buffer {
    readSync(this.#fd, this.#page, 0, this.pageSize, (pgno - 1) * this.pageSize);
    return this.#page;
  }
}
