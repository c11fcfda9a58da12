import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Applier } from '../applier/applier.js';
import { KiteError, toKiteError } from '../errors.js';
import { formatPosition, formatTxid } from '../ltx/position.js';
import type { Metrics } from '../observability/metrics.js';
import { encodeDatabaseName } from '../store/database-name.js';
import type { Log, LogFileMeta } from '../store/log.js';
import { lostAfter } from '../store/lost-after.js';
import type { LostAndFound } from '../store/lost-and-found.js';
import type { EpochPosition } from '../store/types.js';
import type { EventLog } from './event-log.js';

/** Up to this size the database with the lost transactions is kept whole beside them, so that their rows can be shown. */
const KEPT_DATABASE_BYTES = 256 << 20;

/** A database whose log something is about to replace. */
interface Displaced {
  readonly name: string;
  readonly log: Log;
  /** What is here is of no use. */
  readonly needsSnapshot: boolean;
}

export interface ReplacingOptions {
  readonly dataDir: string;
  readonly lostAndFound: LostAndFound;
  readonly events: EventLog;
  readonly metrics: Metrics;
  readonly applier: () => Applier | undefined;
  /** Makes the database's own files durable as they are. */
  readonly syncDatabase: (name: string) => Promise<void>;
}

/** Makes room in a log for what comes from the primary in its place, and keeps what the cluster does not have. */
export class Replacing {
  readonly #o: ReplacingOptions;

  constructor(options: ReplacingOptions) {
    this.#o = options;
  }

  /**
   * A snapshot or a difference is about to take the place of what the log of this node holds. What the primary's history has
   * not got is kept in lost+found first, and with it what the database is now. Killed in here, the node has its old
   * database with a part of its log, which is no position of that: it asks again. Returns whether nothing of the log may stay.
   */
  async makeRoom(entry: Displaced, meta: LogFileMeta, fork: EpochPosition | undefined): Promise<boolean> {
    const { log, name } = entry;
    const last = log.lastPosition;
    const isDifference = meta.minTxid > 1n;
    if (isDifference) {
      const now = await this.#o.applier()?.checksums(name, 1, 0);
      if (now?.checksum !== meta.preApplyChecksum) {
        throw new KiteError('ERR_REPLICATION_ORDER', `${name} is not what the difference is to`);
      }
      // From here on the log may hold only what differs: what the pages are now is then nowhere else.
      await this.#o.syncDatabase(name);
    }
    const lost = last && this.#lostAfter(entry, last, meta, fork);
    if (last && lost !== undefined) await this.#setAside(entry, last, lost, meta);
    // Damaged, or not what the database is: kept for whoever wants to look, nothing is lost with it.
    if (entry.needsSnapshot) log.setAsideAfter(0n, this.#o.lostAndFound, `replaced at TXID ${meta.maxTxid}`);
    const end = log.lastPosition;
    const isNext = end && meta.minTxid === end.txid + 1n && meta.preApplyChecksum === end.checksum;
    if (isDifference) this.#o.metrics.differences.inc({ direction: 'received' });
    // A newer snapshot takes the place of older files by itself.
    return isDifference ? !isNext : end !== undefined && end.txid >= meta.maxTxid;
  }

  /** The TXID after which our log is not the primary's history; undefined: nowhere. */
  #lostAfter(
    { log }: Displaced,
    last: EpochPosition,
    meta: LogFileMeta,
    fork: EpochPosition | undefined,
  ): bigint | undefined {
    try {
      if (fork || meta.minTxid > 1n) return lostAfter(log, fork);
    } catch (error) {
      // What cannot be read cannot be compared either: all of it is kept.
      if (toKiteError(error).code === 'ERR_STORE_LOG_DAMAGED') return 0n;
      throw error;
    }
    // A snapshot that nobody asked for says no fork. Ended in one epoch (one writer), ours is a part of it.
    return last.epoch === meta.epoch && last.txid < meta.maxTxid ? undefined : 0n;
  }

  async #setAside(entry: Displaced, last: EpochPosition, after: bigint, meta: LogFileMeta): Promise<void> {
    const { log, name } = entry;
    const from = after > 0n ? after : (log.firstFile?.minTxid ?? 1n) - 1n;
    const transactions = Number(last.txid - from);
    const { pageSize = 0, commitPages = 0 } = log.lastFile ?? {};
    const database = join(this.#o.dataDir, 'tmp', `lost-${encodeDatabaseName(name)}.ltx`);
    const isKept = pageSize * commitPages <= KEPT_DATABASE_BYTES && (await this.#keep(name, database));
    const reason = `epoch ${meta.epoch} went on from TXID ${after > 0n ? after : 'unknown'} without them`;
    const folder = log.setAsideAfter(after, this.#o.lostAndFound, reason, {
      transactions,
      after: formatTxid(from),
      end: formatPosition(last),
      epoch: String(last.epoch),
      certain: after > 0n,
      ...(isKept ? { database } : {}),
    });
    const may = after > 0n ? 'that only this node has' : 'that the primary may not have';
    this.lost(
      name,
      transactions,
      `${name}: ${transactions} transactions ${may} were moved to ${folder}; see them with kitefs lost`,
    );
  }

  async #keep(name: string, path: string): Promise<boolean> {
    try {
      await this.#o.applier()?.keep(name, path);
      return this.#o.applier() !== undefined;
    } catch (error) {
      // The transactions themselves are kept in any case: a node must come back also when this one cannot be read.
      const why = toKiteError(error).message;
      this.#o.events.add('keep-failed', `the database with the lost transactions is not kept: ${why}`, {
        database: name,
        level: 'warn',
      });
      rmSync(path, { force: true });
      return false;
    }
  }

  /** Says that transactions are in lost+found now. */
  lost(name: string, transactions: number, message: string): void {
    this.#o.metrics.lostTransactions.inc({ db: name }, transactions);
    this.#o.events.add('lost-transactions', message, { database: name, level: 'warn' });
  }
}
