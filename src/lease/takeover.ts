import { behind, deference } from './election.js';
import type { LeaseMachineOptions } from './protocol.js';
import type { LeaseRecord, Member } from './types.js';

/** What a candidate knows when it asks whether it may take the lease. */
export interface Situation {
  readonly record: LeaseRecord | undefined;
  /** Since when, by our clock, we have watched the record unchanged. */
  readonly sinceMs: number;
  /** Nobody has ever seen an epoch. */
  readonly virgin: boolean;
  /** When we learnt that the holder's process has ended, if we did. */
  readonly endedMs: number | undefined;
  /** Reasons of this node's own to hold back. */
  readonly holdBack: readonly { readonly untilMs: number; readonly reason: string }[];
  /** Live candidates apart from this node and the holder. */
  readonly rivals: readonly Member[];
  readonly formerRegion: string | undefined;
}

export type Verdict =
  /** `behind`: databases of which the previous primary had more. */
  | { readonly kind: 'take'; readonly reason: string; readonly behind: readonly string[] }
  /** The lease is free, or will be at a known time, but not for us yet. */
  | { readonly kind: 'wait'; readonly reason: string; readonly untilMs: number }
  /** It has a holder that is not silent for long enough. */
  | { readonly kind: 'held'; readonly untilMs: number };

type Options = Pick<
  LeaseMachineOptions,
  'node' | 'ttlMs' | 'marginMs' | 'lockDelayMs' | 'electionWaitMs' | 'positions'
>;

/** Whether a candidate may take the lease now. */
export function takeover(nowMs: number, options: Options, at: Situation): Verdict {
  const { record } = at;
  const { node, electionWaitMs } = options;
  const free = freeFrom(options, at);
  if (nowMs < free.atMs) {
    const untilMs = free.atMs;
    return record?.holder ? { kind: 'held', untilMs } : { kind: 'wait', reason: free.reason, untilMs };
  }
  const holdBack = at.holdBack.find((one) => nowMs < one.untilMs);
  if (holdBack) return { kind: 'wait', ...holdBack };
  if (record && record.syncSet.length > 0 && !record.syncSet.includes(node.nodeId)) {
    const reason = 'only a member of the sync set may win: this node may lack acknowledged data';
    return { kind: 'wait', reason, untilMs: Infinity };
  }
  const ours = options.positions();
  const recorded = record?.positions ?? {};
  // The target of a hand-off was chosen by the primary, which knew its position exactly.
  if (record?.handoffTo !== node.nodeId) {
    const defer = deference({ node, ours, recorded, rivals: at.rivals, formerRegion: at.formerRegion });
    const waitMs = defer?.kind === 'data' ? electionWaitMs : Math.min(electionWaitMs, options.ttlMs / 10);
    if (defer && nowMs < free.atMs + waitMs) {
      return { kind: 'wait', reason: defer.reason, untilMs: free.atMs + waitMs };
    }
  }
  return { kind: 'take', reason: free.reason, behind: behind(ours, recorded) };
}

/** From when on the record may be taken as it is, and why. */
function freeFrom(options: Options, at: Situation): { atMs: number; reason: string } {
  const { ttlMs, marginMs, lockDelayMs, node } = options;
  const { record, sinceMs, endedMs } = at;
  if (!record) {
    if (at.virgin) return { atMs: sinceMs, reason: 'the cluster has no lease yet' };
    // Its holder may still write: the record was lost, not the holder's deadline.
    return { atMs: sinceMs + ttlMs + marginMs, reason: 'the lease record is missing' };
  }
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
  if (handoffTo === node.nodeId) return { atMs: sinceMs, reason: 'it was handed to this node' };
  return { atMs: sinceMs + record.ttlMs, reason: `it was handed to ${handoffTo}` };
}
