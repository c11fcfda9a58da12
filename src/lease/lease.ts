import { randomUUID } from 'node:crypto';
import { KiteError, toKiteError } from '../errors.js';
import { systemClock } from '../util/clock.js';
import { ClockWatch, type ClockReading } from './clock-watch.js';
import { LeaseMachine } from './lease-machine.js';
import type { Leave, LeaseAnswer, LeaseCall, LeaseInput } from './protocol.js';
import type { LeaseAdapter, LeaseEvent, LeaseNode, LeasePositions, LeaseRecord, Member } from './types.js';

export interface LeaseOptions {
  /** The lease closes it when it stops. */
  readonly adapter: LeaseAdapter;
  readonly clusterId: string;
  readonly node: LeaseNode;
  /** Default: a random one. */
  readonly incarnation?: string;
  /** See LeaseMachineOptions. */
  readonly formerIncarnation?: string | undefined;
  /** Highest epoch this node knows (node.json). */
  readonly highestEpoch: bigint;
  /** Log ends of this node now, database name to `<epoch>:<txid>`. Must be cheap: asked at every heartbeat. */
  positions(): LeasePositions;
  /** See LeaseMachineOptions. */
  elsewhere?: (() => LeasePositions) | undefined;
  /** See LeaseMachineOptions. */
  followed(epoch: bigint, atMs: number): boolean;
  /** The version of the record, when this node has just founded the cluster with it. */
  readonly foundedWith?: string | undefined;
  /** See LeaseMachineOptions. Default false. */
  readonly powerWasCut?: boolean;
  /** Default 5000. */
  readonly ttlMs?: number;
  /** How much clock rates may differ over one ttl. Default ttl/10. */
  readonly marginMs?: number;
  /** Added to the wait before a silent holder's lease is taken (LiteFS's key). Default 0. */
  readonly lockDelayMs?: number;
  /** How long a node that is behind waits for a better one. Default 1000. */
  readonly electionWaitMs?: number;
  /**
   * Called in order, never from within a call of this class. `fenced` must be in force when it returns:
   * the next thing may be a successor's first write.
   */
  readonly onEvent: (event: LeaseEvent) => void;
  /** For tests: the clocks that are watched for jumps. */
  readonly readClocks?: () => ClockReading;
}

/** Runs the lease machine over an adapter: real timers, a timeout on every call, clocks watched for jumps. */
export class Lease {
  readonly #adapter: LeaseAdapter;
  readonly #nodeId: string;
  readonly #onEvent: (event: LeaseEvent) => void;
  readonly #machine: LeaseMachine;
  readonly #clocks: ClockWatch;
  readonly #beatMs: number;
  readonly #inbox: LeaseInput[] = [];
  #scheduled = false;
  #started = false;
  #stopped = false;
  #cancelTimer: (() => void) | undefined;
  readonly #leaves = new Map<Leave, (failure: string | undefined) => void>();

