import { Membership } from './membership.js';
import type {
  Leave,
  LeaseAnswer,
  LeaseCall,
  LeaseEffect,
  LeaseInput,
  LeaseMachineOptions,
} from './protocol.js';
import { type Schedule, scheduleOf } from './schedule.js';
import { takeover } from './takeover.js';
import type { LeaseEvent, LeaseHolder, LeaseRecord, Member, NodeProcess, VersionedRecord } from './types.js';

/**
 * The lease algorithm of DESIGN §7 as a state machine without I/O or clock: `step` takes what happened
 * and the monotonic time, and returns what to do. Why it is safe: a holder may write until the time it
 * SENT its last successful renewal + ttl - margin. Others take the lease by compare-and-set against a
 * version that they have watched for ttl + margin. That version was there before they saw it first, so
 * it was sent before; and if their compare-and-set succeeds there was no renewal after it.
 */

/** The record as last seen, and since when by our clock it has been at this version. */
interface Known {
  readonly version: string;
  readonly record: LeaseRecord | undefined;
  readonly sinceMs: number;
  /** The same, whether or not we looked all the time. */
  readonly seenMs: number;
}

type Terms = Omit<Extract<LeaseEvent, { kind: 'won' }>, 'kind' | 'epoch'>;

/** The lease is ours, as far as we know. */
interface Hold {
  readonly epoch: bigint;
  version: string;
  record: LeaseRecord;
  /** -Infinity: not allowed until the next renewal succeeds. */
  deadlineMs: number;
  /** Why it was taken, until that has been told. */
  won: Terms | undefined;
  /** The daemon has recovered. */
  ready: boolean;
  /** Applications may write. */
  open: boolean;
  /** What the sync set shall be from the next renewal on; undefined: as it is. */
  wantedSyncSet: readonly string[] | undefined;
  /** Every sync set that the record may have now: more than one while a renewal that changes it is unanswered. */
  syncSets: (readonly string[])[];
}

interface RecordCall {
  readonly id: number;
  readonly purpose: 'read' | 'watch' | 'take' | 'renew' | 'leave' | 'replace';
  readonly sentMs: number;
  /** Of a compare-and-set. */
  readonly record?: LeaseRecord;
  readonly won?: Hold['won'];
}

interface Leaving {
  readonly leave: Leave;
  readonly untilMs: number;
  unregistered: boolean;
}

export class LeaseMachine {
  readonly #options: LeaseMachineOptions;
  readonly #self: LeaseHolder;
  readonly #schedule: Schedule;
  readonly #beatMs: number;
  readonly #membership: Membership;
  #effects: LeaseEffect[] = [];
  #nextId = 1;
  #wakeAtMs = 0;
  #stopped = false;

  #highestEpoch: bigint;
  /** The record furthest on that was seen or written, by epoch and heartbeat: a store that shows less has lost it. */
  #furthest: LeaseRecord | undefined;
  #known: Known | undefined;
  #lookedAtMs = -Infinity;
  /** The record must be read before anything else is done with it. */
  #unsure = true;
  #hold: Hold | undefined;
  #leaving: Leaving | undefined;
  /** A take-over was sent and the record has not been read since. */
  #takePending = false;

  // At most one call about the record at a time, so that answers cannot overtake one another.
  #recordCall: RecordCall | undefined;
  #memberCall: number | undefined;
  #proofCall: { readonly id: number; readonly process: NodeProcess } | undefined;
  #nextRenewMs = 0;
  #nextMembersMs = 0;
  #nextRegisterMs = 0;
  #registeredEpoch: bigint | undefined;
  #nextProofMs = 0;
  #retryAtMs = 0;

