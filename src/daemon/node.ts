import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { powerWasCut } from '../applier/boot-marker.js';
import { Applier } from '../applier/applier.js';
import type { ApplierEvent } from '../applier/messages.js';
import { Capture } from '../capture/capture.js';
import { takeBack } from '../capture/take-back.js';
import type { Backups } from '../backup/backups.js';
import type { Drills } from '../drill/drills.js';
import type { Config } from '../config/load.js';
import { formatAddress } from '../config/values.js';
import { BackedUp, BothAnswers } from '../durability/backed-up.js';
import { Durability, type DurabilityEvent, type DurabilityState } from '../durability/durability.js';
import { KiteError, toKiteError } from '../errors.js';
import { ControlBlock, MountState } from '../fuse/control-block.js';
import { Mount, type MountEvent } from '../fuse/mount.js';
import { AdminServer } from '../http/server.js';
import { HaltGrants } from '../halt/grants.js';
import { HaltLocks } from '../halt/locks.js';
import type { PrimaryChange } from '../http/events.js';
import type { NodeApi, NodeChange } from '../http/node-api.js';
import { behind } from '../lease/election.js';
import { Lease } from '../lease/lease.js';
import type { LeaseEvent, LeaseHolder, LeasePositions, Member } from '../lease/types.js';
import { formatPosition } from '../ltx/position.js';
import type { Proxy } from '../proxy/proxy.js';
import type { Logger } from '../observability/log.js';
import { Metrics } from '../observability/metrics.js';
import { isPrimary, type NodeRole, type NodeStatus } from '../observability/node-status.js';
import type { ReplicationClientEvent } from '../replication/client.js';
import { ReplicationServer, type PrimaryRole, type ReplicaEvent } from '../replication/server.js';
import { DataDirectory, newNodeId } from '../store/data-directory.js';
import { ChangeMark } from '../util/change-mark.js';
import { monotonicMs } from '../util/clock.js';
import type { LockHolder } from '../util/lock-holder.js';
import { joinCluster } from './cluster-id.js';
import { DatabaseRequests } from './database-requests.js';
import { EventLog } from './event-log.js';
import { noteClientEvent, noteDurabilityEvent, noteReplicaEvent } from './event-notes.js';
import { HAND_OFF_WAIT_MS, HandOff, type HandOffRequest } from './hand-off.js';
import { leaseIdentity, openLease } from './lease-kinds.js';
import { LockEnforcer } from './lock-enforcer.js';
import { isHolder, reasonToEnter } from './node-state.js';
import { NodeStore } from './node-store.js';
import { startBackups, startDrills, startProxy, type PartsOptions } from './optional-parts.js';
import { PositionWaits } from './position-waits.js';
import { Promotion } from './promotion.js';
import { Retention } from './retention.js';
import { Rewinds } from './rewind.js';
import { RoleSwitch, type Fetch } from './role.js';
import { StartFromBackups } from './start-from-backups.js';
import { hostOf, specialFile } from './special-files.js';
import { makeStatus } from './status.js';

/** One node: puts the parts together, and carries the lease's decisions out. */
export class Node implements NodeApi {
  readonly #config: Config;
  readonly #logger: Logger;
  readonly #control = new ControlBlock();
  /** Of what readers here see, for the proxy. */
  #mark: ChangeMark | undefined;
  readonly #events: EventLog;
  readonly #metrics: Metrics;
  readonly #data: DataDirectory;
  readonly #lockEnforcer: LockEnforcer;
  /** What is undone at the end, in reverse order of how it was made. */
  readonly #undo: (() => Promise<void> | void)[] = [];
  #capture!: Capture;
  #mount!: Mount;
  #applier!: Applier;
  #store!: NodeStore;
  #server!: ReplicationServer;
  #roles!: RoleSwitch;
  #durability!: Durability;
  #backedUp!: BackedUp;
  #haltGrants!: HaltGrants;
  #haltLocks!: HaltLocks;
  #backups: Backups | undefined;
  #drills: Drills | undefined;
  #proxy: Proxy | undefined;
  #databases!: DatabaseRequests;
  #fromBackups: StartFromBackups | undefined;
  #lease: Lease | undefined;
  #openingReadOnly: NodeJS.Timeout | undefined;
  #handOff: HandOff | undefined;
  #promotion: Promotion | undefined;
  #role: NodeRole = 'starting';
  #holder: LeaseHolder | undefined;
  readonly #watchers = new Set<(change: NodeChange) => void>();
  /** Aborted by `stop`: from then on this node changes its role no more. */
  readonly #stopping = new AbortController();
  /** When the stream of a primary was last seen open and caught up, and of which one. */
  #followed = { epoch: 0n, atMs: -Infinity };
  /** Set once the databases were caught up, or there was nothing to catch up with. */
  #wasReady = false;
  #onFatal: ((error: KiteError) => void) | undefined;
  /** What was fatal before anybody listened: the lease may refuse this node at once. */
  #fatalError: KiteError | undefined;

