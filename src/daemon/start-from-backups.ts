import { createReadStream, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Config } from '../config/load.js';
import { policyOf } from '../durability/policy.js';
import { KiteError, toKiteError } from '../errors.js';
import type { LeaseAdapter, LeasePositions } from '../lease/types.js';
import { formatTxid } from '../ltx/position.js';
import type { Logger } from '../observability/log.js';
import {
  findBackups,
  positionsOf,
  RestoringFolder,
  restoreSeed,
  type FoundBackups,
  type FoundDatabase,
} from '../restore/missing.js';
import type { DataDirectory } from '../store/data-directory.js';
import type { FoundCluster } from './cluster-id.js';
import type { EventLog } from './event-log.js';
import type { NodeStore } from './node-store.js';

const LEASE_TIMEOUT_MS = 5000;
const SAY_MS = 10_000;

export interface StartFromBackupsParts {
  readonly config: Config;
  readonly data: DataDirectory;
  readonly events: EventLog;
  readonly logger: Logger;
  /** Aborted when this node stops. */
  readonly signal: AbortSignal;
  /** A person has said that what this node lacks is given up. */
  readonly lossAccepted: () => boolean;
}

/**
 * `restore-if-missing`: a node whose data directory has no database starts from its backups, when it has won the lease and no peer
 * has given it anything. Decision 025 says why there, and what a kill at each step leaves.
 */
export class StartFromBackups {
  readonly #parts: StartFromBackupsParts;
  readonly #folder: RestoringFolder;
  #found: FoundBackups | undefined;
  #failed: KiteError | undefined;
  #refreshing = false;

  constructor(parts: StartFromBackupsParts) {
    this.#parts = parts;
    this.#folder = new RestoringFolder(parts.data.path);
  }

