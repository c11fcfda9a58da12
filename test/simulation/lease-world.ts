import { chooseSyncSet } from '../../src/durability/sync-set.js';
import { reasonToEnter, stateAfter } from '../../src/daemon/node-state.js';
import { LeaseMachine } from '../../src/lease/lease-machine.js';
import type { LeaseAnswer, LeaseCall, LeaseInput } from '../../src/lease/protocol.js';
import type { LeaseEvent, LeaseRecord, Member, VersionedRecord } from '../../src/lease/types.js';
import type { NodeRole } from '../../src/observability/node-status.js';
import { Random } from './random.js';
import { Timeline } from './timeline.js';

const TTL_MS = 5000;
const MARGIN_MS = 500;
const BEAT_MS = TTL_MS / 5;
/** Longest time that a message may be under way. */
const STRAGGLE_MS = 1.5 * TTL_MS;
const FAULTS_UNTIL_MS = 7 * TTL_MS;
/** After the last fault a primary must be there within this. */
const RECOVERY_MS = STRAGGLE_MS + 3 * (TTL_MS + MARGIN_MS);

export interface SimulationResult {
  readonly wins: number;
  readonly handOffs: number;
  /** From the end of the faults until a node was primary again. */
  readonly recoveryMs: number;
  /** Whether the history ended with an election among equals, whose winner priority and region decide. */
  readonly preferred: boolean;
}

interface Process {
  readonly node: number;
  readonly incarnation: string;
  readonly machine: LeaseMachine;
  readonly rate: number;
  offsetMs: number;
  alive: boolean;
  /** Stopped or suspended until then; what happens meanwhile is delivered after. */
  pausedUntilMs: number;
  cutOffUntilMs: number;
  suspended: boolean;
  /** Calls whose patience runs. */
  readonly unanswered: Set<number>;
  /** When its timer goes off, on its own clock. */
  wakeAtMs: number;
  /** True time until which applications may write here. */
  openUntilMs: number;
  state: NodeRole;
}

/**
 * Several nodes with clocks of their own on one store, with everything that can go wrong between them,
 * in true time that none of them sees. Throws as soon as a guarantee is broken.
 */
export class LeaseWorld {
  readonly #time = new Timeline();
  readonly #random: Random;
  readonly #trace: ((line: string) => void) | undefined;
  readonly #provesEnd: boolean;
  readonly #processes: Process[] = [];
  readonly #dead = new Set<string>();
  readonly #knownEpoch: bigint[];
  readonly #positions: { epoch: bigint; txid: bigint }[];
  /** Promises made to applications, each kept by every node of the sync sets that the record could then have. */
  #promised = 0;
  readonly #kept: number[];
  readonly #usesSyncSets: boolean;
  readonly #places: { region: string; priority: number; candidate: boolean }[];
  readonly #spread: 'any' | 'prefer' | 'require';
  /** Replicas that a promise needs, and whether it does with fewer when they cannot be had. */
  readonly #needed: number;
  readonly #degrades: boolean;
  /** All clocks run alike, as those of real machines nearly do: then preferences must show. */
  readonly #steady: boolean;
  /** Nobody writes any more: everybody has the same. */
  #calm = false;
  #winner: number | undefined;
  #stored: VersionedRecord = { record: undefined, version: '0' };
  #versions = 0;
  #members = new Map<string, Member>();
  /** A store apart from the nodes, which may be wiped or restored while they run. */
  readonly #remote: boolean;
  readonly #snapshots: { atMs: number; stored: VersionedRecord; members: Map<string, Member> }[] = [];
  /** It was: epochs that no living node knows may come again. */
  #forgot = false;
  #watchers: { version: string; answer: () => void }[] = [];
  #faults = true;
  #highestWon = 0n;
  #wins = 0;
  #handOffs = 0;

