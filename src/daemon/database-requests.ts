import { constants, createReadStream } from 'node:fs';
import { cp, rm, stat } from 'node:fs/promises';
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Applier } from '../applier/applier.js';
import type { Backups } from '../backup/backups.js';
import type { Capture } from '../capture/capture.js';
import type { Config } from '../config/load.js';
import { KiteError, toKiteError } from '../errors.js';
import type { Halted, HaltLocks, HaltRequest } from '../halt/locks.js';
import type { DatabaseApi, ExportedDatabase } from '../http/node-api.js';
import { formatPosition, formatTxid, NO_POSITION, samePosition } from '../ltx/position.js';
import { isPrimary, type NodeRole } from '../observability/node-status.js';
import type { TokenEntry } from '../proxy/token.js';
import type { Wanted } from '../restore/restore.js';
import { databasePaths } from '../store/data-directory.js';
import { encodeDatabaseName } from '../store/database-name.js';
import type { EventLog } from './event-log.js';
import type { NodeStore } from './node-store.js';
import type { PositionWaits } from './position-waits.js';
import type { Progress, Repaired, RewindPlan, Rewinds } from './rewind.js';

/** How long a rewind waits until the backups have what it undoes. */
const REWIND_SYNC_MS = 30_000;
const MEND_POLL_MS = 20;

export interface DatabaseRequestsOptions {
  readonly dataDir: string;
  readonly driver: Config['fuse']['driver'];
  readonly haltTtlMs: number;
  readonly store: NodeStore;
  readonly capture: Capture;
  readonly applier: Applier;
  readonly backups: Backups | undefined;
  readonly rewinds: Rewinds;
  readonly haltLocks: HaltLocks;
  readonly positionWaits: PositionWaits;
  readonly events: EventLog;
  readonly role: () => NodeRole;
  /** Whether another node could be the primary; hands over to one that has everything, resolves with its id. */
  readonly canHandOff: () => boolean;
  readonly handOff: (reason: string) => Promise<string>;
  /** Throws ERR_DAEMON_NOT_PRIMARY, with where the primary is. */
  readonly requirePrimary: () => void;
}

/** What people and programs ask of this node about its databases: each call a request of its own, nothing is kept in between. */
export class DatabaseRequests implements DatabaseApi {
  readonly #o: DatabaseRequestsOptions;

  constructor(options: DatabaseRequestsOptions) {
    this.#o = options;
  }

