import type { Applier } from '../applier/applier.js';
import { markClosed, markServed } from '../applier/boot-marker.js';
import type { Capture } from '../capture/capture.js';
import { KiteError, toKiteError } from '../errors.js';
import { type ControlBlock, MountState } from '../fuse/control-block.js';
import type { Mount } from '../fuse/mount.js';
import type { LeaseHolder } from '../lease/types.js';
import { BucketFollower, type BucketFollowerOptions, type Upstream } from '../follow/bucket-follower.js';
import { ReplicationClient, type ReplicationClientOptions } from '../replication/client.js';
import { pull } from '../replication/pull.js';
import type { DataDirectory } from '../store/data-directory.js';
import type { EventLog } from './event-log.js';
import type { NodeStore } from './node-store.js';
import type { StartFromBackups } from './start-from-backups.js';

/** How long a winner of the lease may take to apply what it has received before it gives the lease up. */
const CATCH_UP_LIMIT_MS = 10_000;

export interface RoleParts {
  readonly data: DataDirectory;
  readonly control: ControlBlock;
  readonly capture: Capture;
  readonly applier: Applier;
  readonly mount: Mount;
  readonly store: NodeStore;
  readonly events: EventLog;
  readonly backups: StartFromBackups;
  /** Ends what HALT has changed: capture or the applier has databases that are not its own. */
  readonly endHalts: (reason: string) => Promise<void>;
  readonly client: Omit<ReplicationClientOptions, 'primaryAddress'>;
  /** Instead of a primary this bucket is followed. */
  readonly bucket: BucketFollowerOptions | undefined;
}

/** What the winner of a lease gets from others before it lets anybody write. */
export interface Fetch {
  /** Addresses to ask, the most promising first. */
  readonly peers: readonly string[];
  /** Databases that the previous primary had. */
  readonly wanted: readonly string[];
  /** What the previous primary had and this node has not, in words. */
  readonly missing: () => readonly string[];
  /** This node's own data is old: without what others have it may not open. */
  readonly must: boolean;
  /** The previous primary saw that this node has everything. */
  readonly complete: boolean;
}

/**
 * Makes this node a primary or a replica. One change at a time, in the order in which the lease decided. The
 * write permission of the mount is not kept here: the lease's events set it at once, this only follows.
 */
export class RoleSwitch {
  readonly #parts: RoleParts;
  /** capture: it has the databases; applier: it follows; none: at start, or between the two. */
  #owner: 'none' | 'capture' | 'applier' = 'none';
  /** Databases that capture cannot follow: they are read only until the role changes. */
  readonly #stopped = new Set<string>();
  /** The data directory is marked as one that a primary writes. */
  #marked = false;
  #client: Upstream | undefined;
  #followed: LeaseHolder | undefined;
  #turn: Promise<void> = Promise.resolve();
  /** This node was primary, and since `recover` no application could write. */
  #recovered = false;

  constructor(parts: RoleParts) {
    this.#parts = parts;
  }

  get client(): Upstream | undefined {
    return this.#client;
  }

  /** Runs changes one after the other; a failed one does not stop the next. */
  #inTurn<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(change);
    this.#turn = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }

  /**
   * Recovery at start, while the mount is closed to others (DESIGN §3): what the WAL holds and the log lacks goes
   * to the log first, only then may SQLite touch the files (trap 7).
   */
  async recover(): Promise<void> {
    const { data, capture, applier, store, events } = this.#parts;
    this.#recovered = data.node.wasPrimary;
    if (data.node.wasPrimary) {
      for (const name of data.names()) {
        try {
          await capture.recover(name);
          await applier.recover(name);
        } catch (thrown) {
          const error = toKiteError(thrown);
          events.add('database-failed', error.describe(), { database: name, level: 'error' });
          store.setError(name, error);
        }
      }
    }
    await store.reopenLogs();
  }