  #seenCounter = 0n;
  /** Incarnations proven to have ended, and when that was learnt. */
  readonly #ended = new Map<string, number>();
  #outageSinceMs: number | undefined;
  #outageWhy: string | undefined;
  /** After an outage the holder gets this long to come back first. */
  #graceUntilMs = -Infinity;
  #pausedUntilMs = -Infinity;
  #lossAcceptedUntilMs = -Infinity;
  /** On what terms this process last tried to take the lease. */
  #terms: Terms = { reason: '', recorded: {}, complete: false, mustFetch: true };
  /** The version of the record by which this process named a successor. */
  #handedOver: string | undefined;
  #toldReplica: string | undefined;
  #toldWaiting: string | undefined;
  #toldEpochBack: string | undefined;

  constructor(options: LeaseMachineOptions) {
    this.#options = options;
    const { nodeId, advertiseUrl, peerAddress, proxyAddress, instance } = options.node;
    const { incarnation } = options;
    this.#self = { nodeId, incarnation, advertiseUrl, peerAddress, proxyAddress, instance };
    this.#highestEpoch = options.highestEpoch;
    this.#schedule = scheduleOf(options.ttlMs, options.remote ?? false);
    this.#beatMs = this.#schedule.beatMs;
    this.#membership = new Membership(this.#self, options.ttlMs + options.marginMs, this.#schedule);
  }

  /** When the next `tick` is needed, monotonic ms. */
  get wakeAtMs(): number {
    return this.#wakeAtMs;
  }

  get record(): LeaseRecord | undefined {
    return this.#known?.record;
  }