  async export(name: string): Promise<ExportedDatabase> {
    this.#requireThere(name);
    const path = join(this.#o.dataDir, 'tmp', randomUUID());
    await this.#o.applier.export(name, path);
    const { size } = await stat(path);
    return {
      sizeBytes: size,
      async *chunks() {
        try {
          yield* createReadStream(path, { highWaterMark: 256 << 10 }) as AsyncIterable<Buffer>;
        } finally {
          await rm(path, { force: true });
        }
      },
    };
  }

  async import(
    name: string,
    path: string,
    { ifNotExists } = { ifNotExists: false },
  ): Promise<{ position: string; imported: boolean }> {
    this.#o.requirePrimary();
    const imported = !(ifNotExists && this.#exists(name));
    if (!imported) return { position: formatPosition(this.#o.store.position(name) ?? NO_POSITION), imported };
    this.#requireSound(name);
    await this.#o.applier.import(name, path);
    const position = await this.#o.capture.position(name);
    return { position: formatPosition(position ?? NO_POSITION), imported };
  }

  async sync(waitMs: number, name: string | undefined): Promise<void> {
    this.#o.requirePrimary();
    if (name !== undefined) this.#requireThere(name);
    await this.#o.capture.captured(name === undefined ? this.#o.store.databases() : [name]);
    await this.#o.backups?.sync(waitMs, name);
  }

  async prepareRewind(name: string, wanted: Wanted, onProgress: Progress): Promise<RewindPlan> {
    // First what is there now: a moment of a second ago can be had then, and what a rewind undoes stays in the backups.
    await this.sync(REWIND_SYNC_MS, name);
    this.#requireSound(name);
    return await this.#o.rewinds.prepare(name, wanted, onProgress);
  }

  async commitRewind(id: string): Promise<string> {
    this.#o.requirePrimary();
    const { name, timestampMs } = this.#o.rewinds.planned(id);
    this.#requireSound(name);
    const position = await this.#o.rewinds.commit(id);
    this.#o.events.add(
      'rewound',
      `${name} was put back to ${new Date(timestampMs).toISOString()} by TXID ${formatTxid(position.txid)}`,
      { database: name, level: 'warn' },
    );
    return formatPosition(position);
  }

  cancelRewind(id: string): void {
    this.#o.rewinds.cancel(id);
  }

  async repair(name: string, onProgress: Progress): Promise<Repaired> {
    const error = this.#o.store.error(name);
    if (this.#exists(name) && !error)
      throw new KiteError('ERR_REPAIR_SOUND', `nothing is known to be wrong with ${name}`);
    // A replica mends itself; asked for, it reads every page at once.
    if (error && this.#o.role() === 'replica') return await this.#mendAsReplica(name, error, undefined);
    this.#o.requirePrimary();
    return (await this.#repairFromPeer(name, error)) ?? (await this.#repairFromBackups(name, onProgress));
  }

  /**
   * A replica that has everything becomes the primary, and this node mends itself as its replica: nothing is lost, and nothing is removed
   * and made again. Undefined when there is none: then this node is the primary still.
   */
  async #repairFromPeer(name: string, error: KiteError | undefined): Promise<Repaired | undefined> {
    if (!error || !this.#exists(name) || !this.#o.canHandOff()) return undefined;
    try {
      const primary = await this.#o.handOff(`${name} is damaged here`);
      return await this.#mendAsReplica(name, error, primary);
    } catch (thrown) {
      // Called off: nobody else has everything.
      if (toKiteError(thrown).code === 'ERR_LEASE_HANDOFF' && isPrimary(this.#o.role())) return undefined;
      throw thrown;
    }
  }

  async #mendAsReplica(name: string, error: KiteError, primary: string | undefined): Promise<Repaired> {
    const { store, events } = this.#o;
    while (this.#o.role() !== 'replica') {
      if (this.#o.role() === 'closed') throw new KiteError('ERR_DAEMON_NOT_READY', 'this node stops');
      await sleep(MEND_POLL_MS);
    }
    await store.readAnew(name, error);
    for (;;) {
      const position = store.appliedPosition(name);
      const end = store.position(name);
      if (!store.error(name) && position && end && samePosition(position, end)) {
        const url = primary ?? 'the primary';
        events.add('repaired', `${name} was made anew from the log and what ${url} has; nothing is lost`, {
          database: name,
        });
        return { url, primary, timestampMs: Date.now(), clusterTxid: position.txid, position };
      }
      if (this.#o.role() !== 'replica')
        throw new KiteError('ERR_DAEMON_NOT_READY', `this node is ${this.#o.role()} now: ask again`);
      await sleep(MEND_POLL_MS);
    }
  }

  async #repairFromBackups(name: string, onProgress: Progress): Promise<Repaired> {
    const end = this.#o.store.position(name);
    // What was committed and is in the log goes first: then nothing is lost.
    if (this.#exists(name)) await this.#o.backups?.sync(REWIND_SYNC_MS, name);
    const { directory } = databasePaths(this.#o.dataDir, name);
    const kept = join(
      this.#o.dataDir,
      'lost+found',
      encodeDatabaseName(name),
      `damaged-${new Date().toISOString().replaceAll(':', '')}`,
    );
    const keep = async (): Promise<void> => {
      if (this.#exists(name))
        await cp(directory, kept, { recursive: true, mode: constants.COPYFILE_FICLONE });
    };
    const repaired = await this.#o.rewinds.repair(name, keep, onProgress);
    const { clusterTxid, timestampMs } = repaired;
    const lost = end && clusterTxid !== undefined && end.txid > clusterTxid ? end.txid - clusterTxid : 0n;
    this.#o.events.add(
      'repaired',
      `${name} was made anew from its backup as of ${new Date(timestampMs).toISOString()}, ${lost} transactions are not in it; what was there is in ${kept}`,
      { database: name, level: 'warn' },
    );
    return repaired;
  }

  #requireThere(name: string): void {
    if (!this.#exists(name))
      throw new KiteError('ERR_HTTP_NOT_FOUND', `there is no database ${name} on this node`);
  }

  /** Throws when a database that is there cannot be written. */
  #requireSound(name: string): void {
    const error = this.#o.store.error(name);
    if (!error || !this.#exists(name)) return;
    throw new KiteError(
      'ERR_APPLIER_REPLACE',
      `${name} is out of service (${error.message}): nothing can be written into it`,
      { cause: error },
    );
  }

  async halt(request: HaltRequest): Promise<Halted> {
    const { name } = request;
    this.#requireThere(name);
    const role = this.#o.role();
    if (isPrimary(role)) {
      // Its applications write anyway: nothing is held.
      const position = await this.#o.capture.position(name);
      return {
        position: position ?? { ...NO_POSITION, epoch: 0n },
        remainingMs: this.#o.haltTtlMs,
      };
    }
    if (role !== 'replica') {
      throw new KiteError('ERR_DAEMON_NOT_READY', `this node is ${role}`);
    }
    if (this.#o.driver !== 'kernel') {
      throw new KiteError(
        'ERR_HALT_UNSUPPORTED',
        'a replica cannot hold a commit until the primary has it with fuse.driver fuse-native',
      );
    }
    return await this.#o.haltLocks.acquire(request);
  }

  async unhalt(name: string, id: number): Promise<void> {
    await this.#o.haltLocks.release(name, id);
  }

  async waitFor(name: string, entry: TokenEntry, timeoutMs: number, signal: AbortSignal): Promise<boolean> {
    return await this.#o.positionWaits.wait(name, entry, timeoutMs, signal);
  }

  async seen(name: string): Promise<TokenEntry | undefined> {
    return await this.#o.store.seen(name);
  }

  #exists(name: string): boolean {
    const last = this.#o.store.lastFile(name);
    return last !== undefined && last.commitPages > 0;
  }
}
