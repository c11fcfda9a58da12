import { randomInt } from 'node:crypto';
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Config } from '../config/load.js';
import { KiteError, toKiteError } from '../errors.js';
import { behind, furthest } from '../lease/election.js';
import { Lease } from '../lease/lease.js';
import type { LeaseAdapter, LeaseEvent, LeaseHolder, LeasePositions } from '../lease/types.js';
import { ltxFileName, parseLtxFileName } from '../ltx/position.js';
import { encodeWhole, findBackups, positionsOf, RestoringFolder } from '../restore/missing.js';
import type { Restored } from '../restore/restore.js';
import { carryHeader, DATABASE_HEADER_BYTES } from '../sqlite/database-header.js';
import { DataDirectory, databasePaths, newNodeId } from '../store/data-directory.js';
import { encodeDatabaseName } from '../store/database-name.js';
import { Log } from '../store/log.js';
import { replaceDatabase } from '../store/replacements.js';
import { fsyncDirectory, writeFully } from '../util/files.js';
import { monotonicMs, monotonicNs } from '../util/clock.js';
import { joinCluster, type JoinedCluster } from './cluster-id.js';
import { leaseIdentity, openLease } from './lease-kinds.js';

const POLL_MS = 20;
/** Beside the times after which a silent holder may be succeeded. */
const PATIENCE_MS = 10_000;

/** Where a restored database has been put. */
export interface Placed {
  readonly txid: bigint;
  readonly epoch: bigint;
  /** It is the newest state that is known of: the cluster's history goes on from there. Else it is a new transaction. */
  readonly goesOn: boolean;
  /** The folder in which what was there is kept; undefined: nothing was there. */
  readonly kept: string | undefined;
}

/**
 * `kitefs restore DB` without `-o`: a restored database takes its place in the data directory of a node that does not run. For that moment
 * the command is the cluster's primary, by the lease, so that it has an epoch in which nobody else writes and nobody
 * is primary meanwhile. Decision 037 has every case.
 */
export class StoppedNode {
  readonly #config: Config;
  readonly #name: string;
  readonly #data: DataDirectory;
  readonly #folder: string;
  /** How far backups and this node's own log are, as far as they say. */
  #known: LeasePositions = {};
  /** The highest TXID that any of them, or of the names of the log's files, has. */
  #highestTxid = 0n;
  #adapter: LeaseAdapter | undefined;
  #joined: JoinedCluster | undefined;

  private constructor(config: Config, name: string, data: DataDirectory) {
    this.#config = config;
    this.#name = name;
    this.#data = data;
    this.#folder = join(config.data.dir, 'tmp');
  }

  /**
   * Owns the data directory until `close`. Throws ERR_RESTORE_RUNNING when the node runs, ERR_LEASE_NOT_CANDIDATE for one that
   * can never be primary, ERR_BACKUP_* when a destination does not answer or has another cluster's backups, ERR_STORE_*.
   */
  static async open(config: Config, name: string): Promise<StoppedNode> {
    // Whatever it restored, the primary would put back at its start.
    if (!config.lease.candidate)
      throw new KiteError(
        'ERR_LEASE_NOT_CANDIDATE',
        'this node can never be primary (lease.candidate is false) and follows whatever the primary has: restore there',
      );
    encodeDatabaseName(name);
    const node = new StoppedNode(config, name, openData(config));
    try {
      await node.#look();
      return node;
    } catch (error) {
      await node.close();
      throw error;
    }
  }