  living(nowMs: number): Member[] {
    return this.members.filter((member) => this.#membership.isLive(member.nodeId, nowMs));
  }

  get waitingFor(): string {
    return this.#toldWaiting ?? 'it does not know the lease';
  }

  get members(): readonly Member[] {
    return this.#membership.members;
  }

  /**
   * Every sync set that the record may have now, of which a member of any may win; none while this node does not hold the
   * lease. A renewal that was given up may still be carried out, so only the answer of a later one settles it.
   */
  get syncSets(): readonly (readonly string[])[] {
    return this.#hold?.syncSets ?? [];
  }

  /** Takes what happened at `nowMs` (monotonic, never less than before). */
  step(nowMs: number, input: LeaseInput): LeaseEffect[] {
    this.#effects = [];
    if (!this.#stopped) {
      this.#take(nowMs, input);
      this.#settle(nowMs);
    } else if (input.kind === 'leave') {
      // Refused before: whoever stops the node now waits for an answer all the same.
      this.#endLeave(input.leave, 'the lease has stopped');
    }
    return this.#effects;
  }

  #take(now: number, input: LeaseInput): void {
    switch (input.kind) {
      case 'tick':
        return;
      case 'answer':
        return this.#answered(now, input.id, input.answer);
      case 'failed':
        return this.#failed(now, input.id, input.why);
      case 'ready': {
        const hold = this.#hold;
        if (!hold || hold.won || hold.epoch !== input.epoch) return;
        hold.ready = true;
        return this.#open(now, 'the daemon is ready');
      }
      case 'syncSet':
        if (this.#hold?.epoch !== input.epoch) return;
        this.#hold.wantedSyncSet = input.members;
        this.#nextRenewMs = now;
        return;
      case 'leave':
        return this.#startLeaving(now, input.leave);
      case 'acceptLoss':
        this.#lossAcceptedUntilMs = now + input.forMs;
        return;
      case 'clockGap':
        // Everything that was measured or sent before the gap counts for nothing.
        this.#tell({ kind: 'clockGap', reason: input.why });
        this.#fence(input.why);
        if (this.#hold) this.#hold.deadlineMs = -Infinity;
        this.#known = undefined;
        this.#recordCall = undefined;
        this.#unsure = true;
        this.#retryAtMs = now;
        this.#nextRenewMs = now;
        return;
      case 'stop':
        this.#fence('the node stops');
        this.#stop();
    }
  }

  // Answers

  #answered(now: number, id: number, answer: LeaseAnswer): void {
    if (answer.op === 'record' && id === this.#recordCall?.id) {
      this.#recordCall = undefined;
      this.#contact(now);
      this.#unsure = false;
      this.#takePending = false;
      this.#observe(now, answer.seen);
    } else if (answer.op === 'compareAndSet' && id === this.#recordCall?.id) {
      const call = this.#recordCall;
      this.#recordCall = undefined;
      this.#contact(now);
      this.#takePending = false;
      if (answer.version === undefined) this.#unsure = true;
      else this.#swapped(now, call, answer.version);
    } else if (answer.op === 'members' && id === this.#memberCall) {
      this.#memberCall = undefined;
      this.#membersRead(now, answer.members);
    } else if (answer.op === 'done' && id === this.#memberCall) {
      this.#memberCall = undefined;
      if (this.#leaving?.leave.kind === 'release') this.#leaving.unregistered = true;
      else this.#membership.confirm();
    } else if (answer.op === 'ended' && id === this.#proofCall?.id) {
      const { process } = this.#proofCall;
      this.#proofCall = undefined;
      if (!answer.ended) return;
      this.#ended.set(process.incarnation, now);
      if (!this.#membership.registered) this.#nextMembersMs = now;
    }
    // Anything else is the late answer of a call that has been given up.
  }

  #failed(now: number, id: number, why: string): void {
    if (id === this.#recordCall?.id) {
      this.#recordCall = undefined;
      // A compare-and-set may have been carried out: nothing is known until the record is read again.
      this.#unsure = true;
      this.#retryAtMs = now + this.#beatMs / 4;
      this.#outageWhy = why;
      if (this.#outageSinceMs === undefined) {
        this.#outageSinceMs = now;
        this.#tell({ kind: 'unreachable', reason: why });
      }
    } else if (id === this.#memberCall) {
      this.#memberCall = undefined;
      if (this.#leaving?.leave.kind === 'release') this.#leaving.unregistered = true;
      this.#nextMembersMs = now + this.#beatMs / 2;
    } else if (id === this.#proofCall?.id) {
      this.#proofCall = undefined;
    }
  }

  #contact(now: number): void {
    if (this.#outageSinceMs === undefined) return;
    // The holder was cut off as well: without this every outage would end in a needless failover.
    if (now - this.#outageSinceMs > 2 * this.#beatMs) this.#graceUntilMs = now + 2 * this.#beatMs;
    this.#outageSinceMs = undefined;
    this.#outageWhy = undefined;
    this.#tell({ kind: 'reachable', reason: 'the lease store answers again' });
  }

  #observe(now: number, seen: VersionedRecord): void {
    const { record, version } = seen;
    if (record && record.clusterId !== this.#options.clusterId) {
      const reason = `the lease belongs to cluster ${record.clusterId}, this node to ${this.#options.clusterId}`;
      return this.#refuse('ERR_LEASE_OTHER_CLUSTER', reason);
    }
    // Who did not look for a while (stopped, cut off) may see an old version again after a store was restored.
    const watched = !this.#options.remote || now <= this.#lookedAtMs + 4 * this.#beatMs;
    this.#lookedAtMs = now;
    const sinceMs = watched && this.#known?.version === version ? this.#known.sinceMs : now;
    const seenMs = this.#known?.version === version ? this.#known.seenMs : now;
    this.#known = { version, record, sinceMs, seenMs };
    if (record && record.epoch > this.#highestEpoch) this.#highestEpoch = record.epoch;
    const back = this.#isBack(record);
    if (record && !back) this.#furthest = record;
    const ours =
      !back &&
      record?.epoch === this.#highestEpoch &&
      record.holder?.nodeId === this.#self.nodeId &&
      record.holder.incarnation === this.#self.incarnation;

    const hold = this.#hold;
    if (hold && back && hold.epoch === this.#highestEpoch && now < hold.deadlineMs) {
      // Nobody else can rightly have it: those who saw the same wait until this deadline has passed.
      this.#tellBack(record);
      hold.version = version;
      this.#nextRenewMs = now;
    } else if (hold && ours && record.epoch === hold.epoch) {
      hold.version = version;
      hold.record = record;
    } else if (hold) {
      this.#lose(now, `the record names ${describe(record)}`);
    } else if (ours) {
      // Our own take-over went unanswered but was carried out; a renewal makes it count.
      const won = { ...this.#terms, reason: 'an unanswered take-over had succeeded' };
      this.#hold = this.#newHold(version, record, won);
      this.#nextRenewMs = now;
    } else {
      this.#follow();
    }
  }

  #swapped(now: number, call: RecordCall, version: string): void {
    const record = call.record!;
    this.#known = { version, record, sinceMs: now, seenMs: now };
    this.#lookedAtMs = now;
    if (call.purpose === 'replace') return this.#follow();
    if (record.epoch > this.#highestEpoch) this.#highestEpoch = record.epoch;
    this.#furthest = record;
    if (call.purpose === 'leave') {
      this.#handedOver = version;
      this.#hold = undefined;
      this.#follow();
      return;
    }
    if (call.purpose === 'take') this.#hold = this.#newHold(version, record, call.won);
    const hold = this.#hold;
    if (!hold) return;
    hold.version = version;
    hold.record = record;
    // The version has moved on: no earlier renewal can be carried out any more.
    hold.syncSets = [record.syncSet];
    this.#nextRenewMs = call.sentMs + this.#schedule.renewMs;
    const { wantedSyncSet } = hold;
    if (wantedSyncSet && wantedSyncSet !== record.syncSet) this.#nextRenewMs = now; // asked for meanwhile
    const deadlineMs = call.sentMs + this.#options.ttlMs - this.#options.marginMs;
    if (deadlineMs <= now) {
      this.#nextRenewMs = now; // answered too late to be of use
      return;
    }
    if (this.#leaving) return;
    hold.deadlineMs = deadlineMs;
    if (hold.won) {
      const { won, epoch } = hold;
      hold.won = undefined;
      this.#toldReplica = undefined;
      this.#tell({ kind: 'won', epoch, ...won });
    } else if (hold.open) {
      const reason = 'the record was renewed';
      this.#tell({ kind: 'renewed', epoch: hold.epoch, deadlineNs: deadlineNs(deadlineMs), reason });
    } else {
      this.#open(now, 'the record was renewed');
    }
  }

  #membersRead(now: number, registered: readonly Member[]): void {
    const members = registered.filter((member) => member.clusterId === this.#options.clusterId);
    const hasEnded = (incarnation: string): boolean =>
      this.#ended.has(incarnation) || incarnation === this.#options.formerIncarnation;
    const verdict = this.#membership.observe(members, now, hasEnded);
    this.#nextMembersMs = now + this.#beatMs;
    if (verdict === 'duplicate') {
      const reason = `another live process uses node id ${this.#self.nodeId}`;
      return this.#refuse('ERR_LEASE_DUPLICATE_NODE', reason);
    }
    this.#learnEpoch(members);
    if (verdict === 'wait') return;
    if (this.#membership.registered && now < this.#nextRegisterMs && !this.#hasNews(now)) return;
    this.#nextRegisterMs = now + this.#membership.turnMs(now);
    this.#registeredEpoch = this.#highestEpoch;
    this.#seenCounter += 1n;
    const { candidate, region, priority } = this.#options.node;
    const member: Member = {
      ...this.#self,
      clusterId: this.#options.clusterId,
      candidate,
      region,
      priority,
      epoch: this.#highestEpoch,
      seen: this.#seenCounter,
      positions: this.#options.positions(),
    };
    this.#memberCall = this.#call({ op: 'register', member });
  }

  /** Whether others should hear from this node out of turn: a new epoch, or positions before an election. */
  #hasNews(now: number): boolean {
    if (this.#registeredEpoch !== this.#highestEpoch) return true;
    if (this.#hold || this.#known === undefined) return false;
    return now > this.#known.sinceMs + this.#schedule.renewMs + this.#beatMs;
  }

  /** A member that knows a higher epoch is ahead of what we read, or the store has lost that record: nothing below counts. */
  #learnEpoch(members: readonly Member[]): void {
    const highest = members.map(({ epoch }) => epoch).reduce((a, b) => (a > b ? a : b), this.#highestEpoch);
    if (highest === this.#highestEpoch) return;
    this.#highestEpoch = highest;
    // What is under way may have been read before that epoch began.
    if (this.#recordCall?.purpose === 'read' || this.#recordCall?.purpose === 'watch') {
      this.#recordCall = undefined;
    }
    this.#unsure = true;
  }

  /** Whether the store shows less than was there before. */
  #isBack(record: LeaseRecord | undefined): boolean {
    const furthest = this.#furthest;
    if (!record) return this.#highestEpoch > 0n || furthest !== undefined;
    if (record.epoch < this.#highestEpoch) return true;
    return furthest?.epoch === record.epoch && record.heartbeat < furthest.heartbeat;
  }

  // What should be under way now

  #settle(now: number): void {
    this.#wakeAtMs = Infinity;
    if (this.#hold?.open) {
      if (now >= this.#hold.deadlineMs) {
        const why = this.#outageWhy === undefined ? '' : ` (${this.#outageWhy})`;
        this.#fence(`no renewal succeeded before the deadline${why}`);
      } else this.#wakeBy(this.#hold.deadlineMs);
    }
    if (!this.#stopped) this.#settleMembers(now);
    if (!this.#stopped) this.#settleProof(now);
    if (!this.#stopped) this.#settleRecord(now);
    if (!this.#stopped) this.#settleLeaving(now);
  }

  #settleMembers(now: number): void {
    // Not before the record was read: it may be another cluster's.
    if (this.#memberCall !== undefined || !this.#known) return;
    if (this.#leaving?.leave.kind === 'release') {
      if (!this.#leaving.unregistered) this.#memberCall = this.#call({ op: 'unregister' });
    } else if (now >= this.#nextMembersMs) {
      this.#memberCall = this.#call({ op: 'members' });
    } else {
      this.#wakeBy(this.#nextMembersMs);
    }
  }

  #settleProof(now: number): void {
    if (!this.#options.provesEnd || this.#proofCall || this.#hold) return;
    const twin = this.#membership.registered ? undefined : this.#membership.twin;
    const process = [twin, this.#known?.record?.holder].find(
      (one) => one !== undefined && !this.#ended.has(one.incarnation),
    );
    if (!process) return;
    if (now < this.#nextProofMs) return this.#wakeBy(this.#nextProofMs);
    this.#nextProofMs = now + this.#beatMs / 5;
    this.#proofCall = { id: this.#call({ op: 'ended', process }), process };
  }

  #settleRecord(now: number): void {
    if (this.#recordCall && this.#recordCall.purpose !== 'watch') return;
    if (now < this.#retryAtMs) return this.#wakeBy(this.#retryAtMs);
    const hold = this.#hold;
    const known = this.#known;
    if (this.#unsure || !known) {
      this.#callRecord(now, 'read', { op: 'read' });
    } else if (hold && this.#leaving) {
      const { leave } = this.#leaving;
      this.#swap(now, 'leave', hold.version, {
        ...hold.record,
        holder: undefined,
        heartbeat: hold.record.heartbeat + 1n,
        positions: this.#options.positions(),
        handoffTo: leave.kind === 'handOff' ? leave.target : undefined,
      });
    } else if (hold) {
      if (now < this.#nextRenewMs) return this.#wakeBy(this.#nextRenewMs);
      this.#swap(now, 'renew', hold.version, this.#heldBySelf(hold.record, hold.epoch));
    } else if (!this.#leaving && this.#options.remote && !known.record) {
      // Before anybody waits: an empty place has no version that tells it from a later empty place, and a node without
      // a cluster would found one there.
      this.#swap(now, 'replace', known.version, this.#emptyRecord());
    } else if (!this.#leaving) {
      const won = this.#mayTake(now, known);
      if (won) {
        this.#takePending = true;
        const before = this.#isBack(known.record) ? this.#furthest : known.record;
        const record = this.#heldBySelf(before, this.#highestEpoch + 1n);
        this.#swap(now, 'take', known.version, record, won);
      } else if (!this.#recordCall) {
        const waitMs = 2 * this.#beatMs;
        this.#callRecord(now, 'watch', { op: 'watch', version: known.version, waitMs });
      }
    }
  }

  /** The record with this node as its holder: the next heartbeat, or a new epoch after anything else. */
  #heldBySelf(before: LeaseRecord | undefined, epoch: bigint): LeaseRecord {
    return {
      clusterId: this.#options.clusterId,
      epoch,
      holder: this.#self,
      heartbeat: (before?.heartbeat ?? 0n) + 1n,
      ttlMs: this.#options.ttlMs,
      positions: this.#options.positions(),
      syncSet: this.#hold?.wantedSyncSet ?? before?.syncSet ?? [],
      handoffTo: undefined,
    };
  }

  /** What stands for a lost record until somebody may take the lease: epoch 0, which is free to nobody at once. */
  #emptyRecord(): LeaseRecord {
    const { clusterId, ttlMs } = this.#options;
    const blank = { heartbeat: 0n, ttlMs, positions: this.#options.positions(), syncSet: [] };
    return { ...blank, ...this.#furthest, clusterId, epoch: 0n, holder: undefined, handoffTo: undefined };
  }

  // Taking the lease

  get #mayStand(): boolean {
    return this.#options.node.candidate && this.#membership.registered;
  }

  #mayTake(now: number, known: Known): Hold['won'] {
    const options = this.#options;
    const members = this.members;
    if (!this.#mayStand) return undefined;
    const { sinceMs, seenMs } = known;
    const back = this.#isBack(known.record);
    const record = back ? (this.#furthest ?? known.record) : known.record;
    // In a store that can be wiped a lease that nobody ever held may be all that is left of one.
    const founded = !options.remote || known.version === options.foundedWith;
    const lost = back || (record?.epoch === 0n && !founded);
    const holder = back ? undefined : record?.holder;
    // By the time at which a silent holder is succeeded all who live have registered out of turn (`#hasNews`).
    const quietSinceMs = holder && sinceMs;
    const verdict = takeover(now, options, {
      record,
      sinceMs,
      seenMs,
      lost,
      endedMs: holder && this.#ended.get(holder.incarnation),
      holdBack: [
        { untilMs: this.#pausedUntilMs, reason: 'this node gave the lease up a moment ago' },
        { untilMs: holder ? this.#graceUntilMs : 0, reason: 'after an outage the holder may return first' },
      ],
      rivals: this.#membership.rivals(now, holder?.nodeId, quietSinceMs),
      living: members.filter(({ nodeId }) => this.#membership.isLive(nodeId, now, quietSinceMs)),
      formerRegion: members.find((member) => member.nodeId === holder?.nodeId)?.region,
      acceptLoss: now < this.#lossAcceptedUntilMs,
      handedOver: known.version === this.#handedOver,
    });
    if (verdict.kind === 'take') {
      const { reason, complete, mustFetch } = verdict;
      this.#terms = { reason, recorded: record?.positions ?? {}, complete, mustFetch };
      return this.#terms;
    }
    this.#wakeBy(verdict.untilMs);
    if (verdict.kind === 'wait' && this.#toldWaiting !== verdict.reason) {
      this.#toldWaiting = verdict.reason;
      this.#tell({ kind: 'waiting', reason: verdict.reason });
    }
    return undefined;
  }

  #newHold(version: string, record: LeaseRecord, won: Hold['won']): Hold {
    const closed = { deadlineMs: -Infinity, ready: false, open: false };
    const sets = { wantedSyncSet: undefined, syncSets: [record.syncSet] };
    return { epoch: record.epoch, version, record, won, ...closed, ...sets };
  }

  // Changes of what applications may do

  #open(now: number, reason: string): void {
    const hold = this.#hold;
    if (!hold || !hold.ready || hold.open || this.#leaving) return;
    if (now >= hold.deadlineMs) {
      this.#nextRenewMs = now;
      return;
    }
    hold.open = true;
    const { epoch, deadlineMs } = hold;
    this.#tell({ kind: 'primary', epoch, deadlineNs: deadlineNs(deadlineMs), reason });
  }

  #fence(reason: string): void {
    if (!this.#hold?.open) return;
    this.#hold.open = false;
    this.#tell({ kind: 'fenced', epoch: this.#hold.epoch, reason });
  }

  #lose(now: number, reason: string): void {
    this.#fence(reason);
    this.#hold = undefined;
    this.#nextProofMs = now;
    this.#follow();
  }

  /** Says whom this node follows, when that changed. */
  #follow(): void {
    if (this.#unsure) return; // the read that is due will tell
    const record = this.#known?.record;
    const epoch = this.#highestEpoch;
    const back = record !== undefined && record.epoch < epoch;
    // A former process of this very node is nobody to follow.
    const own = record?.holder?.nodeId === this.#self.nodeId;
    const of = back || own ? undefined : record?.holder;
    // About to be the holder: to let go of everything for that moment would keep the writers of the hand-off waiting. Not
    // one that was the holder itself until now: it has followed nobody since, and has to fetch what it lacks as a replica.
    const follows = this.#toldReplica !== undefined;
    if (!back && follows && record?.handoffTo === this.#self.nodeId && this.#mayStand) return;
    if (of) this.#toldWaiting = undefined;
    if (back) this.#tellBack(record);
    const key = `${epoch} ${of?.incarnation}`;
    if (this.#toldReplica === key) return;
    this.#toldReplica = key;
    this.#tell({ kind: 'replica', epoch, of, reason: `the record names ${describe(record)}` });
  }

  #tellBack(record: LeaseRecord | undefined): void {
    const epoch = this.#highestEpoch;
    const shown =
      record?.epoch === epoch
        ? 'an older one'
        : record
          ? `at epoch ${record.epoch} (${describe(record)})`
          : 'gone';
    const reason = `the lease is ${shown}, this node has seen epoch ${epoch}`;
    if (this.#toldEpochBack !== reason) {
      this.#tell({ kind: 'refused', code: 'ERR_LEASE_EPOCH_BACK', fatal: false, reason });
    }
    this.#toldEpochBack = reason;
  }

  // Leaving

  #startLeaving(now: number, leave: Leave): void {
    const refuse = (failure: string): void => this.#endLeave(leave, failure);
    const under = this.#leaving?.leave;
    // A daemon that stops or is not able says so once, whatever else is under way.
    if (under && (leave.kind === 'handOff' || under.kind === 'release')) {
      return refuse('the lease is being given up already');
    }
    if (under) this.#endLeave(under, reasonOf(leave));
    if (leave.kind !== 'release' && !this.#hold) return refuse('this node does not hold the lease');
    if (leave.kind === 'handOff') {
      if (leave.target === this.#self.nodeId) return refuse('this node holds the lease already');
      const target = this.members.find((member) => member.nodeId === leave.target);
      if (!target) return refuse(`${leave.target} is not registered`);
      if (!target.candidate) return refuse(`${leave.target} is no candidate`);
      if (!this.#membership.isLive(leave.target, now)) return refuse(`${leave.target} is silent`);
    }
    const { ttlMs } = this.#options;
    // A daemon that gave up will not become ready: it may not go back to holding the lease.
    const patienceMs = { handOff: 2 * this.#beatMs, giveUp: Infinity, release: ttlMs }[leave.kind];
    this.#leaving = { leave, untilMs: now + patienceMs, unregistered: false };
    // Before the record is changed: the successor may write as soon as it is.
    this.#fence(reasonOf(leave));
    if (this.#hold) this.#hold.deadlineMs = -Infinity;
    this.#retryAtMs = now;
  }

  #settleLeaving(now: number): void {
    const leaving = this.#leaving;
    if (!leaving) return;
    const { leave } = leaving;
    // An unanswered take-over may have succeeded: then there is something to give up.
    const settled = !this.#hold && !this.#takePending;
    const done = settled && (leave.kind !== 'release' || leaving.unregistered);
    if (!done && now < leaving.untilMs) return this.#wakeBy(leaving.untilMs);

    this.#leaving = undefined;
    let failure = done ? undefined : 'the lease store did not answer in time';
    if (done && leave.kind === 'handOff') {
      const record = this.#known?.record;
      const named = record?.handoffTo ?? record?.holder?.nodeId;
      if (named !== leave.target) failure = `the record names ${describe(record)}`;
    }
    this.#endLeave(leave, failure);
    if (leave.kind === 'release') return this.#stop();
    if (leave.kind === 'giveUp') this.#pausedUntilMs = now + 2 * this.#options.ttlMs;
    // Whatever the lease store still does: only a renewal sent from now on counts.
    if (this.#hold) this.#hold.deadlineMs = -Infinity;
    this.#nextRenewMs = now;
    this.#settle(now);
  }

  #endLeave(leave: Leave, failure: string | undefined): void {
    this.#effects.push({ kind: 'left', leave, failure });
  }

  // Small things

  #refuse(code: 'ERR_LEASE_OTHER_CLUSTER' | 'ERR_LEASE_DUPLICATE_NODE', reason: string): void {
    this.#fence(reason);
    this.#tell({ kind: 'refused', code, fatal: true, reason });
    if (this.#leaving) this.#endLeave(this.#leaving.leave, reason);
    this.#stop();
  }

  #stop(): void {
    this.#stopped = true;
    this.#hold = undefined;
    this.#wakeAtMs = Infinity;
  }

  #swap(
    now: number,
    purpose: Exclude<RecordCall['purpose'], 'read' | 'watch'>,
    expected: string,
    record: LeaseRecord,
    won?: Hold['won'],
  ): void {
    const sets = this.#hold?.syncSets;
    if (sets && !sets.some((set) => String(set) === String(record.syncSet))) sets.push(record.syncSet);
    this.#callRecord(now, purpose, { op: 'compareAndSet', expected, record }, { record, won });
  }

  #callRecord(
    sentMs: number,
    purpose: RecordCall['purpose'],
    call: LeaseCall,
    more: { record?: LeaseRecord; won?: Hold['won'] } = {},
  ): void {
    this.#recordCall = { id: this.#call(call), purpose, sentMs, ...more };
  }

  #call(call: LeaseCall): number {
    const id = this.#nextId++;
    this.#effects.push({ kind: 'call', id, call });
    return id;
  }

  #tell(event: LeaseEvent): void {
    this.#effects.push({ kind: 'event', event });
  }

  #wakeBy(atMs: number): void {
    if (atMs < this.#wakeAtMs) this.#wakeAtMs = atMs;
  }
}

const deadlineNs = (deadlineMs: number): bigint => BigInt(Math.floor(deadlineMs * 1e6));

const describe = (record: LeaseRecord | undefined): string =>
  record?.holder?.nodeId ?? (record?.handoffTo === undefined ? 'nobody' : `${record.handoffTo} next`);

function reasonOf(leave: Leave): string {
  if (leave.kind === 'handOff') return `handing off to ${leave.target}`;
  return leave.kind === 'giveUp' ? leave.why : 'the node stops';
}