  private constructor(config: Config, logger: Logger, data: DataDirectory) {
    this.#config = config;
    this.#logger = logger;
    this.#data = data;
    this.#lockEnforcer = new LockEnforcer(config.fuse.endLockHolderAfterMs);
    this.#events = new EventLog(logger, (event) => this.#metrics.events.inc({ kind: event.kind }));
    this.#metrics = new Metrics(() => this.status());
  }

  /**
   * Starts a node: data directory, mount, recovery, peers, lease, admin server; resolves when the mount serves and the
   * lease is watched.  On an error everything that was started is undone.
   */
  static async start(config: Config, logger: Logger): Promise<Node> {
    const data = DataDirectory.open(config.data.dir, { nodeId: newNodeId(config.node.id) });
    const node = new Node(config, logger, data);
    node.#undo.push(() => data.close());
    try {
      await node.#start();
      return node;
    } catch (error) {
      await node.#undoAll();
      throw error;
    }
  }

  async #start(): Promise<void> {
    const config = this.#config;
    const tmpDir = join(config.data.dir, 'tmp');
    await rm(tmpDir, { recursive: true, force: true });
    await mkdir(tmpDir, { recursive: true });
    const nodeId = this.#data.node.nodeId;
    const fromBackups = (this.#fromBackups = new StartFromBackups({
      config,
      data: this.#data,
      events: this.#events,
      logger: this.#logger,
      signal: this.#stopping.signal,
      lossAccepted: () => this.#promotion?.lossAccepted ?? false,
    }));
    await fromBackups.look();
    const adapter = await openLease(config, nodeId, this.#data.node.epoch);
    this.#undo.push(() => adapter.close());
    await fromBackups.check(adapter);
    const joined = await joinCluster(this.#data, config, adapter, fromBackups.cluster);

    // Forked first: a process takes as long to load as capture and the mount take to start.
    const starting = Applier.start({
      mountDir: config.fuse.dir,
      dataDir: config.data.dir,
      checkBytesPerSecond: config.data.checkRateBytes,
      logger: this.#logger,
      // The kernel driver knows it by its pid; announced opens need O_SYNC, which costs an fsync per write.
      ...(config.fuse.driver === 'fuse-native' && { arm: (names) => this.#mount.armApplier({ names }) }),
      onStart: async (pid) => await this.#mount?.armApplier({ pid }),
      onRestart: () => {
        this.#metrics.applierRestarts.inc();
        // The locks were those of the process that is gone.
        this.#haltGrants?.endAll('the applier was started again').catch(() => undefined);
        this.#store.applierRestarted();
      },
      onEvent: (event) => this.#onApplierEvent(event),
    });
    this.#undo.push(async () => await (await starting).stop());

    this.#capture = await Capture.start({
      dataDir: config.data.dir,
      nodeId,
      control: this.#control.buffer,
      checkBytesPerSecond: config.data.checkRateBytes,
    });
    this.#undo.push(() => this.#capture.stop());
    this.#capture.on('died', (error) => this.#fatal(error));
    this.#capture.on('failed', ({ name, error: { message } }) => {
      this.#haltLocks?.end(name, message).catch((error: unknown) => this.#trouble(error));
      this.#roles?.stopWrites(name).catch((error: unknown) => this.#trouble(error));
    });
    this.#mark = config.proxy.addr && ChangeMark.create();
    this.#store = new NodeStore({
      data: this.#data,
      capture: this.#capture,
      events: this.#events,
      metrics: this.#metrics,
      logger: this.#logger,
      isPrimary: () => isHolder(this.#role),
      onResyncNeeded: (name) => this.#roles.client?.resync(name),
      onHaltOver: (name) => this.#haltLocks.end(name, 'the primary has gone on without it'),
      onApplying: () => this.#mark?.touch(),
    });
    this.#store.openLogs({ repair: true });
    this.#undo.push(() => this.#store.close());
    const positionWaits = new PositionWaits(this.#store);
    this.#undo.push(() => positionWaits.stop());
    this.#count();
    this.#store.subscribe(({ kind, name }) => {
      // On a replica what counts is what readers see, not what has arrived.
      if (kind === (isPrimary(this.#role) ? 'transaction' : 'applied')) this.#tellTransaction(name);
    });

    const { uid, gid, mode, allowOther, otherFiles, driver, dir } = config.fuse;
    this.#mount = await Mount.start({
      mountDir: dir,
      dataDir: config.data.dir,
      driver,
      control: this.#control.buffer,
      captureEndpoint: { ...(await this.#capture.gateEndpoint()), mark: this.#mark?.buffer },
      otherFiles,
      allowOther,
      candidate: config.lease.candidate,
      durability: config.durability,
      ...(uid === undefined ? {} : { uid }),
      ...(gid === undefined ? {} : { gid }),
      ...(mode === undefined ? {} : { fileMode: mode }),
      special: (path) => this.#specialFile(path),
      onEvent: (event) => this.#onMountEvent(event),
    });
    this.#undo.push(() => this.#mount.stop());
    await this.#capture.setWaker(this.#mount.waker.buffer);

    this.#applier = await starting;
    if (this.#applier.pid !== undefined) await this.#mount.armApplier({ pid: this.#applier.pid });
    this.#undo.push(() => this.#applier.stop());

    const onHalt = (kind: string, database: string, message: string): void => {
      this.#events.add(kind, message, { database });
    };
    this.#haltGrants = new HaltGrants({
      ttlMs: config.halt.ttlMs,
      tmpDir,
      control: this.#control,
      applier: this.#applier,
      capture: this.#capture,
      onEvent: onHalt,
    });
    this.#haltLocks = new HaltLocks({
      nodeId,
      store: this.#store,
      capture: this.#capture,
      mount: this.#mount,
      client: () => this.#roles.client,
      onEvent: onHalt,
    });
    this.#roles = new RoleSwitch({
      data: this.#data,
      control: this.#control,
      capture: this.#capture,
      applier: this.#applier,
      mount: this.#mount,
      store: this.#store,
      events: this.#events,
      backups: fromBackups,
      endHalts: async (reason) => {
        await Promise.all([this.#haltLocks.endAll(reason), this.#haltGrants.endAll(reason)]);
      },
      client: {
        store: this.#store,
        secret: config.peer.secret,
        onHigherEpoch: (epoch) => this.#data.updateNode({ epoch }),
        onEvent: (event) => this.#onClientEvent(event),
      },
      bucket: config.follow && {
        destination: config.follow,
        intervalMs: config.followIntervalMs,
        store: this.#store,
        tmpDir,
        onHigherEpoch: (epoch) => this.#data.updateNode({ epoch }),
        onEvent: (event) => this.#onClientEvent(event),
        onWhole: (name, reason) => {
          this.#events.add('resync', `all of ${name} was fetched from the bucket: ${reason}`, {
            database: name,
          });
        },
      },
    });
    await this.#roles.recover();
    this.#undo.push(() => this.#roles.stop());

    const answers = new BothAnswers((id, errno) => this.#capture.replicasHave(id, errno));
    this.#durability = new Durability({
      nodeId,
      region: config.node.region,
      policies: config.durability,
      candidatesOnly: config.lease.type !== 'static',
      lease: {
        setSyncSet: (epoch, members) => this.#lease?.setSyncSet(epoch, members),
        syncSets: () => this.#lease?.syncSets ?? [],
        members: () => this.#lease?.members ?? [],
      },
      store: this.#store,
      answer: (id, errno) => answers.answer(id, errno),
      onEvent: (event) => this.#onDurabilityEvent(event),
    });
    this.#backedUp = new BackedUp({
      policies: config.durability,
      backups: {
        shipped: (name) => this.#backups?.shipped(name),
        isFenced: () => this.#backups?.isFenced ?? false,
        hurry: (name) => this.#backups?.hurry(name),
      },
      store: this.#store,
      answer: (id, errno) => answers.answer(id, errno),
      onEvent: (event) => this.#onDurabilityEvent(event),
    });
    this.#undo.push(() => {
      this.#durability.stop();
      this.#backedUp.stop();
    });
    this.#store.subscribe((change) => this.#durability.logged(change));
    this.#capture.on('awaits', ({ id, name, position }) => {
      if (this.#haltLocks.commit(id, name, position)) return;
      if (position) answers.begin(id);
      else answers.forget(id);
      this.#durability.commit(id, name, position);
      this.#backedUp.commit(id, name, position);
    });

    const parts: PartsOptions = {
      config,
      data: this.#data,
      tmpDir,
      store: this.#store,
      logger: this.#logger,
      events: this.#events,
      metrics: this.#metrics,
    };
    const backups = (this.#backups = startBackups(parts, (name) => this.#backedUp.shipped(name)));
    this.#undo.push(() => backups?.stop());
    const drills = (this.#drills = startDrills(parts));
    this.#undo.push(() => drills?.stop());
    const rewinds = new Rewinds({
      backups: config.backups,
      tmpDir,
      applier: this.#applier,
      capture: this.#capture,
    });
    this.#undo.push(() => rewinds.stop());
    this.#databases = new DatabaseRequests({
      dataDir: config.data.dir,
      driver: config.fuse.driver,
      haltTtlMs: config.halt.ttlMs,
      store: this.#store,
      capture: this.#capture,
      applier: this.#applier,
      backups: this.#backups,
      rewinds,
      haltLocks: this.#haltLocks,
      positionWaits,
      events: this.#events,
      role: () => this.#role,
      canHandOff: () => this.#handOff?.possible ?? false,
      handOff: (reason) => this.#runHandOff({ target: undefined, waitMs: HAND_OFF_WAIT_MS, reason }),
      requirePrimary: () => this.#requirePrimary(),
    });

    this.#server = await ReplicationServer.start({
      address: formatAddress(config.peer.addr),
      store: this.#store,
      durable: (name) => this.#durability.fsyncs(name),
      awaited: (name) => this.#durability.waits(name),
      role: () => this.#primaryRole(),
      secret: config.peer.secret,
      onHigherEpoch: (epoch) => this.#onHigherEpoch(epoch),
      onHandOff: async (target, waitMs) => {
        await this.#runHandOff({ target, waitMs, reason: 'it asked for it' });
      },
      halts: this.#haltGrants,
      onEvent: (event) => this.#onReplicaEvent(event),
      onBytes: (direction, bytes) => this.#metrics.streamBytes.inc({ direction }, bytes),
    });
    this.#undo.push(() => this.#server.stop());

    const admin = await AdminServer.listen({
      address: config.http.addr,
      node: this,
      metrics: this.#metrics,
      logger: this.#logger,
      importDir: tmpDir,
      maxImportBytes: config.http.maxImportBytes,
      maxLagMs: config.proxy.maxLagMs,
      token: config.http.token,
    });
    this.#undo.push(() => admin.close());

    this.#lease = new Lease({
      ...leaseIdentity(config, this.#data, joined),
      adapter,
      positions: () => this.#leasePositions(),
      elsewhere: () => fromBackups.positions(),
      followed: (epoch, atMs) => this.#hasFollowed(epoch, atMs),
      powerWasCut: powerWasCut(config.data.dir),
      onEvent: (event) => this.#onLeaseEvent(event),
    });
    this.#handOff = new HandOff({
      nodeId,
      lease: this.#lease,
      applier: this.#applier,
      capture: this.#capture,
      store: this.#store,
      server: this.#server,
      roles: this.#roles,
      events: this.#events,
      writesAnswered: async (limitMs) => await this.#proxy?.writesAnswered(limitMs),
    });
    this.#promotion = new Promotion({
      config,
      lease: this.#lease,
      roles: this.#roles,
      events: this.#events,
      role: () => this.#role,
      holder: () => this.#holder,
    });
    this.#lease.start();
    const proxy = await startProxy(parts, {
      facts: () => ({
        config,
        control: this.#control,
        store: this.#store,
        clusterId: joined.clusterId,
        role: this.#role,
        ready: this.#isReady(),
        holder: this.#holder,
        members: this.#lease?.members ?? [],
      }),
      freshness: (name) => this.#roles.client?.freshness(name),
      mark: this.#mark,
    });
    this.#proxy = proxy;
    this.#undo.push(() => proxy?.stop());
    // What the node has become while the proxy started.
    proxy?.nodeChanged();

    const retention = new Retention(
      {
        databases: () => this.#store.databases(),
        position: (name) => this.#store.appliedPosition(name),
        removeBefore: (name, txid) => this.#store.removeBefore(name, txid),
        trimTo: (name, maxBytes) => this.#store.trimTo(name, maxBytes),
      },
      config.data.retentionMs,
      config.data.maxLogSizeBytes,
    );
    const timer = setInterval(
      () => void retention.run(monotonicMs()).catch((error: unknown) => this.#trouble(error)),
      config.data.retentionMonitorIntervalMs,
    );
    this.#undo.push(() => clearInterval(timer));
  }

  /**
   * Lets requests that the proxy has taken be answered, while the application still runs. The successor is named first: writes that come
   * in meanwhile, here and at other nodes, go there instead of waiting. Never throws.
   */
  async drain(): Promise<void> {
    if (!this.#proxy) return;
    if (this.#role === 'primary' && this.#handOff?.possible) {
      const request = { target: undefined, waitMs: HAND_OFF_WAIT_MS, reason: 'this node stops' };
      await this.#drain(request).catch((error: unknown) => this.#logger.info(toKiteError(error).message));
    }
    await this.#proxy.drain();
  }

  /** Calls back when the node cannot go on (its capture thread died, its mount was taken away). */
  onFatal(listener: (error: KiteError) => void): void {
    this.#onFatal = listener;
    if (this.#fatalError) listener(this.#fatalError);
  }

  /** A clean stop: hands the lease over when it can, so that no other node has to wait for it. Never throws. */
  async stop(): Promise<void> {
    const wasPrimary = this.#role === 'primary';
    const backedUpBy = monotonicMs() + this.#config.shutdownSyncTimeoutMs;
    this.#stopping.abort();
    let isLast = wasPrimary;
    try {
      if (wasPrimary && this.#handOff?.possible) {
        const request = { target: undefined, waitMs: HAND_OFF_WAIT_MS, reason: 'this node stops' };
        // Not handed over: then the lease is simply given up, and whoever is there takes it.
        isLast = await this.#drain(request).then(
          () => false,
          () => true,
        );
      }
      // A successor ships what this one has not. Without one it is nowhere else: most of it goes while this node still serves, and what
      // is written meanwhile when nothing is written any more.
      if (isLast) await this.#flushBackups(backedUpBy);
      this.#enter('closed');
      this.#control.deadlineNs = 0n;
      if (isLast) await this.#flushBackups(backedUpBy);
      await this.#lease?.release();
    } catch (error) {
      this.#trouble(error);
    }
    this.#enter('closed');
    await this.#undoAll();
  }

  async #flushBackups(limitMs: number): Promise<void> {
    if (!this.#backups) return;
    try {
      await this.#capture.captured(this.#store.databases());
      await this.#backups.sync(Math.max(0, limitMs - monotonicMs()));
    } catch (error) {
      this.#events.add('backup-behind', toKiteError(error).message, { level: 'error' });
    }
  }

  async #undoAll(): Promise<void> {
    for (const undo of this.#undo.splice(0).toReversed()) {
      try {
        await undo();
      } catch (error) {
        this.#trouble(error);
      }
    }
  }

  // --- what others ask

  async #specialFile(path: string): Promise<Buffer | undefined> {
    // Who has just committed and reads `-pos` for a token must find that commit in it.
    if (isPrimary(this.#role) && path.endsWith('-pos')) {
      await this.#capture.position(path.slice(0, -'-pos'.length));
    }
    return specialFile(path, { status: () => this.status(), connected: this.#connected });
  }

  status(): NodeStatus {
    return makeStatus({
      config: this.#config,
      control: this.#control,
      store: this.#store,
      clusterId: this.#data.clusterId ?? '',
      role: this.#role,
      ready: this.#isReady(),
      holder: this.#holder,
      members: this.#lease?.members ?? [],
      client: this.#roles?.client,
      replicas: this.#server?.replicas() ?? [],
      durability: this.#durabilityState(),
      halt: (name) => this.#haltGrants?.status(name) ?? this.#haltLocks?.status(name),
      backups: this.#backups?.status() ?? [],
      drill: this.#drills?.status(),
      otherFiles: this.#config.fuse.otherFiles === 'local' ? this.#data.otherFiles() : [],
      events: this.#events.recent(),
    });
  }

  /** Of the replicas and of the backups, as one. */
  #durabilityState(): DurabilityState | undefined {
    const state = this.#durability?.state;
    const waitsForBackup = this.#config.durability.some(({ backup }) => backup);
    if (!this.#backedUp || !waitsForBackup) return state;
    const { syncSet = [], waiting = 0, degraded = [] } = state ?? {};
    return {
      syncSet,
      waiting: waiting + this.#backedUp.waiting,
      degraded: [...new Set([...degraded, ...this.#backedUp.degraded])],
    };
  }

  get databases(): DatabaseRequests {
    return this.#databases;
  }

  async promote(request: { waitMs: number; acceptLoss: boolean }): Promise<void> {
    await this.#promotion?.promote(request);
  }

  /** `lease.promote`, once this node is up. */
  async promoteAtStart(): Promise<void> {
    const { promote, candidate, type } = this.#config.lease;
    if (promote && candidate && type !== 'static') await this.#promotion?.atStart(this.#stopping.signal);
  }

  async handOff(target: string | undefined, waitMs: number): Promise<string> {
    return await this.#runHandOff({ target, waitMs, reason: 'an administrator asked for it' });
  }

  primary(): PrimaryChange {
    if (isPrimary(this.#role)) return { isPrimary: true, hostname: this.#config.lease.hostname };
    const holder = this.#role === 'replica' ? this.#holder : undefined;
    return { isPrimary: false, ...(holder && { hostname: hostOf(holder.advertiseUrl) }) };
  }

  watch(listener: (change: NodeChange) => void): () => void {
    this.#watchers.add(listener);
    return () => this.#watchers.delete(listener);
  }

  #tellTransaction(name: string): void {
    const visible = this.#watchers.size > 0 ? this.#store.visible(name) : undefined;
    if (!visible) return;
    const [txID = '', postApplyChecksum = ''] = formatPosition(visible.position).split('/');
    const { pageSize, pageCount: commit } = visible;
    this.#tell({ kind: 'transaction', name, txID, postApplyChecksum, pageSize, commit });
  }

  #tell(change: NodeChange): void {
    for (const listener of this.#watchers) listener(change);
  }

  // --- role

  async #runHandOff(request: HandOffRequest): Promise<string> {
    this.#requirePrimary();
    return await this.#drain(request);
  }

  async #drain(request: HandOffRequest): Promise<string> {
    if (!this.#handOff) throw new KiteError('ERR_DAEMON_NOT_READY', 'this node is starting');
    const before = this.#role;
    // Two at once: the second is refused, and says nothing about the first.
    if (before !== 'primary') return await this.#handOff.run(request);
    this.#enter('draining');
    this.#proxy?.nodeChanged();
    try {
      return await this.#handOff.run(request);
    } catch (error) {
      if (this.#role === 'draining') this.#enter('primary');
      this.#proxy?.nodeChanged();
      throw error;
    }
  }

  #requirePrimary(): void {
    if (isPrimary(this.#role)) return;
    const where = this.#holder
      ? `; the primary is ${this.#holder.nodeId} (${this.#holder.advertiseUrl})`
      : '';
    throw new KiteError('ERR_DAEMON_NOT_PRIMARY', `this node is not the primary${where}`);
  }

  /** Asked before the lease is taken; noted at each heartbeat, so it may be one old. */
  #hasFollowed(epoch: bigint, atMs: number): boolean {
    const { epoch: followed, atMs: lastMs } = this.#followed;
    return followed === epoch && lastMs >= atMs - this.#config.lease.ttlMs;
  }

  #noteFollowing(): void {
    const client = this.#roles.client?.status();
    if (client?.connected && client.caughtUp) {
      this.#followed = { epoch: this.#data.node.epoch, atMs: monotonicMs() };
    }
  }

  #onLeaseEvent(event: LeaseEvent): void {
    switch (event.kind) {
      case 'won': {
        // However long getting ready takes: opened read-only after that, the mount of a primary would stay so.
        clearTimeout(this.#openingReadOnly);
        this.#enter('candidate');
        const fetch = this.#fetch(event);
        this.#events.add('won', `the lease is ours, epoch ${event.epoch}: ${event.reason}`);
        this.#roles.becomePrimary(event.epoch, fetch).then(
          () => {
            for (const missing of fetch.missing()) {
              this.#events.add('behind', `the last primary had more: ${missing}`, { level: 'warn' });
            }
            this.#lease?.ready(event.epoch);
          },
          (error: unknown) => {
            this.#trouble(error);
            this.#lease?.giveUp(toKiteError(error).message);
          },
        );
        break;
      }
      case 'primary':
        // The deadline before the state: the mount must never see a primary without one.
        this.#control.epoch = event.epoch;
        this.#control.deadlineNs = event.deadlineNs;
        this.#durability.primary(event.epoch);
        this.#backedUp.primary(event.epoch);
        this.#control.state = MountState.primary;
        this.#setRole('primary', undefined);
        this.#roles
          .closeApplied()
          .catch((error: unknown) => this.#trouble(error))
          .finally(() => (this.#wasReady ||= this.#role === 'primary'));
        this.#backups?.primary(
          { clusterId: this.#store.clusterId, epoch: event.epoch, nodeId: this.#store.nodeId },
          Number(event.deadlineNs) / 1e6,
        );
        this.#drills?.primary();
        this.#events.add('primary', `this node is the primary, epoch ${event.epoch}: ${event.reason}`);
        break;
      case 'renewed':
        this.#control.deadlineNs = event.deadlineNs;
        this.#proxy?.nodeChanged();
        this.#durability.renewed();
        this.#backups?.renewed(Number(event.deadlineNs) / 1e6);
        break;
      case 'fenced':
        this.#control.deadlineNs = 0n;
        this.#durability.stop();
        this.#backedUp.stop();
        this.#backups?.fenced();
        this.#drills?.fenced();
        this.#haltGrants.endAll('the primary may not write any more').catch(() => undefined);
        this.#setRole('fenced', undefined);
        this.#events.add('fenced', `writes are refused: ${event.reason}`, { level: 'warn' });
        break;
      case 'replica':
        this.#control.deadlineNs = 0n;
        this.#durability.stop();
        this.#backedUp.stop();
        this.#backups?.fenced();
        this.#drills?.fenced();
        // A node that stops gives the lease up; it does not become a replica for that, which would have to wait for
        // applications that are in a transaction.
        if (this.#stopping.signal.aborted) break;
        if (this.#mayBecomePrimaryAtOnce(event.of)) break;
        this.#data.updateNode({ epoch: event.epoch });
        this.#setRole('replica', event.of);
        this.#events.add('replica', event.reason);
        this.#roles.becomeReplica(event.of).catch((error: unknown) => this.#trouble(error));
        break;
      case 'waiting':
        this.#events.add('waiting', event.reason);
        void this.#fromBackups?.refresh();
        break;
      case 'refused':
        this.#events.add('refused', event.reason, { level: 'error' });
        if (event.fatal) this.#fatal(new KiteError(event.code, event.reason));
        break;
      case 'unreachable':
        this.#events.add('unreachable', event.reason, { level: 'warn' });
        break;
      case 'clockGap':
        this.#events.add('clock-gap', event.reason, { level: 'warn' });
        break;
      default:
        this.#events.add(event.kind, event.reason);
    }
  }

  /**
   * At start nobody holds the lease, and this candidate is about to take it: the mount stays closed for that moment (opens
   * wait), so that the first application does not meet a replica. It opens read-only when that takes too long.
   */
  #mayBecomePrimaryAtOnce(holder: LeaseHolder | undefined): boolean {
    if (this.#role !== 'starting' || holder || !this.#config.lease.candidate) return false;
    clearTimeout(this.#openingReadOnly);
    this.#openingReadOnly = setTimeout(() => {
      if (this.#role !== 'starting') return;
      this.#setRole('replica', undefined);
      this.#roles.becomeReplica(undefined).catch((error: unknown) => this.#trouble(error));
    }, this.#config.lease.ttlMs);
    this.#undo.push(() => clearTimeout(this.#openingReadOnly));
    return true;
  }

  #fetch(won: Extract<LeaseEvent, { kind: 'won' }>): Fetch {
    return {
      // A hand-off has shown that nothing is missing.
      peers: won.complete ? [] : this.#peersToAsk(),
      wanted: Object.keys(won.recorded),
      missing: () => behind(this.#leasePositions(), won.recorded),
      must: won.mustFetch,
      complete: won.complete,
    };
  }

  /** Who may have what this node lacks, the most advanced first. */
  #peersToAsk(): string[] {
    if (!this.#lease) return [];
    const peers = this.#lease.living.filter(({ nodeId }) => nodeId !== this.#data.node.nodeId);
    const isAhead = (a: Member, b: Member): number => behind(b.positions, a.positions).length;
    return peers.toSorted((a, b) => isAhead(b, a) - isAhead(a, b)).map(({ peerAddress }) => peerAddress);
  }

  #enter(role: NodeRole): void {
    const from = this.#role;
    if (from === role) return;
    this.#role = role;
    const why = reasonToEnter(from, role);
    // What may be written is decided by the deadline, not by this: a way that the table does not have is said, and gone.
    if (why === undefined) this.#logger.error(`${from} → ${role}: a bug, please report it`);
    else this.#logger.info(`${from} → ${role}: ${why}`);
  }

  #setRole(role: NodeRole, holder: LeaseHolder | undefined): void {
    if (this.#role === 'closed') return;
    this.#enter(role);
    this.#holder = role === 'replica' ? holder : this.#ownHolder();
    void this.#mount.changed().catch((error: unknown) => this.#trouble(error));
    this.#server.roleChanged();
    this.#proxy?.nodeChanged();
    this.#tell({ kind: 'primary', ...this.primary() });
  }

  #ownHolder(): LeaseHolder | undefined {
    return this.#lease?.record?.holder;
  }

  #primaryRole(): PrimaryRole {
    if (isHolder(this.#role)) {
      return { primary: true, epoch: this.#control.epoch, leaseValid: this.#control.mayWrite() };
    }
    return { primary: false, holder: this.#holder };
  }

  /** A peer has proved that a higher epoch exists: this node is not the primary any more, whatever it believes. */
  #onHigherEpoch(epoch: bigint): void {
    this.#data.updateNode({ epoch });
    if (!isPrimary(this.#role) || this.#control.epoch >= epoch) return;
    this.#control.deadlineNs = 0n;
    this.#events.add('fenced', `a peer knows epoch ${epoch}`, { level: 'warn' });
  }

  #leasePositions(): LeasePositions {
    this.#noteFollowing();
    const positions: Record<string, string> = {};
    for (const name of this.#store.databases()) {
      const position = this.#store.position(name);
      if (position) positions[name] = `${position.epoch}:${position.txid}`;
    }
    return positions;
  }

  // --- readiness

  get #connected(): boolean {
    return this.#roles?.client?.status().connected ?? false;
  }

  #isReady(): boolean {
    if (this.#role === 'replica' && !this.#wasReady)
      this.#wasReady = this.#roles.client?.status().caughtUp ?? false;
    return this.#wasReady && this.#role !== 'closed';
  }

  // --- what the parts tell

  #count(): void {
    this.#store.subscribe((change) => {
      if (change.kind !== 'transaction') return;
      const { name, file } = change;
      const transactions = Number(file.maxTxid - file.minTxid) + 1;
      if (isPrimary(this.#role)) {
        this.#metrics.commits.inc({ db: name }, transactions);
        this.#metrics.commitBytes.inc({ db: name }, file.sizeBytes);
      } else if (file.minTxid > 1n) {
        this.#metrics.applied.inc({ db: name }, transactions);
      }
    });
  }

  #onMountEvent(event: MountEvent): void {
    switch (event.type) {
      case 'refused':
        this.#metrics.refused.inc({ reason: event.reason }, event.count);
        this.#logger.warn({ name: event.name, reason: event.reason, count: event.count }, event.message);
        break;
      case 'gone':
        this.#fatal(
          new KiteError('ERR_MOUNT_GONE', `${this.#config.fuse.dir} was unmounted by somebody else`),
        );
        break;
      case 'error':
        this.#logger.error(event.message);
        break;
      case 'walReused':
        // Not done, commits are no worse than before. fuse-native forgets what it knows at each open.
        if (this.#config.fuse.driver === 'kernel')
          this.#applier.readWal(event.name, event.sizeBytes).catch(() => {});
        break;
      case 'deadCommit':
        takeBack(this.#config.fuse.dir, event.name, this.#stopping.signal).catch((error: Error) => {
          this.#logger.warn({ name: event.name, err: error }, 'a dead commit stays until somebody writes');
        });
        break;
      case 'dropped':
        // What was wrong with it has gone with it.
        if (this.#store.error(event.name)) this.#store.setError(event.name, undefined);
        this.#roles.dropped(event.name).catch((error: unknown) => this.#trouble(error));
        this.#logger.debug({ ...event }, 'database dropped');
        break;
      default:
        this.#logger.debug({ ...event }, `database ${event.type}`);
    }
  }

  #onApplierEvent(event: ApplierEvent): void {
    if (event.kind === 'checked') this.#store.checked(event.name, event.progress);
    if (event.kind === 'damaged') this.#store.damaged(event.name, event.pgno);
    if (event.kind !== 'blocked') return;
    const { name, waitedMs, holder } = event;
    const who = holder ? `process ${holder.pid} (${holder.command})` : 'another process';
    this.#events.add(
      'apply-blocked',
      `${who} has kept the write lock of ${name} for ${Math.round(waitedMs)} ms`,
      {
        database: name,
        level: 'warn',
      },
    );
    if (this.#role === 'replica') this.#endLockHolder(name, waitedMs, holder);
  }

  #endLockHolder(name: string, waitedMs: number, holder: LockHolder | undefined): void {
    try {
      const done = this.#lockEnforcer.blocked(name, waitedMs, holder);
      if (!done) return;
      const message = `process ${holder?.pid} was ${done === 'asked' ? 'asked to end' : 'killed'}: it kept the write lock of ${name}`;
      this.#events.add('lock-holder-ended', message, { database: name, level: 'warn' });
    } catch (error) {
      // It has ended by itself, or belongs to somebody who may not be signalled.
      this.#trouble(error);
    }
  }

  #onClientEvent(event: ReplicationClientEvent): void {
    if (event.kind === 'fresher')
      for (const name of this.#store.databases()) this.#proxy?.databaseChanged(name);
    if (event.kind === 'disconnected') {
      this.#haltLocks.endAll('the primary is not connected any more').catch(() => undefined);
      this.#logger.info({ retryMs: event.retryMs }, `not connected to the primary: ${event.error.message}`);
    }
    noteClientEvent(event, this.#events);
  }

  #onReplicaEvent(event: ReplicaEvent): void {
    if (event.kind === 'acknowledged')
      this.#durability.acknowledged(event.nodeId, event.name, event.acknowledged);
    if (event.kind === 'connected') this.#durability.connected(event.nodeId);
    if (event.kind === 'disconnected') {
      this.#durability.disconnected(event.nodeId);
      this.#haltGrants.disconnected(event.nodeId);
    }
    noteReplicaEvent(event, this.#events);
  }

  #onDurabilityEvent(event: DurabilityEvent): void {
    if (event.kind === 'waited') this.#metrics.commitWaitSeconds.observe(event.waitedMs / 1000);
    else noteDurabilityEvent(event, this.#events);
  }

  #fatal(error: KiteError): void {
    if (this.#role === 'closed') return;
    // Whatever is wrong, nothing may be acknowledged from here on.
    this.#control.deadlineNs = 0n;
    this.#events.add('fatal', error.describe(), { level: 'error' });
    this.#fatalError ??= error;
    this.#onFatal?.(error);
  }

  #trouble(thrown: unknown): void {
    const error = toKiteError(thrown);
    this.#logger.error({ err: error, code: error.code }, error.message);
  }
}