  constructor(seed: number, trace?: (line: string) => void) {
    this.#random = new Random(seed);
    this.#trace = trace;
    this.#remote = this.#random.chance(0.5);
    this.#provesEnd = !this.#remote && this.#random.chance(0.6);
    const nodes = this.#random.pick([2, 3, 3, 4]);
    this.#knownEpoch = Array.from({ length: nodes }, () => 0n);
    this.#positions = Array.from({ length: nodes }, () => ({ epoch: 0n, txid: 0n }));
    this.#kept = Array.from({ length: nodes }, () => 0);
    this.#usesSyncSets = this.#random.chance(0.5);
    this.#places = Array.from({ length: nodes }, (_, node) => ({
      region: this.#random.pick(['', 'ams', 'ams', 'fra']),
      priority: this.#random.pick([0, 0, 1, 2]),
      // The first is one always, so that somebody can win.
      candidate: node % 3 !== 2,
    }));
    this.#spread = this.#random.pick(['any', 'prefer', 'require']);
    this.#needed = this.#random.pick([1, 1, 2]);
    this.#degrades = this.#random.chance(0.3);
    this.#steady = this.#random.chance(0.2);
    for (let node = 0; node < nodes; node += 1) {
      this.#time.at(this.#random.between(0, 2000), () => this.#boot(node));
    }
    this.#time.at(this.#random.between(1000, 4000), () => this.#nextFault());
  }

  run(): SimulationResult {
    while (this.#time.nowMs < FAULTS_UNTIL_MS && this.#time.advance());
    this.#note('faults end');
    this.#faults = false;
    for (const one of this.#processes) {
      one.cutOffUntilMs = 0;
      if (one.alive) this.#resume(one, this.#time.nowMs);
    }
    const endedMs = this.#time.nowMs;
    while (this.#time.nowMs < endedMs + RECOVERY_MS && this.#time.advance()) {
      // Not one that is about to run out.
      const primary = this.#processes.find((one) => one.alive && one.openUntilMs > this.#time.nowMs);
      if (primary && this.#time.nowMs > endedMs + TTL_MS) {
        this.#checkEpochs();
        const recoveryMs = this.#time.nowMs - endedMs;
        const preferred = this.#steady && this.#electAmongEquals();
        return { wins: this.#wins, handOffs: this.#handOffs, recoveryMs, preferred };
      }
    }
    throw new Error(`no primary ${RECOVERY_MS} ms after the faults ended`);
  }

  /**
   * The primary goes while all have the same: of those who may win the one with the highest priority does, and among such one in
   * the primary's region. Returns false where that says nothing: the lease is free at the moment, or nobody else may win.
   */
  #electAmongEquals(): boolean {
    this.#calm = true;
    const pass = (ms: number): void => {
      const untilMs = this.#time.nowMs + ms;
      while (this.#time.nowMs < untilMs && this.#time.advance());
    };
    // Everybody is up, has registered, and has forgotten that it gave up.
    pass(STRAGGLE_MS + 2 * TTL_MS);
    const primary = this.#processes.find((one) => one.alive && one.openUntilMs > this.#time.nowMs);
    const record = this.#stored.record;
    if (!primary || record?.holder?.incarnation !== primary.incarnation) return false;
    for (const position of this.#positions) Object.assign(position, this.#positions[primary.node]);
    this.#kept.fill(this.#promised);
    pass(2 * TTL_MS);
    this.#winner = undefined;
    const region = this.#places[primary.node]!.region;
    const isPreferred = (a: number, b: number): boolean => {
      const [one, other] = [this.#places[a]!, this.#places[b]!];
      if (one.priority !== other.priority) return one.priority > other.priority;
      return one.region === region && other.region !== region;
    };
    const candidates = [...this.#places.keys()].filter(
      (node) => this.#places[node]!.candidate && node !== primary.node,
    );
    const best = candidates.filter((node) => !candidates.some((other) => isPreferred(other, node)));
    const { syncSet } = this.#stored.record!;
    const mayWin = (node: number): boolean => syncSet.length === 0 || syncSet.includes(`n${node}`);
    this.#note(`${primary.incarnation} goes; best: ${best.join(', ')}; sync set: ${syncSet.join(', ')}`);
    this.#kill(primary, Infinity);
    for (let i = 0; i < 40 && this.#winner === undefined; i += 1) pass(TTL_MS / 10);
    if (!best.some(mayWin)) return false;
    if (this.#winner === undefined || !best.includes(this.#winner)) {
      throw new Error(`n${this.#winner} won, and n${best.join(' or n')} is preferred`);
    }
    return true;
  }

  // Processes

  #boot(node: number): void {
    const random = this.#random;
    const nodeId = `n${node}`;
    const incarnation = `${nodeId}#${this.#processes.length}`;
    const one: Process = {
      node,
      incarnation,
      machine: new LeaseMachine({
        clusterId: 'c',
        node: {
          nodeId,
          advertiseUrl: '',
          peerAddress: '',
          ...this.#places[node]!,
        },
        incarnation,
        highestEpoch: this.#knownEpoch[node]!,
        ttlMs: TTL_MS,
        marginMs: MARGIN_MS,
        lockDelayMs: 0,
        electionWaitMs: 1000,
        provesEnd: this.#provesEnd,
        remote: this.#remote,
        followed: () => random.chance(0.5),
        powerWasCut: false,
        positions: () => ({ db: `${this.#positions[node]!.epoch}:${this.#positions[node]!.txid}` }),
      }),
      // Over ttl - margin against ttl + margin, rates may differ by a fifth.
      rate: this.#steady ? random.between(0.9999, 1.0001) : random.between(0.92, 1.08),
      offsetMs: random.between(0, 1e6),
      alive: true,
      pausedUntilMs: 0,
      cutOffUntilMs: 0,
      suspended: false,
      unanswered: new Set(),
      wakeAtMs: Infinity,
      openUntilMs: 0,
      state: 'starting',
    };
    this.#processes.push(one);
    this.#note(`boots ${incarnation}`);
    this.#step(one, { kind: 'tick' });
  }

  #local(one: Process): number {
    return one.offsetMs + one.rate * this.#time.nowMs;
  }

  #true(one: Process, localMs: number): number {
    return (localMs - one.offsetMs) / one.rate;
  }

  /** Runs something in a process at a true time, or when it is awake again. */
  #in(one: Process, atMs: number, run: () => void): void {
    this.#time.at(atMs, () => {
      if (!one.alive) return;
      if (this.#time.nowMs < one.pausedUntilMs) this.#in(one, one.pausedUntilMs, run);
      else run();
    });
  }

  #step(one: Process, input: LeaseInput): void {
    // As in the driver: the clocks are looked at before anything else.
    if (one.suspended) {
      one.suspended = false;
      this.#step(one, { kind: 'clockGap', why: 'suspended' });
    }
    for (const effect of one.machine.step(this.#local(one), input)) {
      if (effect.kind === 'call') this.#send(one, effect.id, effect.call);
      else if (effect.kind === 'event') this.#event(one, effect.event);
      else if (effect.failure === undefined) this.#note(`${one.incarnation} left`);
      else if (one.state === 'draining') this.#enter(one, 'primary');
    }
    const { wakeAtMs } = one.machine;
    // The same timer is still running: most steps do not move it.
    if (wakeAtMs === one.wakeAtMs) return;
    one.wakeAtMs = wakeAtMs;
    if (wakeAtMs === Infinity) return;
    this.#in(one, Math.max(this.#true(one, wakeAtMs), this.#time.nowMs + 0.01), () => {
      if (wakeAtMs !== one.wakeAtMs) return;
      one.wakeAtMs = Infinity;
      this.#step(one, { kind: 'tick' });
    });
  }

  #event(one: Process, event: LeaseEvent): void {
    this.#note(`${one.incarnation} ${event.kind}: ${event.reason}`);
    const { node } = one;
    this.#enter(one, stateAfter(event.kind) ?? one.state);
    switch (event.kind) {
      case 'won': {
        if (event.epoch <= this.#highestWon && !this.#forgot)
          throw new Error(`epoch ${event.epoch} was won twice`);
        this.#highestWon = event.epoch;
        if (this.#kept[node] !== this.#promised) {
          throw new Error(
            `${one.incarnation} won and lacks promise ${this.#promised}: it has ${this.#kept[node]}`,
          );
        }
        this.#knownEpoch[node] = event.epoch;
        this.#wins += 1;
        this.#winner = node;
        const able = !this.#faults || !this.#random.chance(0.1);
        this.#in(one, this.#time.nowMs + this.#random.between(0, 1500), () => {
          if (able) this.#step(one, { kind: 'ready', epoch: event.epoch });
          else this.#step(one, { kind: 'leave', leave: { kind: 'giveUp', why: 'not able' } });
        });
        return;
      }
      case 'primary':
      case 'renewed':
        return this.#mayWrite(one, event.epoch, event.deadlineNs);
      case 'fenced':
        one.openUntilMs = 0;
        return;
      case 'replica':
        if (event.epoch > this.#knownEpoch[node]!) this.#knownEpoch[node] = event.epoch;
        return;
      case 'refused':
        if (event.code === 'ERR_LEASE_EPOCH_BACK' && this.#forgot) return;
        throw new Error(`${one.incarnation} refused: ${event.reason}`);
      default:
    }
  }

  /** As the daemon does: the table of states has every way that the lease takes. */
  #enter(one: Process, state: NodeRole): void {
    if (state !== one.state && reasonToEnter(one.state, state) === undefined)
      throw new Error(`${one.incarnation} went from ${one.state} to ${state}`);
    one.state = state;
  }

  /** The guarantee: at no true time may two processes write. */
  #mayWrite(one: Process, epoch: bigint, deadlineNs: bigint): void {
    const now = this.#time.nowMs;
    one.openUntilMs = this.#true(one, Number(deadlineNs) / 1e6);
    for (const other of this.#processes) {
      if (other === one || !other.alive || other.openUntilMs <= now) continue;
      throw new Error(`${one.incarnation} and ${other.incarnation} may both write at ${now}`);
    }
    if (epoch < this.#highestWon && !this.#forgot)
      throw new Error(`${one.incarnation} writes under old epoch ${epoch}`);
    if (this.#calm) return;
    const mine = this.#positions[one.node]!;
    mine.txid += 1n;
    mine.epoch = epoch;
    for (const position of this.#positions) if (this.#random.chance(0.7)) Object.assign(position, mine);
    if (!this.#usesSyncSets) return;
    this.#promise(one);
    this.#changeSyncSet(one, epoch);
    // Between two renewals as well, when one that changes the set may be unanswered.
    this.#in(one, now + this.#random.between(0, BEAT_MS), () => this.#promise(one));
  }

  /** As Durability does: a promise needs every node of every set that may be in force; who joins a set has all before. */
  #promise(one: Process): void {
    const sets = one.machine.syncSets;
    const self = `n${one.node}`;
    if (one.openUntilMs <= this.#time.nowMs || !sets.every((set) => set.includes(self))) return;
    const enough = sets.every((set) => {
      const others = set.filter((nodeId) => nodeId !== self);
      return (
        others.length >= this.#needed && (this.#spread !== 'require' || others.some(this.#elsewhere(one)))
      );
    });
    if (!enough && !(this.#degrades && sets.length === 1)) return;
    this.#promised += 1;
    for (const nodeId of new Set(sets.flat())) this.#kept[Number(nodeId.slice(1))] = this.#promised;
  }

  /** By the rule that Durability has. */
  #changeSyncSet(one: Process, epoch: bigint): void {
    const [set, ...more] = one.machine.syncSets;
    if (set === undefined || more.length > 0 || !this.#random.chance(0.3)) return;
    const self = `n${one.node}`;
    const now = this.#time.nowMs;
    const connected = this.#processes.filter(
      (each) =>
        each.alive && now >= each.pausedUntilMs && now >= each.cutOffUntilMs && this.#random.chance(0.9),
    );
    const names = [...new Set(connected.map(({ node }) => node))]
      .filter((node) => node !== one.node && this.#places[node]!.candidate)
      .map((node) => `n${node}`);
    const current = set.filter((nodeId) => nodeId !== self);
    const chosen = chooseSyncSet({
      current,
      healthy: new Set(names),
      eligible: names.toSorted(() => this.#random.between(-1, 1)),
      needed: this.#needed,
      enough: this.#degrades ? 0 : this.#random.pick([Infinity, this.#needed]),
      spread: this.#spread,
      isElsewhere: this.#elsewhere(one),
    });
    if (chosen === current && set.includes(self)) return;
    // Who joins has everything before; the promises of others before this primary it kept itself, or it had not won.
    for (const nodeId of chosen) {
      if (!current.includes(nodeId)) this.#kept[Number(nodeId.slice(1))] = this.#promised;
    }
    const members = [self, ...chosen];
    this.#in(one, now, () => this.#step(one, { kind: 'syncSet', epoch, members }));
  }

  /** Says of a node whether it is in another region than this one. */
  #elsewhere(one: Process): (nodeId: string) => boolean {
    const { region } = this.#places[one.node]!;
    return (nodeId) => this.#places[Number(nodeId.slice(1))]!.region !== region;
  }

  // Messages

  #send(one: Process, id: number, call: LeaseCall): void {
    const patienceMs = call.op === 'watch' ? call.waitMs + BEAT_MS : BEAT_MS;
    // As in the driver: what was answered does not fail any more, though an answer may come after the failure, or twice.
    one.unanswered.add(id);
    this.#in(one, this.#time.nowMs + patienceMs / one.rate, () => {
      if (one.unanswered.delete(id)) this.#step(one, { kind: 'failed', id, why: 'no answer' });
    });
    const copies = this.#faults && this.#random.chance(0.05) ? 2 : 1;
    for (let copy = 0; copy < copies; copy += 1) {
      this.#carry(one, () => {
        this.#execute(one, call, (answer) => {
          this.#carry(one, () => {
            this.#in(one, 0, () => {
              one.unanswered.delete(id);
              this.#step(one, { kind: 'answer', id, answer });
            });
          });
        });
      });
    }
  }

  #carry(one: Process, arrive: () => void): void {
    const random = this.#random;
    if (this.#time.nowMs < one.cutOffUntilMs) return;
    if (this.#faults && random.chance(0.04)) return;
    const straggles = this.#faults && random.chance(0.04);
    this.#time.at(this.#time.nowMs + random.between(0.5, straggles ? STRAGGLE_MS : 30), arrive);
  }

  #execute(one: Process, call: LeaseCall, answer: (answer: LeaseAnswer) => void): void {
    switch (call.op) {
      case 'read':
        return answer({ op: 'record', seen: this.#stored });
      case 'watch': {
        const respond = (): void => answer({ op: 'record', seen: this.#stored });
        if (call.version !== this.#stored.version) return respond();
        const watcher = { version: call.version, answer: respond };
        this.#watchers.push(watcher);
        this.#time.at(this.#time.nowMs + call.waitMs, () => {
          const index = this.#watchers.indexOf(watcher);
          if (index === -1) return;
          this.#watchers.splice(index, 1);
          respond();
        });
        return;
      }
      case 'compareAndSet':
        return answer({ op: 'compareAndSet', version: this.#swap(one, call.expected, call.record) });
      case 'members':
        return answer({ op: 'members', members: [...this.#members.values()] });
      case 'register':
        this.#members.set(call.member.nodeId, call.member);
        return answer({ op: 'done' });
      case 'unregister':
        this.#members.delete(`n${one.node}`);
        return answer({ op: 'done' });
      case 'ended':
        return answer({ op: 'ended', ended: this.#dead.has(call.process.incarnation) });
    }
  }

  #swap(one: Process, expected: string, record: LeaseRecord): string | undefined {
    const before = this.#stored;
    if (expected !== before.version) return undefined;
    const taken =
      record.holder !== undefined && record.holder.incarnation !== before.record?.holder?.incarnation;
    const epochBefore = before.record?.epoch ?? 0n;
    const grows = this.#forgot || !record.holder ? record.epoch >= epochBefore : record.epoch > epochBefore;
    if (taken || this.#forgot ? !grows : record.epoch !== epochBefore) {
      throw new Error(`${one.incarnation} moved the record from epoch ${epochBefore} to ${record.epoch}`);
    }
    this.#put({ record, version: String(++this.#versions) });
    if (taken || !record.holder) this.#note(`record: epoch ${record.epoch}, ${record.holder?.incarnation}`);
    this.#snapshots.push({ atMs: this.#time.nowMs, stored: this.#stored, members: new Map(this.#members) });
    return this.#stored.version;
  }

  #put(stored: VersionedRecord): void {
    this.#stored = stored;
    const woken = this.#watchers;
    this.#watchers = [];
    for (const watcher of woken) watcher.answer();
  }

  /** The record is deleted, or the whole store is lost. */
  #wipe(): void {
    this.#forgot = true;
    if (this.#random.chance(0.5)) this.#members.clear();
    this.#put({ record: undefined, version: '0' });
  }

  /**
   * As a snapshot would: an older record, with its version. Not one younger than a ttl, nor one that was taken while the
   * lease changed hands or was free: nodes that are stopped or cut off as well cannot know better (docs/guarantees.md).
   */
  #restore(): void {
    const holderAt = (index: number): string | undefined =>
      this.#snapshots[index]?.stored.record?.holder?.incarnation;
    const usable = this.#snapshots.filter(({ atMs }, index) => {
      if (atMs > this.#time.nowMs - TTL_MS) return false;
      const holder = holderAt(index);
      return holder !== undefined && holder === holderAt(index + 1) && holder === holderAt(index + 2);
    });
    if (usable.length === 0) return;
    this.#forgot = true;
    const { stored, members } = this.#random.pick(usable);
    this.#members = new Map(members);
    this.#put(stored);
  }

  /** Whoever is primary, no living node knows a higher epoch. */
  #checkEpochs(): void {
    for (const one of this.#processes) {
      if (!one.alive || this.#knownEpoch[one.node]! <= this.#stored.record!.epoch) continue;
      throw new Error(`${one.incarnation} knows epoch ${this.#knownEpoch[one.node]}, the record is behind`);
    }
  }

  // Faults

  #nextFault(): void {
    if (!this.#faults) return;
    const random = this.#random;
    const now = this.#time.nowMs;
    this.#time.at(now + random.between(300, 4000), () => this.#nextFault());
    const living = this.#processes.filter((one) => one.alive && now >= one.pausedUntilMs);
    if (living.length === 0) return;
    const holder = living.find((one) => one.incarnation === this.#stored.record?.holder?.incarnation);
    const one = holder && random.chance(0.6) ? holder : random.pick(living);
    const forMs = random.between(100, random.chance(0.5) ? 1000 : 2 * TTL_MS);
    const fault = random.pick([
      'stop',
      'stop',
      'suspend',
      'kill',
      'region',
      'cut',
      'cut',
      'store',
      'handOff',
      'handOff',
      'release',
      // Who starts after the record was put back finds an old sync set: what it promises is not kept (docs/guarantees.md).
      ...(this.#remote && !this.#usesSyncSets ? (['wipe', 'restore'] as const) : []),
    ]);
    this.#note(`fault ${fault} ${one.incarnation} for ${forMs}`);
    switch (fault) {
      case 'stop':
        return this.#pause(one, forMs);
      case 'suspend':
        // All clocks of the guest stand still; applications on it do too.
        this.#pause(one, forMs);
        one.offsetMs -= one.rate * forMs;
        one.suspended = true;
        one.openUntilMs = 0;
        return;
      case 'kill':
        return this.#kill(one, forMs);
      case 'region':
        // Power, or the network, of a whole one.
        for (const each of living) {
          if (this.#places[each.node]!.region !== this.#places[one.node]!.region) continue;
          if (random.chance(0.5)) this.#kill(each, forMs);
          else each.cutOffUntilMs = now + forMs;
        }
        return;
      case 'cut':
        one.cutOffUntilMs = now + forMs;
        return;
      case 'store':
        for (const each of this.#processes) each.cutOffUntilMs = now + forMs;
        return;
      case 'wipe':
        return this.#wipe();
      case 'restore':
        return this.#restore();
      case 'handOff': {
        const targetNode = Math.floor(random.next() * this.#knownEpoch.length);
        const target = `n${targetNode}`;
        this.#handOffs += 1;
        // The node sees to that before it asks for a hand-off.
        this.#kept[targetNode] = Math.max(this.#kept[targetNode]!, this.#kept[one.node]!);
        if (one.state === 'primary') this.#enter(one, 'draining');
        return this.#step(one, { kind: 'leave', leave: { kind: 'handOff', target } });
      }
      default:
        this.#step(one, { kind: 'leave', leave: { kind: 'release' } });
        this.#in(one, now + TTL_MS + 1, () => this.#kill(one, forMs));
    }
  }

  #pause(one: Process, forMs: number): void {
    one.pausedUntilMs = this.#time.nowMs + forMs;
    this.#in(one, one.pausedUntilMs, () => this.#step(one, { kind: 'tick' }));
  }

  #resume(one: Process, nowMs: number): void {
    if (one.suspended) one.offsetMs += one.rate * Math.max(0, one.pausedUntilMs - nowMs);
    // Its clock may have come nearer to it.
    one.wakeAtMs = Infinity;
    one.pausedUntilMs = 0;
    this.#in(one, nowMs, () => this.#step(one, { kind: 'tick' }));
  }

  #kill(one: Process, forMs: number): void {
    if (!one.alive) return;
    one.alive = false;
    one.openUntilMs = 0;
    this.#dead.add(one.incarnation);
    if (forMs !== Infinity) this.#time.at(this.#time.nowMs + forMs, () => this.#boot(one.node));
  }

  #note(line: string): void {
    this.#trace?.(`${this.#time.nowMs.toFixed(1).padStart(9)} ${line}`);
  }
}

/** Runs one seed; a broken guarantee is thrown with the seed and the last lines of its story. */
export function simulateLease(seed: number): SimulationResult {
  try {
    return new LeaseWorld(seed).run();
  } catch (error) {
    const lines: string[] = [];
    try {
      new LeaseWorld(seed, (line) => lines.push(line)).run();
    } catch {
      // The same as before, with its story.
    }
    throw new Error(`seed ${seed}: ${String(error)}\n${lines.slice(-60).join('\n')}`, { cause: error });
  }
}