  /** Where to restore to. What an interrupted call has left there is gone on from, until the node starts. */
  get output(): string {
    return join(this.#folder, `restore-${encodeDatabaseName(this.#name)}`);
  }

  /** Whether the node has the database. */
  get hasDatabase(): boolean {
    return existsSync(databasePaths(this.#data.path, this.#name).database);
  }

  /** What the cluster is, and how far this database was anywhere: no TXID of then may get another content. */
  async #look(): Promise<void> {
    const config = this.#config;
    const data = this.#data;
    const found = await findBackups(config.backups, this.#name);
    const { clusterId, epoch } = found;
    this.#adapter = await openLease(config, data.node.nodeId, data.node.epoch);
    this.#joined = await joinCluster(
      data,
      config,
      this.#adapter,
      clusterId === undefined ? undefined : { clusterId, epoch },
    );
    data.updateNode({ epoch });
    await refuseLiving(this.#adapter, data.node.nodeId);
    const { ltx } = databasePaths(data.path, this.#name);
    const own = logEnd(ltx);
    this.#known = furthest([positionsOf(found), own === undefined ? {} : { [this.#name]: own }]);
    this.#notice(txidsIn(ltx));
    mkdirSync(this.#folder, { recursive: true });
    // Whole, and before it was put in place somebody ended this: the backups may have more by now.
    rmSync(this.output, { force: true });
  }

  /**
   * Puts what was restored to `output` in place. Throws ERR_RESTORE_RUNNING when there is a primary, ERR_LEASE_*; then nothing
   * has changed. Killed, the node has the old database or the new one.
   */
  async put(restored: Restored): Promise<Placed> {
    const turn = new Turn(this.#config, this.#data, this.#adapter!, this.#joined!);
    this.#adapter = undefined;
    try {
      const { epoch: ourEpoch, recorded, others } = await turn.won();
      this.#data.updateNode({ epoch: ourEpoch });
      const known = furthest([this.#known, recorded, ...others]);
      this.#notice(known);
      const { clusterTxid, epoch: itsEpoch = 0n, timestampMs } = restored;
      const isKnown =
        clusterTxid !== undefined &&
        behind({ [this.#name]: `${itsEpoch}:${clusterTxid}` }, this.#only(known)).length === 0;
      const at = isKnown
        ? { txid: clusterTxid, epoch: itsEpoch, timestampMs }
        : { txid: this.#highestTxid + 1n, epoch: ourEpoch, timestampMs: Date.now() };
      const prepared = await this.#prepare(at, isKnown);
      // From here on it is a matter of renames.
      await turn.mayWrite();
      // One of several databases in an empty directory: the node still has to fetch the others.
      if (this.#config.restoreIfMissing && this.#data.names().length === 0)
        new RestoringFolder(this.#data.path).begin();
      const kept = replaceDatabase(this.#data.path, this.#name, prepared);
      turn.wrote({ [this.#name]: `${at.epoch}:${at.txid}` });
      return { ...at, goesOn: isKnown, kept };
    } finally {
      await turn.end();
    }
  }

  /** Makes the folder of the database, durably. */
  async #prepare(
    at: { readonly txid: bigint; readonly epoch: bigint; readonly timestampMs: number },
    goesOn: boolean,
  ): Promise<string> {
    const folder = `${this.output}.place`;
    rmSync(folder, { recursive: true, force: true });
    const ltx = join(folder, 'ltx');
    mkdirSync(ltx, { recursive: true });
    const database = join(folder, 'database');
    renameSync(this.output, database);
    if (!goesOn) renewHeader(database);
    const file = join(ltx, ltxFileName({ minTxid: 1n, maxTxid: at.txid }));
    await encodeWhole(database, file, at);
    for (const path of [ltx, folder, this.#folder]) fsyncDirectory(path);
    return folder;
  }

  #only(positions: LeasePositions): LeasePositions {
    const at = positions[this.#name];
    return at === undefined ? {} : { [this.#name]: at };
  }

  #notice(at: LeasePositions | readonly bigint[]): void {
    const txids = Array.isArray(at)
      ? (at as readonly bigint[])
      : [txidOf((at as LeasePositions)[this.#name])];
    for (const txid of txids) if (txid > this.#highestTxid) this.#highestTxid = txid;
  }

  async close(): Promise<void> {
    await this.#adapter?.close();
    this.#data.close();
  }
}

function openData({ data, node }: Config): DataDirectory {
  try {
    return DataDirectory.open(data.dir, { nodeId: newNodeId(node.id) });
  } catch (thrown) {
    const error = toKiteError(thrown);
    if (error.code !== 'ERR_STORE_LOCKED') throw error;
    throw new KiteError('ERR_RESTORE_RUNNING', `this node runs: ${error.message}`, { cause: error });
  }
}

const LEASE_TIMEOUT_MS = 5000;

/** Before hours of restoring: whether another node renews the lease. */
async function refuseLiving(adapter: LeaseAdapter, nodeId: string): Promise<void> {
  const { record, version } = await adapter.read(LEASE_TIMEOUT_MS);
  const { holder } = record ?? {};
  if (!record || !holder || holder.nodeId === nodeId) return;
  if (await adapter.ended?.(holder, LEASE_TIMEOUT_MS)) return;
  const later = await adapter.watch(version, record.ttlMs);
  if (later.version !== version && later.record?.holder) throw running(later.record.holder);
}

const running = ({ nodeId, advertiseUrl }: LeaseHolder): KiteError =>
  new KiteError(
    'ERR_RESTORE_RUNNING',
    `the cluster runs without this node: ${nodeId} (${advertiseUrl}) is its primary`,
  );

/** The end of a log as the lease says it; undefined: there is none, or it cannot be read. */
function logEnd(ltx: string): string | undefined {
  if (!existsSync(ltx)) return undefined;
  try {
    const end = Log.open(ltx, { repair: false }).lastPosition;
    return end && `${end.epoch}:${end.txid}`;
  } catch {
    // The names of its files say how far it was.
    return undefined;
  }
}

const txidsIn = (ltx: string): bigint[] =>
  existsSync(ltx) ? readdirSync(ltx).flatMap((name) => parseLtxFileName(name)?.maxTxid ?? []) : [];

const txidOf = (position: string | undefined): bigint => BigInt(position?.split(':')[1] ?? 0);

/**
 * Gives the counters in page 1 values that nobody has met: connections of replicas compare them with what they remember from the states
 * that are given up here.
 */
function renewHeader(path: string): void {
  const fd = openSync(path, 'r+');
  try {
    const page = Buffer.alloc(DATABASE_HEADER_BYTES);
    readSync(fd, page, 0, page.length, 0);
    const now = Buffer.from(page);
    for (const offset of [24, 40]) now.writeUInt32BE(randomInt(2 ** 31), offset);
    writeFully(fd, carryHeader(page, now), 0);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

interface Won {
  readonly epoch: bigint;
  /** How far the last primary was, and what the members say of themselves. */
  readonly recorded: LeasePositions;
  readonly others: readonly LeasePositions[];
}

/** The lease, held for a moment. */
class Turn {
  readonly #lease: Lease;
  readonly #limitMs: number;
  #won: { readonly epoch: bigint; readonly recorded: LeasePositions } | undefined;
  #deadlineNs = 0n;
  #lost: string | undefined;
  #failed: KiteError | undefined;
  #wrote: LeasePositions = {};

  constructor(config: Config, data: DataDirectory, adapter: LeaseAdapter, joined: JoinedCluster) {
    const { lease } = config;
    this.#lease = new Lease({
      ...leaseIdentity(config, data, joined),
      adapter,
      // Of the other databases the record goes on saying what it says: nothing of them is decided here.
      positions: () => ({ ...(this.#won?.recorded ?? this.#lease.record?.positions), ...this.#wrote }),
      followed: () => false,
      onEvent: (event) => this.#on(event),
    });
    this.#limitMs = 4 * lease.ttlMs + lease.lockDelayMs + PATIENCE_MS;
  }

  #on(event: LeaseEvent): void {
    if (event.kind === 'won') this.#won = event;
    else if (event.kind === 'primary' || event.kind === 'renewed') this.#deadlineNs = event.deadlineNs;
    else if (event.kind === 'fenced') this.#deadlineNs = 0n;
    else if (event.kind === 'refused' && event.fatal) this.#failed = new KiteError(event.code, event.reason);
    else if (event.kind === 'unreachable')
      this.#failed ??= new KiteError('ERR_LEASE_UNREACHABLE', event.reason);
    else if (event.kind === 'reachable') this.#failed = undefined;
    else if (event.kind === 'replica' && this.#won) this.#lost = event.reason;
  }

  /** Takes the lease, whatever this node lacks. Throws ERR_RESTORE_RUNNING when somebody keeps it. */
  async won(): Promise<Won> {
    this.#lease.start();
    this.#lease.acceptLoss(this.#limitMs);
    let first: string | undefined;
    for (const untilMs = monotonicMs() + this.#limitMs; !this.#won; await sleep(POLL_MS)) {
      if (this.#failed && this.#failed.code !== 'ERR_LEASE_UNREACHABLE') throw this.#failed;
      const { holder, heartbeat } = this.#lease.record ?? {};
      const beat = holder && `${holder.incarnation} ${heartbeat}`;
      first ??= beat;
      // It is being renewed: somebody lives.
      if (holder && beat !== first) throw running(holder);
      if (monotonicMs() > untilMs)
        throw this.#failed ?? new KiteError('ERR_LEASE_UNREACHABLE', this.#lease.waitingFor);
    }
    const others = this.#lease.members.map(({ positions }) => positions);
    return { ...this.#won, others };
  }

  /** Resolves while nobody else can be primary. Throws ERR_RESTORE_RUNNING when that is over. */
  async mayWrite(): Promise<void> {
    this.#lease.ready(this.#won!.epoch);
    for (const untilMs = monotonicMs() + this.#limitMs; monotonicMs() < untilMs; await sleep(POLL_MS)) {
      if (this.#failed && this.#failed.code !== 'ERR_LEASE_UNREACHABLE') throw this.#failed;
      if (this.#lost !== undefined) break;
      // Half a second is enough for some renames, and the next heartbeat brings more.
      if (this.#deadlineNs - monotonicNs() < 500_000_000n) continue;
      await this.#standAlone();
      return;
    }
    throw new KiteError(
      'ERR_RESTORE_RUNNING',
      `the lease was lost before anything was changed (${this.#lost ?? 'its store did not answer'})`,
    );
  }

  /** Where commits waited for replicas, only this node has what it is about to write. */
  async #standAlone(): Promise<void> {
    const record = this.#lease.record;
    const nodeId = record?.holder?.nodeId;
    if (!record || nodeId === undefined || record.syncSet.length === 0) return;
    this.#lease.setSyncSet(record.epoch, [nodeId]);
    for (const untilMs = monotonicMs() + this.#limitMs; monotonicMs() < untilMs; await sleep(POLL_MS))
      if (String(this.#lease.syncSets) === nodeId) return;
    throw new KiteError('ERR_LEASE_UNREACHABLE', 'the lease did not take another sync set');
  }

  wrote(positions: LeasePositions): void {
    this.#wrote = positions;
  }

  /** Empties the lease, which says then how far this node is: others wait for it before they take over. */
  async end(): Promise<void> {
    await this.#lease.release();
  }
}
