import type { Schedule } from './schedule.js';
import type { Member, NodeProcess } from './types.js';

/** Another process under this node's id, as seen in the members. */
interface Twin extends NodeProcess {
  readonly sinceMs: number;
  readonly seen: bigint;
  readonly changes: number;
}

/**
 * Who is registered beside the record, who of them lives, and whether another process uses this node's
 * id. Judged by counters that grow, watched on this node's own clock.
 */
export class Membership {
  readonly #self: NodeProcess;
  readonly #silenceMs: number;
  readonly #schedule: Schedule;
  #members: readonly Member[] | undefined;
  readonly #heard = new Map<string, { seen: bigint; incarnation: string; atMs: number }>();
  #twin: Twin | undefined;
  #registered = false;

  /**
   * `silenceMs`: a member whose counter stands still for so long is dead. Where members take turns (`schedule.turnMs`) the silence is
   * longer by one round.
   */
  constructor(self: NodeProcess, silenceMs: number, schedule: Schedule) {
    this.#self = self;
    this.#silenceMs = silenceMs;
    this.#schedule = schedule;
  }

  get members(): readonly Member[] {
    return this.#members ?? [];
  }

  /** Only then may this node stand for election: before, another process may be the owner of its id. */
  get registered(): boolean {
    return this.#registered;
  }

  /** The other process under this node's id, if one is in the way. */
  get twin(): NodeProcess | undefined {
    return this.#twin;
  }

  /**
   * Takes the members as read. A process of this id that was there first keeps it while its counter
   * grows: `duplicate` after three changes (the last calls of a dead process may arrive late). `register`:
   * the id is ours to register under; `wait`: not known yet. `hasEnded`: whether a process is proven to be no more.
   */
  observe(
    members: readonly Member[],
    nowMs: number,
    hasEnded: (incarnation: string) => boolean,
  ): 'register' | 'wait' | 'duplicate' {
    this.#members = members;
    const names = new Set(members.map((member) => member.nodeId));
    for (const nodeId of this.#heard.keys()) if (!names.has(nodeId)) this.#heard.delete(nodeId);
    for (const { nodeId, seen, incarnation } of members) {
      const before = this.#heard.get(nodeId);
      if (before?.seen === seen && before.incarnation === incarnation) continue;
      this.#heard.set(nodeId, { seen, incarnation, atMs: nowMs });
    }

    const other = members.find((member) => member.nodeId === this.#self.nodeId);
    if (!other || other.incarnation === this.#self.incarnation) return 'register';
    const before = this.#twin?.incarnation === other.incarnation ? this.#twin : undefined;
    const changed = before !== undefined && other.seen > before.seen;
    this.#twin = {
      nodeId: other.nodeId,
      incarnation: other.incarnation,
      sinceMs: before && !changed ? before.sinceMs : nowMs,
      seen: before && !changed ? before.seen : other.seen,
      changes: (before?.changes ?? 0) + (changed ? 1 : 0),
    };
    if (this.#twin.changes >= 3) return 'duplicate';
    // Once registered, write over it: a late call of our own dead predecessor ends with that, while a
    // living twin writes again and is noticed.
    const silent = nowMs >= this.#twin.sinceMs + this.#deadAfterMs(nowMs);
    return this.#registered || hasEnded(other.incarnation) || silent ? 'register' : 'wait';
  }

  /** How long a member that has nothing new to say may wait before it registers again. */
  turnMs(nowMs: number): number {
    const live = this.members.filter((member) => this.isLive(member.nodeId, nowMs)).length;
    return this.#schedule.turnMs * Math.max(1, live);
  }

  /** Our registration was answered. */
  confirm(): void {
    if (!this.#registered) this.#twin = undefined;
    this.#registered = true;
  }

  /** Live candidates apart from this node and those named; `quietSinceMs` as for `isLive`. */
  rivals(nowMs: number, except: string | undefined, quietSinceMs: number | undefined): Member[] {
    return this.members.filter(
      (member) =>
        member.candidate &&
        member.nodeId !== this.#self.nodeId &&
        member.nodeId !== except &&
        this.isLive(member.nodeId, nowMs, quietSinceMs),
    );
  }

  /**
   * Whether the member's process runs. `quietSinceMs`: since when the lease's holder is silent; then members register at every
   * look, and nobody need wait for the turn of one that died together with the holder.
   */
  isLive(nodeId: string, nowMs: number, quietSinceMs?: number): boolean {
    const heard = this.#heard.get(nodeId);
    if (heard === undefined) return false;
    const quiet = quietSinceMs !== undefined && nowMs >= quietSinceMs + this.#silenceMs;
    return nowMs < heard.atMs + (quiet ? this.#silenceMs : this.#deadAfterMs(nowMs));
  }

  #deadAfterMs(nowMs: number): number {
    const { beatMs, turnMs } = this.#schedule;
    // Those that went long ago and left their entry take no turn.
    const longMs = this.#silenceMs + turnMs * this.#heard.size;
    const recent = [...this.#heard.values()].filter(({ atMs }) => nowMs < atMs + longMs);
    return Math.max(this.#silenceMs, this.#silenceMs - beatMs + turnMs * recent.length);
  }
}