  /** At start, before the lease: what there is, so that this node belongs to that cluster and its epoch is above all that were. */
  async look(): Promise<void> {
    const { config, data } = this.#parts;
    const { type, candidate } = config.lease;
    // A static replica follows whatever its primary is.
    if (!config.restoreIfMissing || (type === 'static' && !candidate)) return;
    if (data.names().length > 0 && !this.#folder.exists) return;
    try {
      this.#found = await findBackups(config.backups);
      data.updateNode({ epoch: this.#found.epoch });
    } catch (thrown) {
      const { code, message } = toKiteError(thrown);
      this.#failed = new KiteError(
        code,
        `this node has no data, and what its backups have cannot be found out: ${message}. It does not start empty (restore-if-missing: false does)`,
        { cause: thrown },
      );
    }
  }

  /** Rejects when the backups did not answer, unless there is a primary to follow. */
  async check(adapter: LeaseAdapter): Promise<void> {
    if (!this.#failed) return;
    const { record } = await adapter.read(LEASE_TIMEOUT_MS);
    if (!record?.holder) throw this.#failed;
    this.#parts.events.add('restore-unknown', this.#failed.message, { level: 'warn' });
  }

  /** The cluster that the backups are of. */
  get cluster(): FoundCluster | undefined {
    const { clusterId, epoch = 0n } = this.#found ?? {};
    return clusterId === undefined ? undefined : { clusterId, epoch };
  }

  /** What can be had from the backups, as far as is known, for the lease. */
  positions(): LeasePositions {
    return this.#found ? positionsOf(this.#found) : {};
  }

  /** Whether this node may not become primary before `run`. */
  wanted(store: NodeStore): boolean {
    return this.#parts.config.restoreIfMissing && (this.#folder.exists || store.logEnds().size === 0);
  }

  /**
   * Databases of which the first destination has more than this node, and without which it may not open: a commit was perhaps
   * acknowledged that only the backups have (`durability.backup`), or this node was away (`must`) while the last primary wrote.
   * Rejects when that destination does not answer and commits were promised to be there.
   */
  async ahead(store: NodeStore, must: boolean): Promise<readonly FoundDatabase[]> {
    const { config, data, lossAccepted } = this.#parts;
    const [first] = config.backups;
    const isPromised = config.durability.some(({ backup }) => backup);
    if (!first || lossAccepted() || !(must || isPromised)) return [];
    const { clusterId, databases } = await findBackups([first]).catch((error: unknown) => {
      if (isPromised) throw error;
      // Perhaps peers have all of it; whether they do is looked at afterwards.
      return { clusterId: undefined, databases: [] };
    });
    if (clusterId !== data.clusterId) return [];
    return databases.filter(
      (found) =>
        (must || policyOf(config.durability, found.name)?.backup === true) && this.#isAhead(found, store),
    );
  }

  /** This node waits for one that has more: perhaps the backups have it. */
  async refresh(): Promise<void> {
    const { config, data } = this.#parts;
    if (config.backups.length === 0 || this.#refreshing) return;
    this.#refreshing = true;
    try {
      const found = await findBackups(config.backups);
      if (found.clusterId === data.clusterId) this.#found = found;
    } catch {
      // It waits as it did before.
    } finally {
      this.#refreshing = false;
    }
  }

  #isAhead({ name, stamp }: FoundDatabase, store: NodeStore): boolean {
    if (!stamp) return false;
    const ours = store.position(name);
    if (!ours) return true;
    if (store.contains(name, stamp)) return false;
    return stamp.epoch !== ours.epoch ? stamp.epoch > ours.epoch : stamp.txid > ours.txid;
  }

  /** Takes databases from the first destination whole, in place of what this node has; applied when it resolves. */
  async take(databases: readonly FoundDatabase[], store: NodeStore): Promise<void> {
    const { data, events, logger } = this.#parts;
    for (const database of databases) {
      const { name } = database;
      if (!this.#isAhead(database, store)) continue;
      const { path, meta } = await restoreSeed(database, join(data.path, 'tmp'), {
        say: (line) => logger.warn({ database: name }, line),
        onProgress: () => undefined,
      });
      // As from a peer: what this node has of another history goes to lost+found.
      const file = await store.receive(name, meta);
      for await (const chunk of createReadStream(path, { highWaterMark: 256 << 10 }))
        await file.write(chunk as Buffer);
      await file.finish({ durable: true });
      rmSync(path, { force: true });
      events.add('restored', `${name}: the backups had more, up to TXID ${formatTxid(meta.maxTxid)}`, {
        database: name,
        level: 'warn',
      });
    }
    if (databases.length > 0) await store.drained();
  }

  /** Somebody else is the primary: from there comes everything. */
  abandon(): void {
    this.#folder.end();
  }

  /**
   * Restores every database of the backups that this node does not have; resolves when all are applied. Rejects with
   * ERR_RESTORE_*, ERR_BACKUP_*: then this node must not open.
   */
  async run(store: NodeStore): Promise<void> {
    const { signal } = this.#parts;
    let onAbort: (() => void) | undefined;
    const aborted = new Promise<never>((_, reject) => {
      onAbort = () => reject(new KiteError('ERR_DAEMON_NOT_READY', 'this node stops'));
      signal.addEventListener('abort', onAbort);
      if (signal.aborted) onAbort();
    });
    try {
      await Promise.race([this.#restoreAll(store), aborted]);
    } finally {
      if (onAbort) signal.removeEventListener('abort', onAbort);
    }
  }

  async #restoreAll(store: NodeStore): Promise<void> {
    const { config, data, events, logger, signal } = this.#parts;
    // Again: whoever was primary while this node waited has shipped on.
    const { clusterId, databases } = await findBackups(config.backups);
    if (clusterId !== undefined && clusterId !== data.clusterId) {
      throw new KiteError(
        'ERR_BACKUP_OTHER_CLUSTER',
        `the backups are those of cluster ${clusterId}, this node belongs to ${data.clusterId}`,
      );
    }
    const here = store.logEnds();
    const missing = databases.filter(({ name }) => !here.has(name));
    if (missing.length > 0) this.#folder.begin();
    for (const database of missing) {
      const { name } = database;
      let saidMs = Date.now();
      const { path, meta, restored } = await restoreSeed(database, this.#folder.path, {
        say: (line) => logger.warn({ database: name }, line),
        onProgress: (done, total) => {
          if (Date.now() - saidMs < SAY_MS) return;
          saidMs = Date.now();
          logger.info({ database: name, done, total }, 'restoring from the backups');
        },
      });
      if (signal.aborted) return;
      await store.seed(name, path, meta);
      const { timestampMs, sizeBytes } = restored;
      events.add(
        'restored',
        `${name} was restored from the backups as of ${new Date(timestampMs).toISOString()}: TXID ${formatTxid(meta.maxTxid)}, ${sizeBytes} bytes`,
        { database: name },
      );
    }
    // Large ones take longer than what a peer's last transactions may.
    while (!signal.aborted && !(await Promise.race([store.drained().then(() => true), sleep(SAY_MS, false)])))
      logger.info('applying what was restored');
    // Every database is in its log, durably.
    if (!signal.aborted) this.#folder.end();
  }
}
