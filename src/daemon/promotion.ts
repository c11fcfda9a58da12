import { setTimeout as sleep } from 'node:timers/promises';
import type { Config } from '../config/load.js';
import { KiteError, toKiteError } from '../errors.js';
import type { Lease } from '../lease/lease.js';
import type { LeaseHolder } from '../lease/types.js';
import type { NodeRole } from '../observability/node-status.js';
import { monotonicMs } from '../util/clock.js';
import type { EventLog } from './event-log.js';
import { HAND_OFF_WAIT_MS } from './hand-off.js';
import type { RoleSwitch } from './role.js';

/** What a hand-off takes at most beside the waits that were asked for, the change of role on both nodes included. */
const HAND_OFF_LIMIT_MS = 15_000;
/** How long the permission to lose something lasts at least: not for another failure some day. */
const LOSS_ACCEPTED_MS = 60_000;
const POLL_MS = 5;
const FIRST_RETRY_MS = 1000;
const RETRY_MS_MAX = 30_000;

export interface PromotionParts {
  readonly config: Config;
  readonly lease: Lease;
  readonly roles: RoleSwitch;
  readonly events: EventLog;
  readonly role: () => NodeRole;
  /** The primary as far as this node knows. */
  readonly holder: () => LeaseHolder | undefined;
}

/** This node wants to be primary: because somebody says so, or because `lease.promote` does. */
export class Promotion {
  readonly #parts: PromotionParts;
  #lossAcceptedUntilMs = -Infinity;

  constructor(parts: PromotionParts) {
    this.#parts = parts;
  }

  /**
   * Resolves when this node is the primary: at once when it is, else by a hand-off from the primary. With `acceptLoss`,
   * where there is no primary, also with data that is known to be older than the last primary's. Rejects with
   * ERR_LEASE_NOT_CANDIDATE, ERR_LEASE_HANDOFF.
   */
  async promote({ waitMs, acceptLoss }: { waitMs: number; acceptLoss: boolean }): Promise<void> {
    const { config, lease, roles, role, holder } = this.#parts;
    if (role() === 'primary') return;
    if (config.lease.type === 'static') {
      throw new KiteError(
        'ERR_LEASE_HANDOFF',
        'with lease.type static the configuration says who is primary',
      );
    }
    if (!config.lease.candidate) {
      throw new KiteError(
        'ERR_LEASE_NOT_CANDIDATE',
        'this node can never be primary: lease.candidate is false',
      );
    }
    // A dead primary must have been silent for its ttl whatever is accepted: two primaries are not.
    const lossMs = acceptLoss ? LOSS_ACCEPTED_MS + 2 * config.lease.ttlMs : 0;
    if (acceptLoss) this.#lossAcceptedUntilMs = monotonicMs() + lossMs;
    if (acceptLoss) lease.acceptLoss(lossMs);
    let refused: KiteError | undefined;
    const asked = roles.client?.status().connected ? roles.client : undefined;
    // Best done before writers wait for it; a promotion that lacks it only takes longer.
    if (asked) await roles.prepare().catch(() => undefined);
    asked?.requestHandOff(waitMs, (why) => (refused = why));
    const primary = holder();
    if (!asked && primary && !acceptLoss) {
      throw new KiteError('ERR_LEASE_HANDOFF', `this node is not connected to the primary ${primary.nodeId}`);
    }
    const limitMs = monotonicMs() + 2 * waitMs + HAND_OFF_LIMIT_MS + lossMs;
    // `role` is what the lease has decided, so nothing can be missed between two looks.
    for (; role() !== 'primary'; await sleep(POLL_MS)) {
      if (refused) throw refused;
      if (role() === 'closed') throw new KiteError('ERR_LEASE_HANDOFF', 'this node stops');
      if (monotonicMs() < limitMs) continue;
      const why = asked ? `${primary?.nodeId ?? 'the primary'} did not answer` : lease.waitingFor;
      throw new KiteError('ERR_LEASE_HANDOFF', `this node did not become primary in time: ${why}`);
    }
    await roles.settled();
  }

  /** Whether a person has said so a moment ago: what this node may lack is given up. */
  get lossAccepted(): boolean {
    return monotonicMs() < this.#lossAcceptedUntilMs;
  }

  /**
   * `lease.promote`: asks once this node is up, and again, less and less often, until it was primary once. The first
   * attempt is waited for, so that an application started after it meets the primary.
   */
  async atStart(signal: AbortSignal): Promise<void> {
    if (!(await this.#attempt())) void this.#retry(signal);
  }

  async #retry(signal: AbortSignal): Promise<void> {
    for (let pauseMs = FIRST_RETRY_MS; ; pauseMs = Math.min(RETRY_MS_MAX, 2 * pauseMs)) {
      await sleep(pauseMs, undefined, { signal, ref: false }).catch(() => undefined);
      if (signal.aborted || (await this.#attempt())) return;
    }
  }

  async #attempt(): Promise<boolean> {
    try {
      await this.promote({ waitMs: HAND_OFF_WAIT_MS, acceptLoss: false });
      return true;
    } catch (thrown) {
      this.#parts.events.add('promote-failed', `lease.promote: ${toKiteError(thrown).message}`, {
        level: 'warn',
      });
      return false;
    }
  }
}