  constructor(options: LeaseOptions) {
    const ttlMs = options.ttlMs ?? 5000;
    const marginMs = options.marginMs ?? ttlMs / 10;
    this.#adapter = options.adapter;
    this.#nodeId = options.node.nodeId;
    this.#onEvent = options.onEvent;
    this.#beatMs = ttlMs / 5;
    this.#clocks = new ClockWatch(marginMs, options.readClocks);
    this.#machine = new LeaseMachine({
      clusterId: options.clusterId,
      node: options.node,
      incarnation: options.incarnation ?? randomUUID(),
      formerIncarnation: options.formerIncarnation,
      highestEpoch: options.highestEpoch,
      ttlMs,
      marginMs,
      lockDelayMs: options.lockDelayMs ?? 0,
      electionWaitMs: options.electionWaitMs ?? 1000,
      provesEnd: options.adapter.ended !== undefined,
      remote: options.adapter.remote ?? false,
      foundedWith: options.foundedWith,
      positions: () => options.positions(),
      elsewhere: options.elsewhere,
      followed: (epoch, atMs) => options.followed(epoch, atMs),
      powerWasCut: options.powerWasCut ?? false,
    });
  }

  /** Registers, reads the record and goes on until `release` or `stop`. */
  start(): void {
    this.#started = true;
    this.#feed({ kind: 'tick' });
  }

  /** The daemon has recovered and caught up under this epoch: applications may write (`primary` follows). */
  ready(epoch: bigint): void {
    this.#feed({ kind: 'ready', epoch });
  }

  /**
   * From the next renewal on, which goes out at once, the record's sync set shall be this one (trap 3). `renewed` (or
   * `primary`) follows; `syncSets` says what is in force. Without effect under another epoch.
   */
  setSyncSet(epoch: bigint, members: readonly string[]): void {
    this.#feed({ kind: 'syncSet', epoch, members });
  }

  /** See LeaseMachine.syncSets. */
  get syncSets(): readonly (readonly string[])[] {
    return this.#machine.syncSets;
  }

  /** The daemon cannot become primary now: empties the holder, and does not try again for two ttl. */
  giveUp(why: string): void {
    void this.#leave({ kind: 'giveUp', why });
  }

  /** Lets this node take a free lease for so long although it may lack something. A holder must be silent all the same. */
  acceptLoss(forMs: number): void {
    this.#feed({ kind: 'acceptLoss', forMs });
  }

  /**
   * Fences this node at once, then names the target as the only one who may take the lease for a ttl.
   * Rejects with ERR_LEASE_HANDOFF when that did not happen; if it was fenced, `primary` follows again.
   */
  async handOff(targetNodeId: string): Promise<void> {
    const failure = await this.#leave({ kind: 'handOff', target: targetNodeId });
    if (failure !== undefined) {
      throw new KiteError('ERR_LEASE_HANDOFF', `The lease was not handed to ${targetNodeId}: ${failure}`);
    }
  }

  /** Clean stop: fences, empties the holder (the epoch stays), unregisters, stops. Takes at most one ttl. */
  async release(): Promise<void> {
    if (this.#started && !this.#stopped) await this.#leave({ kind: 'release' });
    await this.stop();
  }

  /** Stops at once and changes nothing in the record, as a crash would; others take over after the ttl. */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    this.#inbox.push({ kind: 'stop' });
    this.#drain();
    this.#stopped = true;
    this.#cancelTimer?.();
    for (const leave of this.#leaves.keys()) this.#endLeave(leave, 'the lease has stopped');
    await this.#adapter.close();
  }

  /** The last record read, undefined when there is none or nothing was read yet. */
  get record(): LeaseRecord | undefined {
    return this.#machine.record;
  }

  /** Why this node does not take the lease, in words. */
  get waitingFor(): string {
    return this.#machine.waitingFor;
  }

  /** Members as last read, this node included. */
  get members(): readonly Member[] {
    return this.#machine.members;
  }

  /** Members whose registration is being renewed: their processes run. */
  get living(): readonly Member[] {
    return this.#machine.living(systemClock.nowMs());
  }

  #leave(leave: Leave): Promise<string | undefined> {
    return new Promise((resolve) => {
      if (this.#stopped) return resolve('the lease has stopped');
      this.#leaves.set(leave, resolve);
      this.#feed({ kind: 'leave', leave });
    });
  }

  #endLeave(leave: Leave, failure: string | undefined): void {
    this.#leaves.get(leave)?.(failure);
    this.#leaves.delete(leave);
  }

  #feed(input: LeaseInput): void {
    if (this.#stopped) return;
    this.#inbox.push(input);
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => this.#drain());
  }

  #drain(): void {
    this.#scheduled = false;
    while (!this.#stopped) {
      const input = this.#inbox.shift();
      if (!input) break;
      // Before the input: an answer that arrives after a suspension must not move the deadline.
      const why = this.#clocks.check();
      if (why !== undefined) this.#step({ kind: 'clockGap', why });
      this.#step(input);
    }
    this.#cancelTimer?.();
    if (this.#stopped) return;
    // At least once per heartbeat, to look at the clocks.
    const delayMs = Math.min(this.#machine.wakeAtMs - systemClock.nowMs(), this.#beatMs);
    this.#cancelTimer = systemClock.after(Math.max(0, Math.ceil(delayMs)), () => {
      this.#feed({ kind: 'tick' });
    });
  }

  #step(input: LeaseInput): void {
    // Effects in order: `fenced` before the call that lets a successor in.
    for (const effect of this.#machine.step(systemClock.nowMs(), input)) {
      if (effect.kind === 'event') this.#onEvent(effect.event);
      else if (effect.kind === 'left') this.#endLeave(effect.leave, effect.failure);
      else this.#run(effect.id, effect.call);
    }
  }

  /** Whatever comes first counts; the machine drops what comes later. */
  #run(id: number, call: LeaseCall): void {
    const timeoutMs = this.#beatMs;
    const limitMs = call.op === 'watch' ? call.waitMs + timeoutMs : timeoutMs;
    const cancel = systemClock.after(limitMs, () => {
      this.#feed({ kind: 'failed', id, why: `no answer to ${call.op} within ${limitMs} ms` });
    });
    this.#perform(call, timeoutMs)
      .then(
        (answer) => this.#feed({ kind: 'answer', id, answer }),
        (error: unknown) => this.#feed({ kind: 'failed', id, why: toKiteError(error).message }),
      )
      .finally(cancel);
  }

  async #perform(call: LeaseCall, timeoutMs: number): Promise<LeaseAnswer> {
    const adapter = this.#adapter;
    switch (call.op) {
      case 'read':
        return { op: 'record', seen: await adapter.read(timeoutMs) };
      case 'watch':
        return { op: 'record', seen: await adapter.watch(call.version, call.waitMs) };
      case 'compareAndSet': {
        const version = await adapter.compareAndSet(call.expected, call.record, timeoutMs);
        return { op: 'compareAndSet', version };
      }
      case 'members':
        return { op: 'members', members: await adapter.members(timeoutMs) };
      case 'register':
        await adapter.register(call.member, timeoutMs);
        return { op: 'done' };
      case 'unregister':
        await adapter.unregister(this.#nodeId, timeoutMs);
        return { op: 'done' };
      default:
        return { op: 'ended', ended: (await adapter.ended?.(call.process, timeoutMs)) ?? false };
    }
  }
}
