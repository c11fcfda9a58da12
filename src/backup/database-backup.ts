import { randomUUID } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { KiteError } from '../errors.js';
import { encodeLtx } from '../ltx/encoder.js';
import { CHECKSUM_FLAG, HEADER_BYTES, parseHeader } from '../ltx/format.js';
import { formatTxid, ltxFileName, NO_POSITION, type Position, type TxidRange } from '../ltx/position.js';
import { isErrno } from '../util/files.js';
import { readObject, type Destination, type ObjectBody } from './destination.js';
import { changeHead, fenced, type Head, type Writer } from './head.js';
import { databaseFolder, fileKey, listLevel, SNAPSHOT_LEVEL, type BackupFile } from './layout.js';
import {
  expired,
  findHole,
  isCompactionDue,
  isSnapshotDue,
  newestShipped,
  newestSnapshot,
  nextCompaction,
  type LevelSettings,
} from './levels.js';
import {
  bytesSource,
  fileSource,
  firstPage,
  merge,
  SMALL_BYTES,
  TEMPORARY,
  type LtxSource,
  type Merged,
  type MergeSource,
} from './merge.js';
import { stampFields, stampOf, type Stamp } from './stamp.js';

/** At most so much of the log in one object: what is behind comes in several. */
const GROUP_FILES = 2000;
const GROUP_BYTES = 16 << 20;
/** Read between two looks at the event loop. */
const FILES_AT_ONCE = 64;
/** How long a snapshot waits for level 0 to reach where its copy stands. */
const SNAPSHOT_WAIT_MS = 60_000;
const POLL_MS = 50;
/** Objects of level 0 that stay in memory, since level 1 is made of them soon. Of one destination. */
const RECENT_BYTES = 16 << 20;

/** A copy of a database as an LTX file (from TXID 1), made for a backup, which removes it. */
export interface DatabaseCopy {
  readonly path: string;
  readonly position: Stamp;
}

/** What a backup asks of the node that it runs on. */
export interface BackupSource {
  /** So many files `filesAfter` names at the most. */
  readonly filesPerRead: number;
  /** The log's files after a position, oldest first, the first of them; undefined when the log does not hold that position. */
  filesAfter(name: string, position: Position): Promise<readonly TxidRange[] | undefined>;
  /** Whether the log went through a position. */
  contains(name: string, position: Position): Promise<boolean>;
  /** A copy of the whole database; where its deletion stands when it was dropped; undefined when this node knows of none. */
  copy(name: string): Promise<DatabaseCopy | { readonly dropped: Stamp } | undefined>;
}

/** What happens to the backup of a database that a person may want to know. */
export interface BackupEvent {
  readonly kind:
    | 'shipped'
    | 'resync'
    | 'snapshot'
    | 'compacted'
    | 'removed'
    | 'dropped'
    | 'accepted'
    | 'superseded'
    | 'hole';
  readonly message: string;
}

export interface DatabaseBackupOptions {
  readonly name: string;
  readonly destination: Destination;
  readonly settings: LevelSettings;
  readonly writer: Writer;
  readonly source: BackupSource;
  /** Folder of the database's log. */
  readonly logDir: string;
  readonly tmpDir: string;
  readonly recent: RecentObjects;
  /** Throws when nothing may be written any more. */
  readonly check: () => void;
  readonly onEvent: (event: BackupEvent) => void;
  /** An object was made. */
  readonly onPut: (sizeBytes: number) => void;
}

/** Small objects that were just made, by key, up to a sum of sizes. */
export class RecentObjects {
  readonly #objects = new Map<string, Buffer>();
  #bytes = 0;