  /**
   * This node has won the lease: what others have and this node lacks is fetched, everything received is
   * applied, then capture takes the databases. Rejects when it cannot be primary now; it is then as it was.
   */
  becomePrimary(epoch: bigint, fetch: Fetch): Promise<void> {
    return this.#inTurn(async () => {
      const { data, capture, applier, store, events, backups } = this.#parts;
      const isEmpty = !fetch.complete && backups.wanted(store);
      await this.#parts.endHalts('this node becomes the primary');
      await this.#unfollowPrimary();
      const ahead = isEmpty || fetch.complete ? [] : await backups.ahead(store, fetch.must);
      if (this.#owner === 'none' && (fetch.must || isEmpty || ahead.length > 0 || !data.node.wasPrimary))
        this.#follow();
      if (this.#owner === 'applier') {
        await this.#pullFrom(fetch.peers, fetch.wanted);
        if (isEmpty && backups.wanted(store)) await backups.run(store);
        await backups.take(ahead, store);
        const missing = fetch.must ? fetch.missing() : [];
        if (missing.length > 0) {
          throw new KiteError(
            'ERR_DAEMON_NOT_READY',
            `nobody gave what is missing here: ${missing.join(', ')}`,
          );
        }
        await withLimit(store.drained(), CATCH_UP_LIMIT_MS, 'what was received could not be applied in time');
        const troubled = store.troubled();
        if (troubled.length > 0) {
          throw new KiteError(
            'ERR_DAEMON_NOT_READY',
            `these databases are not whole here: ${troubled.join(', ')}`,
          );
        }
        await store.unfollow();
        this.#owner = 'none';
        await applier.letGoAll();
      }
      // Kept before the first transaction of the new epoch: after a crash this node must know that its WALs may hold more than its logs.
      data.updateNode({ epoch, wasPrimary: true });
      this.#mark();
      this.#owner = 'capture';
      this.#recovered = false;
      this.#stopped.clear();
      for (const database of await capture.promote(epoch, store.logContents())) {
        if (!database.error) continue;
        const error = new KiteError(database.error.code, database.error.message);
        events.add('database-failed', error.describe(), { database: database.name, level: 'error' });
        store.setError(database.name, error);
        this.#stopped.add(database.name);
      }
      await this.#parts.mount.stopWrites([...this.#stopped]);
    });
  }

  /**
   * After `becomePrimary`, once the mount is a primary's: what the applier has kept open goes. Its lasting connections would make
   * journal-mode switches of applications fail (trap 18); closing them is a checkpoint, which writers need not wait for.
   */
  closeApplied(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#owner !== 'capture') return;
      await this.#parts.store.syncAll();
      await this.#parts.applier.closeLetGo();
    });
  }

  /** Does now, while writers go on elsewhere, what `becomePrimary` would keep them waiting for: fsyncs and checkpoints. */
  prepare(): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#owner !== 'applier') return;
      this.#mark();
      await this.#parts.applier.settleAll();
    });
  }

  #mark(): void {
    if (!this.#marked) markServed(this.#parts.data.path);
    this.#marked = true;
  }

  /** Somebody else is primary, or nobody is known to be. */
  becomeReplica(holder: LeaseHolder | undefined): Promise<void> {
    return this.#inTurn(async () => {
      const { data, control, capture, store, mount } = this.#parts;
      const same = holder && this.#client && this.#followed?.nodeId === holder.nodeId;
      // The applier would wait for its own locks, or find capture's databases.
      if (!same) await this.#parts.endHalts('the primary has changed');
      if (this.#owner === 'capture') {
        await this.#unfollowPrimary();
        // The mount is fenced; a write that it was passing on at that moment has been passed on when it answers this, so
        // that capture misses no commit.
        await mount.changed();
        await capture.demote();
        await store.reopenLogs();
        this.#owner = 'none';
      }
      // From here on the mount takes only the applier's writes.
      control.state = MountState.replica;
      await mount.changed();
      this.#stopped.clear();
      await mount.stopWrites([]);
      // With nobody to follow, what a former primary has recovered stays as it is: if it wins again, capture compares
      // it with the log. SQLite's recovery may have committed what the log lacks (a transaction over several
      // databases), or left other bytes in free pages, which is no position that the applier could go on from.
      if (!holder && this.#recovered) return;
      if (this.#owner === 'none') this.#follow();
      data.updateNode({ wasPrimary: false });
      // What a power cut may have taken from here comes from the primary.
      if (holder) {
        markClosed(data.path);
        this.#marked = false;
        this.#parts.backups.abandon();
      }
      await this.#followPrimary(holder);
    });
  }

  /** Capture has given a database up: nothing may be committed in it that would be in no log. */
  stopWrites(name: string): Promise<void> {
    this.#stopped.add(name);
    return this.#parts.mount.stopWrites([...this.#stopped]);
  }

  /** A database is gone: what takes its place is another one. */
  async dropped(name: string): Promise<void> {
    if (this.#stopped.delete(name)) await this.#parts.mount.stopWrites([...this.#stopped]);
  }

  /**
   * Nothing more is committed until `resumeWrites`, in any database; resolves when no write is under way in the mount.
   * Not kept over a change of role: a replica takes the applier's writes.
   */
  pauseWrites(): Promise<void> {
    this.#parts.control.paused = true;
    // Any message to the mount thread will do: it is read between two requests.
    return this.#parts.mount.stopWrites([...this.#stopped]);
  }

  resumeWrites(): void {
    this.#parts.control.paused = false;
  }

  /** Resolves when the changes of role that were decided so far have been made. */
  settled(): Promise<void> {
    return this.#inTurn(async () => undefined);
  }

  /** Lets go of everything, for a clean stop. */
  stop(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#parts.endHalts('this node stops');
      await this.#unfollowPrimary();
      await this.#parts.store.unfollow();
      this.#owner = 'none';
    });
  }

  /** One after the other, because each goes on from what the one before has brought. */
  async #pullFrom(peers: readonly string[], wanted: readonly string[]): Promise<void> {
    const { store, client, events } = this.#parts;
    for (const address of peers) {
      const before = store.logEnds();
      const after = new Map([...wanted, ...before.keys()].map((name) => [name, before.get(name)]));
      try {
        await pull({ address, store, secret: client.secret, after });
      } catch (error) {
        events.add('pull-failed', toKiteError(error).message, { level: 'warn' });
      }
      for (const [name, end] of store.logEnds()) {
        const from = before.get(name)?.txid ?? 0n;
        if (end.txid === from) continue;
        events.add('pulled', `${address} had TXID ${from + 1n} to ${end.txid}`, { database: name });
      }
    }
  }

  #follow(): void {
    this.#recovered = false;
    this.#parts.store.follow(this.#parts.applier);
    this.#owner = 'applier';
  }

  async #followPrimary(holder: LeaseHolder | undefined): Promise<void> {
    const same =
      holder && this.#followed?.nodeId === holder.nodeId && this.#followed.peerAddress === holder.peerAddress;
    if (same && this.#client) return;
    await this.#unfollowPrimary();
    if (!holder) return;
    this.#followed = holder;
    const { bucket, client } = this.#parts;
    this.#client = bucket
      ? BucketFollower.start(bucket)
      : ReplicationClient.start({ ...client, primaryAddress: holder.peerAddress });
  }

  async #unfollowPrimary(): Promise<void> {
    const client = this.#client;
    this.#client = undefined;
    this.#followed = undefined;
    await client?.stop();
  }
}

async function withLimit(work: Promise<void>, limitMs: number, what: string): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new KiteError('ERR_DAEMON_NOT_READY', what)), limitMs);
  });
  try {
    await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
