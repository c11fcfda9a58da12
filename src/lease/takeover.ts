import { behind, deference, furthest } from './election.js';
import type { LeaseMachineOptions } from './protocol.js';
import type { LeaseRecord, Member } from './types.js';

/** What a candidate knows when it asks whether it may take the lease. */
export interface Situation {
  readonly record: LeaseRecord | undefined;
  /** Since when, by our clock, we have watched the record unchanged. */
  readonly sinceMs: number;
  /** When this version of it was first seen: whoever followed its holder did until about then. */
  readonly seenMs: number;
  /** The store shows less than was there before, or may: whoever held the lease may still write. */
  readonly lost: boolean;
  /** When we learnt that the holder's process has ended, if we did. */
  readonly endedMs: number | undefined;
  /** Reasons of this node's own to hold back. */
  readonly holdBack: readonly { readonly untilMs: number; readonly reason: string }[];
  /** Live candidates apart from this node and the holder. */
  readonly rivals: readonly Member[];
  /** Everybody whose process runs, candidate or not. */
  readonly living: readonly Member[];
  readonly formerRegion: string | undefined;
  /** A person has said so: what this node may lack is given up. */
  readonly acceptLoss: boolean;
  /** The lease was this node's, and it named another to follow, who has not come yet. */
  readonly handedOver: boolean;
}

export type Verdict =
  /** `complete`: the previous primary saw that this node has everything. `mustFetch`: only with what others have. */
  | {
      readonly kind: 'take';
      readonly reason: string;
      readonly complete: boolean;
      readonly mustFetch: boolean;
    }
  /** The lease is free, or will be at a known time, but not for us yet. */
  | { readonly kind: 'wait'; readonly reason: string; readonly untilMs: number }
  /** It has a holder that is not silent for long enough. */
  | { readonly kind: 'held'; readonly untilMs: number };

type Options = Pick<
  LeaseMachineOptions,
  | 'node'
  | 'ttlMs'
  | 'marginMs'
  | 'lockDelayMs'
  | 'electionWaitMs'
  | 'positions'
  | 'elsewhere'
  | 'followed'
  | 'powerWasCut'
>;

/** Whether a candidate may take the lease now. */
export function takeover(nowMs: number, options: Options, at: Situation): Verdict {
  const { record } = at;
  const { node, electionWaitMs } = options;
  const free = freeFrom(options, at);
  if (nowMs < free.atMs) {
    const untilMs = free.atMs;
    return record?.holder && !at.lost
      ? { kind: 'held', untilMs }
      : { kind: 'wait', reason: free.reason, untilMs };
  }
  const ours = options.positions();
  const recorded = record?.positions ?? {};
  const missing = behind(ours, recorded);
  if (at.acceptLoss) {
    return {
      kind: 'take',
      reason: `${free.reason}, and a loss is accepted`,
      complete: false,
      mustFetch: false,
    };
  }
  const holdBack = at.holdBack.find((one) => nowMs < one.untilMs);
  if (holdBack) return { kind: 'wait', ...holdBack };
  // The target of a hand-off was chosen by the primary, which saw that it has everything.
  const named = record?.handoffTo === node.nodeId;
  if (record && !named && record.syncSet.length > 0 && !record.syncSet.includes(node.nodeId)) {
    const reason = 'only a member of the sync set may win: this node may lack acknowledged data';
    return { kind: 'wait', reason, untilMs: Infinity };
  }
  const own = record?.holder?.nodeId === node.nodeId;
  // What this node has acknowledged it may have lost itself; each other member of the set has it.
  const keeper = record?.syncSet.find((nodeId) => nodeId !== node.nodeId);
  if (own && options.powerWasCut && keeper !== undefined) {
    const reason = `this machine went down while this node was primary: ${keeper} has what was acknowledged here`;
    return { kind: 'wait', reason, untilMs: Infinity };
  }
  const old =
    record !== undefined &&
    !named &&
    !own &&
    missing.length > 0 &&
    !options.followed(record.epoch, at.seenMs);
  const fetchable = furthest([
    ours,
    options.elsewhere?.() ?? {},
    ...at.living.map(({ positions }) => positions),
  ]);
  if (old && behind(fetchable, recorded).length > 0) {
    const reason = `this node was away while the previous primary wrote (${missing.join(', ')}): start one that has it`;
    return { kind: 'wait', reason, untilMs: Infinity };
  }
  if (!named) {
    // What the backups have this node can get as well as any rival, but not before one that has it.
    const isInReach = behind(furthest([ours, options.elsewhere?.() ?? {}]), recorded).length === 0;
    const defer = deference({
      node,
      ours,
      recorded: isInReach ? {} : recorded,
      rivals: at.rivals,
      formerRegion: at.formerRegion,
    });
    const waitMs = defer?.kind === 'data' ? electionWaitMs : Math.min(electionWaitMs, options.ttlMs / 10);
    if (defer && nowMs < free.atMs + waitMs) {
      return { kind: 'wait', reason: defer.reason, untilMs: free.atMs + waitMs };
    }
  }
  return { kind: 'take', reason: free.reason, complete: named, mustFetch: old };
}

/** From when on the record may be taken as it is, and why. */
function freeFrom(options: Options, at: Situation): { atMs: number; reason: string } {
  const { ttlMs, marginMs, lockDelayMs, node } = options;
  const { record, sinceMs, endedMs } = at;
  if (at.lost) {
    // Its holder may still write: the record was lost, not the holder's deadline.
    const longestMs = Math.max(ttlMs, record?.ttlMs ?? 0);
    return { atMs: sinceMs + longestMs + marginMs, reason: 'the lease record was lost' };
  }
  if (!record) return { atMs: sinceMs, reason: 'the cluster has no lease yet' };
  const { holder, handoffTo } = record;
  if (holder) {
    if (endedMs !== undefined) {
      return { atMs: Math.max(endedMs, sinceMs), reason: `the process of ${holder.nodeId} has ended` };
    }
    const silenceMs = record.ttlMs + marginMs + lockDelayMs;
    return {
      atMs: sinceMs + silenceMs,
      reason: `${holder.nodeId} was silent for ${Math.round(silenceMs)} ms`,
    };
  }
  if (handoffTo === undefined) return { atMs: sinceMs, reason: 'the previous primary gave the lease up' };
  // Who named the successor need not be polite for long: it knows that nobody else can have written.
  if (at.handedOver) return { atMs: sinceMs + ttlMs / 5, reason: `it was handed to ${handoffTo}` };
  if (handoffTo === node.nodeId) return { atMs: sinceMs, reason: 'it was handed to this node' };
  return { atMs: sinceMs + record.ttlMs, reason: `it was handed to ${handoffTo}` };
}