  add(key: string, bytes: Buffer): void {
    if (bytes.length > SMALL_BYTES || this.#objects.has(key)) return;
    this.#objects.set(key, bytes);
    this.#bytes += bytes.length;
    for (const [oldest, { length }] of this.#objects) {
      if (this.#bytes <= RECENT_BYTES) break;
      this.#objects.delete(oldest);
      this.#bytes -= length;
    }
  }

  get(key: string): Buffer | undefined {
    return this.#objects.get(key);
  }
}

/**
 * The backup of one database at one destination, in the hands of a primary. `open` finds out what the bucket has; `ship` makes the
 * next object of level 0 and nothing else does, so calls of it come one after another; `maintain`, which may run beside it, makes
 * everything else from what was shipped.
 *
 * Level 0 is `k-k`, each created only if it is not there: whoever makes k has decided what k is (trap 2). Each object says which
 * position of the cluster it leads to (stamp.ts), and this node's log says whether that is a position of its history. The
 * decisions for every case are in docs/decisions/019.
 */
export class DatabaseBackup {
  readonly name: string;
  readonly #o: DatabaseBackupOptions;
  readonly #folder: string;
  readonly #levels = new Map<number, BackupFile[]>();
  /** Name of the last object of level 0. */
  #last = 0n;
  /** Where the objects lead to; undefined: to nowhere in this node's history, so that a full set of pages comes next. */
  #at: Stamp | undefined;
  /** Why there is no #at. */
  #reason = '';
  /** Page size of the bucket's database; 0: not known. */
  #pageSize = 0;
  /** What was shipped while this process runs: which object leads to which position. */
  #shipped: { readonly k: bigint; readonly stamp: Stamp }[] = [];
  #isOpen = false;
  #snapshotWanted = false;
  /** The last object is of our epoch: a primary before us cannot make the next one any more. */
  #isFenced = false;
  #droppedMs: number | undefined;
  /** This node has seen its deletion, or knows of no such database: not merely that the head says so. */
  #isGone = false;

  constructor(options: DatabaseBackupOptions) {
    this.name = options.name;
    this.#o = options;
    this.#folder = databaseFolder(options.name);
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** Up to where the cluster's transactions are in the bucket; undefined: not known, or of another history. */
  get position(): Stamp | undefined {
    return this.#at;
  }

  /** Name of the last object of level 0. */
  get level0(): bigint {
    return this.#last;
  }

  /** Reads what the bucket has: one listing per level, one header. */
  async open(head: Head): Promise<void> {
    const { destination, writer, source, settings } = this.#o;
    this.#isOpen = false;
    this.#isGone = false;
    this.#isFenced = false;
    this.#levels.clear();
    this.#shipped = [];
    for (const level of [SNAPSHOT_LEVEL, ...settings.levelIntervalsMs.map((_, i) => i + 1), 0]) {
      const files: BackupFile[] = [];
      // Where level 0 is kept for ever, what level 1 has of it is not looked at again, but for its end.
      const isKept = level === 0 && !(settings.retentionEnabled && settings.l0RetentionMs > 0);
      const after = isKept ? (this.#levels.get(1)?.at(-1)?.maxTxid ?? 1n) - 1n : 0n;
      for await (const file of listLevel(destination, this.#folder, level, after)) files.push(file);
      this.#levels.set(level, files);
    }
    const hint = head.databases[this.#folder.slice(0, -1)];
    this.#droppedMs = hint?.droppedMs;
    const named = [
      hint?.level0 ?? 0n,
      ...[...this.#levels.values()].map((files) => files.at(-1)?.maxTxid ?? 0n),
    ];
    this.#last = named.reduce((a, b) => (a > b ? a : b));
    this.#at = undefined;
    this.#pageSize = 0;
    if (this.#last === 0n) {
      // Nothing there: a log that begins with the database is shipped from its beginning.
      const isWhole = await source.contains(this.name, NO_POSITION);
      if (isWhole) this.#at = { ...NO_POSITION, epoch: writer.epoch };
      else this.#reason = 'it was not backed up before';
    } else {
      await this.#judge(newestShipped(this.#levels));
    }
    const hole = findHole(this.#levels);
    if (hole) {
      this.#say(
        'hole',
        `${destination.url} lacks objects ${formatTxid(hole.minTxid)} to ${formatTxid(hole.maxTxid)} of ${this.name}: a new snapshot follows`,
      );
    }
    this.#isOpen = true;
  }

  /** Decides from the last object where the bucket is. */
  async #judge(last: BackupFile | undefined): Promise<void> {
    const { destination, writer, source } = this.#o;
    if (last?.maxTxid !== this.#last) {
      this.#reason = `object ${formatTxid(this.#last)} of level 0 is not there any more`;
      return;
    }
    const { header } = parseHeader(await readObject(destination, last.key, { start: 0, end: HEADER_BYTES }));
    const stamp = stampOf(header);
    if (stamp && stamp.epoch > writer.epoch) throw fenced(destination.url, stamp.epoch, writer.epoch);
    this.#isFenced = stamp?.epoch === writer.epoch;
    this.#pageSize = header.pageSize;
    const snapshot = newestSnapshot(this.#levels);
    if (snapshot) {
      const base = await readObject(destination, snapshot.key, { start: 0, end: HEADER_BYTES });
      // Ended between the object that changed the page size and its snapshot: Litestream cannot cross that without one.
      if (parseHeader(base).header.pageSize !== header.pageSize) this.#snapshotWanted = true;
    }
    if (!stamp) this.#reason = 'the objects there are of Litestream, or of another program';
    else if (await source.contains(this.name, stamp)) this.#at = stamp;
    else
      this.#reason = `TXID ${stamp.txid} of epoch ${stamp.epoch}, up to which it was backed up, is not in the log of this node`;
  }

  /**
   * Makes the next object of level 0 if there is something for it. Returns whether there was more than it took when it began: what was
   * committed since waits for the next interval, or a database that is always written would never pause.
   */
  async ship(): Promise<boolean> {
    const { source, writer } = this.#o;
    if (!this.#at) return await this.#shipAll();
    const ranges = await source.filesAfter(this.name, this.#at);
    if (!ranges) {
      this.#reason = `the log of this node does not reach back to TXID ${this.#at.txid} any more`;
      this.#at = undefined;
      return true;
    }
    const group = await this.#group(ranges);
    if (group === 'gone') {
      return true;
    }
    if (group.dropped) {
      await this.#drop(group.dropped);
      return true;
    }
    if (group.isNewPageSize) {
      this.#reason = 'its page size was changed';
      this.#at = undefined;
      return true;
    }
    if (group.sources.length === 0 || !group.end) {
      // Killed between the first object after a drop and its note in the head.
      if (this.#at.checksum !== CHECKSUM_FLAG) await this.#revive();
      if (!this.#isFenced) return await this.#fence(this.#at);
      return false;
    }
    const k = this.#last + 1n;
    const stamp = { ...group.end, epoch: writer.epoch };
    const merged = await merge(
      group.sources,
      { minTxid: k, maxTxid: k, ...stampFields(stamp) },
      this.#o.tmpDir,
    );
    const isOurs = await this.#create(k, stamp, merged);
    return !isOurs || group.sources.length < ranges.length || ranges.length >= source.filesPerRead;
  }

  /**
   * The next object, which says nothing new: a page as it is already. Whoever was primary before us may not know it yet, and what it
   * made now would be the newest state of the bucket until our next transaction. Nothing of a database that has no objects, or was
   * dropped.
   */
  async #fence(at: Stamp): Promise<boolean> {
    this.#isFenced = true;
    const last = newestShipped(this.#levels);
    if (last?.maxTxid !== this.#last || this.#droppedMs !== undefined) return false;
    const { writer } = this.#o;
    const temporaries: string[] = [];
    try {
      const { source, header } = await this.#fetch(last, temporaries);
      const page = await firstPage(source);
      // Without pages there is nothing to repeat: no writer of such a bucket makes that.
      if (!page) return false;
      const k = this.#last + 1n;
      const stamp = { ...at, epoch: writer.epoch };
      const { pageSize, commitPages, timestampMs } = header;
      const fields = { pageSize, commitPages, timestampMs, minTxid: k, maxTxid: k, preApplyChecksum: 0n };
      const body = encodeLtx({ ...fields, ...stampFields(stamp), noChecksum: true }, [page], 0n);
      const dispose = async (): Promise<void> => undefined;
      return !(await this.#create(k, stamp, {
        body,
        sizeBytes: body.length,
        pageSize,
        timestampMs,
        dispose,
      }));
    } catch (error) {
      // Tried again as everything else is.
      this.#isFenced = false;
      throw error;
    } finally {
      for (const path of temporaries) await rm(path, { force: true });
    }
  }

  /** Files of the log that go into one object: of one page size, and no deletion among them. */
  async #group(ranges: readonly TxidRange[]): Promise<
    | 'gone'
    | {
        sources: MergeSource[];
        end: Position | undefined;
        dropped?: Stamp | undefined;
        isNewPageSize?: boolean;
      }
  > {
    const sources: MergeSource[] = [];
    let end: Position | undefined;
    let bytes = 0;
    for (const [i, range] of ranges.entries()) {
      if (i % FILES_AT_ONCE === FILES_AT_ONCE - 1) await new Promise((resolve) => setImmediate(resolve));
      if (sources.length >= GROUP_FILES || bytes >= GROUP_BYTES) break;
      let file: LtxSource;
      try {
        file = fileSource(join(this.#o.logDir, ltxFileName(range)));
      } catch (error) {
        // Retention has taken it since: what is left is asked for again.
        if (isErrno(error, 'ENOENT')) return 'gone';
        throw error;
      }
      const { header } = file;
      const position = { txid: header.maxTxid, checksum: file.postApplyChecksum };
      if (header.commitPages === 0) {
        if (sources.length > 0) break;
        return { sources, end, dropped: { ...position, epoch: header.epoch } };
      }
      if (this.#pageSize !== 0 && header.pageSize !== this.#pageSize) {
        return { sources, end, isNewPageSize: sources.length === 0 };
      }
      if (this.#pageSize === 0) this.#pageSize = header.pageSize;
      sources.push(file.source);
      bytes += file.sizeBytes;
      end = position;
    }
    return { sources, end };
  }

  /** Creates object k of level 0, or finds out who has; returns whether it was created. */
  async #create(k: bigint, stamp: Stamp, merged: Merged): Promise<boolean> {
    const { destination, writer, source } = this.#o;
    try {
      const outcome = await this.#put(0, { minTxid: k, maxTxid: k }, merged);
      if (outcome === 'created') {
        this.#last = k;
        this.#isFenced = true;
        this.#reached(stamp, merged.pageSize);
        await this.#revive();
        return true;
      }
    } finally {
      await merged.dispose();
    }
    const key = this.#key(0, { minTxid: k, maxTxid: k });
    const bytes = await readObject(destination, key, { start: 0, end: HEADER_BYTES });
    const { header } = parseHeader(bytes);
    const theirs = stampOf(header);
    if (!theirs) {
      throw new KiteError(
        'ERR_BACKUP_OTHER_WRITER',
        `${destination.url}: ${key} was written by another program`,
      );
    }
    if (theirs.epoch > writer.epoch) throw fenced(destination.url, theirs.epoch, writer.epoch);
    this.#isFenced = theirs.epoch === writer.epoch;
    // It is there, whoever made it: k is decided. Its size is known when the bucket is listed again.
    this.#last = k;
    this.#note({ level: 0, key, minTxid: k, maxTxid: k, sizeBytes: 0, modifiedMs: header.timestampMs });
    if (await source.contains(this.name, theirs)) {
      // An upload of ours whose answer was lost, or what the primary before us did at its end.
      this.#reached(theirs, header.pageSize);
      this.#say(
        'accepted',
        `object ${formatTxid(k)} of ${this.name} was there already, up to TXID ${theirs.txid} of our history`,
      );
      return false;
    }
    this.#at = undefined;
    this.#reason = `a fenced primary of epoch ${theirs.epoch} wrote object ${formatTxid(k)} with transactions that the cluster does not have`;
    this.#say('superseded', `${this.name}: ${this.#reason}`);
    return false;
  }

  /** A full set of pages as the next object, and as a snapshot. */
  async #shipAll(): Promise<boolean> {
    const { source, destination, tmpDir } = this.#o;
    const copy = await source.copy(this.name);
    if (!copy) {
      this.#isGone = true;
      return false;
    }
    if ('dropped' in copy) {
      await this.#drop(copy.dropped);
      return true;
    }
    this.#say('resync', `${destination.url} gets all pages of ${this.name}: ${this.#reason}`);
    try {
      const stamp = { ...copy.position, epoch: this.#o.writer.epoch };
      const k = this.#last + 1n;
      const merged = await merge([copy.path], { minTxid: k, maxTxid: k, ...stampFields(stamp) }, tmpDir);
      await this.#create(k, stamp, merged);
      if (this.#last !== k || this.#at?.txid !== stamp.txid) return true;
      // At once: where the page size is another one Litestream needs it, and level 1 need not repeat all pages.
      await this.#putSnapshot(k, [copy.path], stamp);
    } finally {
      await rm(copy.path, { force: true });
    }
    return true;
  }

  /** The cluster has dropped it. There is no object for that in Litestream's layout: the head says it, and retention goes on. */
  async #drop(at: Stamp): Promise<void> {
    const { destination, writer } = this.#o;
    this.#o.check();
    const droppedMs = this.#droppedMs ?? Date.now();
    // Never shipped: nothing to say.
    if (this.#last > 0n) {
      const level0 = this.#last;
      await changeHead(destination, writer, (all) => ({
        ...all,
        [this.#folder.slice(0, -1)]: { level0, droppedMs },
      }));
      if (this.#droppedMs === undefined)
        this.#say(
          'dropped',
          `${this.name} was dropped; ${destination.url} keeps it until the retention ends`,
        );
      this.#droppedMs = droppedMs;
    }
    this.#at = at;
    this.#isGone = true;
  }

  /** Something was shipped after a drop: there is a database again. */
  async #revive(): Promise<void> {
    this.#isGone = false;
    if (this.#droppedMs === undefined) return;
    const level0 = this.#last;
    await changeHead(this.#o.destination, this.#o.writer, (all) => ({
      ...all,
      [this.#folder.slice(0, -1)]: { level0 },
    }));
    this.#droppedMs = undefined;
  }

  #reached(stamp: Stamp, pageSize: number): void {
    this.#at = stamp;
    this.#pageSize = pageSize;
    this.#shipped.push({ k: this.#last, stamp });
    // A snapshot begins from what was shipped last when its copy was made: this is minutes of it.
    if (this.#shipped.length > 4096) this.#shipped.shift();
  }

  // --- levels

  /** Whether `maintain` has something to do. Makes no request. */
  isMaintenanceDue(nowMs: number): boolean {
    if (!this.#isOpen) return false;
    const { settings } = this.#o;
    if (this.#isPastRetention(nowMs)) return true;
    if (this.#isSnapshotDue(nowMs)) return true;
    if (
      settings.levelIntervalsMs.some((intervalMs, i) =>
        isCompactionDue(this.#levels, i + 1, intervalMs, nowMs),
      )
    )
      return true;
    return expired(this.#levels, settings, nowMs).length > 0;
  }

  /**
   * Makes what is due: snapshot, compactions, retention. Where the bucket is not as it was listed (somebody has removed objects: a
   * primary that is fenced by now, a person), it has to be opened again.
   */
  async maintain(nowMs: number): Promise<void> {
    try {
      await this.#maintain(nowMs);
    } catch (error) {
      if (error instanceof KiteError && error.code === 'ERR_BACKUP_MISSING') this.#isOpen = false;
      throw error;
    }
  }

  async #maintain(nowMs: number): Promise<void> {
    const { settings } = this.#o;
    if (this.#isPastRetention(nowMs)) return await this.#removeAll();
    if (this.#isSnapshotDue(nowMs)) await this.#snapshot();
    for (const [i, intervalMs] of settings.levelIntervalsMs.entries()) {
      if (isCompactionDue(this.#levels, i + 1, intervalMs, nowMs)) await this.#compact(i + 1);
    }
    await this.#remove(expired(this.#levels, settings, nowMs));
  }

  #isSnapshotDue(nowMs: number): boolean {
    if (!this.#at || this.#droppedMs !== undefined) return false;
    return this.#snapshotWanted || isSnapshotDue(this.#levels, this.#o.settings, nowMs);
  }

  async #compact(level: number): Promise<void> {
    const { destination, tmpDir } = this.#o;
    const files = nextCompaction(this.#levels, level);
    const sources: MergeSource[] = [];
    const temporaries: string[] = [];
    let pageSize: number | undefined;
    let range: TxidRange | undefined;
    try {
      for (const file of files) {
        const { source, header } = await this.#fetch(file, temporaries);
        pageSize ??= header.pageSize;
        // Files of two page sizes are never one.
        if (header.pageSize !== pageSize) break;
        sources.push(source);
        range = { minTxid: range?.minTxid ?? file.minTxid, maxTxid: file.maxTxid };
      }
      if (!range) return;
      const merged = await merge(sources, range, tmpDir);
      try {
        await this.#put(level, range, merged);
      } finally {
        await merged.dispose();
      }
      const message = `${this.name}: ${sources.length} objects of level ${level - 1} are one of level ${level} at ${destination.url}`;
      this.#say('compacted', message);
    } finally {
      for (const path of temporaries) await rm(path, { force: true });
    }
  }

  /** An object of the bucket; what goes by the disk is added to `temporaries`. */
  async #fetch(file: BackupFile, temporaries: string[]): Promise<LtxSource> {
    const { destination, recent, tmpDir } = this.#o;
    const bytes = recent.get(file.key);
    if (bytes) return bytesSource(bytes);
    if (file.sizeBytes > 0 && file.sizeBytes <= SMALL_BYTES) {
      return bytesSource(await readObject(destination, file.key));
    }
    const path = join(tmpDir, TEMPORARY + randomUUID());
    temporaries.push(path);
    await pipeline(await destination.get(file.key), createWriteStream(path, { flags: 'wx' }));
    return fileSource(path);
  }

  /** A copy of the database, brought to where an object of level 0 leads. Shipping goes on meanwhile. */
  async #snapshot(): Promise<void> {
    const { source, logDir } = this.#o;
    if (this.#at && this.#shipped.at(-1)?.k !== this.#last)
      this.#shipped.push({ k: this.#last, stamp: this.#at });
    const copy = await source.copy(this.name);
    if (!copy || 'dropped' in copy) return;
    try {
      const end = await this.#whenShipped(copy.position.txid);
      const sources: MergeSource[] = [copy.path];
      for (let at: Position = copy.position; at.txid < end.stamp.txid;) {
        const ranges = await source.filesAfter(this.name, at);
        if (!ranges?.[0]) {
          throw new KiteError(
            'ERR_BACKUP_UNREACHABLE',
            `the log of ${this.name} was cut while a snapshot was made`,
          );
        }
        for (const range of ranges) {
          if (range.maxTxid > end.stamp.txid) break;
          const file = fileSource(join(logDir, ltxFileName(range)));
          sources.push(file.source);
          at = { txid: range.maxTxid, checksum: file.postApplyChecksum };
        }
      }
      await this.#putSnapshot(end.k, sources, end.stamp);
      const level0 = this.#last;
      await changeHead(this.#o.destination, this.#o.writer, (all) => ({
        ...all,
        [this.#folder.slice(0, -1)]: { level0 },
      }));
    } finally {
      await rm(copy.path, { force: true });
    }
  }

  /** The first object of level 0 that has everything up to a TXID. */
  async #whenShipped(txid: bigint): Promise<{ readonly k: bigint; readonly stamp: Stamp }> {
    for (let waitedMs = 0; waitedMs < SNAPSHOT_WAIT_MS; waitedMs += POLL_MS) {
      const found = this.#shipped.find(({ stamp }) => stamp.txid >= txid);
      if (found) return found;
      await sleep(POLL_MS);
    }
    throw new KiteError(
      'ERR_BACKUP_UNREACHABLE',
      `no snapshot of ${this.name}: its transactions are not shipped`,
    );
  }

  async #putSnapshot(k: bigint, sources: readonly MergeSource[], stamp: Stamp): Promise<void> {
    const range = { minTxid: 1n, maxTxid: k };
    const merged = await merge(sources, { ...range, ...stampFields(stamp) }, this.#o.tmpDir);
    try {
      await this.#put(SNAPSHOT_LEVEL, range, merged);
    } finally {
      await merged.dispose();
    }
    this.#snapshotWanted = false;
    this.#say(
      'snapshot',
      `snapshot of ${this.name} up to TXID ${stamp.txid} (object ${formatTxid(k)}) at ${this.#o.destination.url}`,
    );
  }

  async #remove(files: readonly BackupFile[]): Promise<void> {
    if (files.length === 0) return;
    this.#o.check();
    // A name that is free again can be made again: a successor that has listed the bucket before these were there would. It has
    // taken the head before it listed; so whoever still finds its own epoch there removes only what every successor has seen.
    await changeHead(this.#o.destination, this.#o.writer);
    await this.#o.destination.remove(files.map(({ key }) => key));
    for (const [level, there] of this.#levels) {
      this.#levels.set(
        level,
        there.filter((file) => !files.includes(file)),
      );
    }
    this.#say(
      'removed',
      `${files.length} objects of ${this.name} are past the retention at ${this.#o.destination.url}`,
    );
  }

  #isPastRetention(nowMs: number): boolean {
    const { retentionMs, retentionEnabled } = this.#o.settings;
    const floorMs = nowMs - retentionMs;
    if (!retentionEnabled || !this.#isGone || this.#droppedMs === undefined || this.#droppedMs >= floorMs)
      return false;
    const files = [...this.#levels.values()].flat();
    // All of it goes, so nothing may contradict it: an object that is younger was made after the drop.
    return files.length > 0 && files.every(({ modifiedMs }) => modifiedMs < floorMs);
  }

  /** Dropped, and nobody can go back to it any more. The head keeps the last name, so that names are never used twice. */
  async #removeAll(): Promise<void> {
    await this.#remove([...this.#levels.values()].flat());
  }

  // --- objects

  async #put(level: number, range: TxidRange, merged: Merged): Promise<'created' | 'exists'> {
    const { destination, recent, onPut } = this.#o;
    const key = this.#key(level, range);
    this.#o.check();
    const outcome = await destination.create(key, merged.body, merged.timestampMs);
    if (outcome === 'exists' && level === 0) return outcome;
    // Of a higher level, what is there under this name was made from the same objects of level 0.
    const isFile = destination.type === 'file' || destination.type === 'sftp';
    const modifiedMs = isFile ? merged.timestampMs : Date.now();
    this.#note({ level, key, ...range, sizeBytes: merged.sizeBytes, modifiedMs });
    if (outcome === 'created') onPut(merged.sizeBytes);
    if (level < 2) rememberSmall(recent, key, merged.body);
    return outcome;
  }

  #note(file: BackupFile): void {
    const there = this.#levels.get(file.level) ?? [];
    if (!there.some(({ key }) => key === file.key)) this.#levels.set(file.level, [...there, file]);
  }

  #key(level: number, range: TxidRange): string {
    return fileKey(this.#o.destination.type, this.#folder, level, range);
  }

  #say(kind: BackupEvent['kind'], message: string): void {
    this.#o.onEvent({ kind, message });
  }
}

function rememberSmall(recent: RecentObjects, key: string, body: ObjectBody): void {
  if (Buffer.isBuffer(body)) recent.add(key, body);
}
