import { randomUUID } from 'node:crypto';
import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Applier } from '../applier/applier.js';
import type { Capture } from '../capture/capture.js';
import { verifyFile } from '../daemon/verify-file.js';
import { KiteError, toKiteError } from '../errors.js';
import type { ControlBlock } from '../fuse/control-block.js';
import { formatPosition } from '../ltx/position.js';
import type { HaltStatus } from '../observability/node-status.js';
import type { HaltHost, HaltOf, IncomingTransaction } from '../replication/server.js';
import type { LogFileMeta } from '../store/log.js';
import type { EpochPosition } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';

/** One attempt at SQLite's write lock: between two attempts copies of the database have their turn, and HALT can end. */
const LOCK_ATTEMPT_MS = 250;
const POLL_MS = 10;

export interface HaltGrantsOptions {
  readonly ttlMs: number;
  readonly tmpDir: string;
  readonly control: ControlBlock;
  readonly applier: Applier;
  readonly capture: Capture;
  readonly onEvent: (kind: 'halted' | 'halt-ended', name: string, message: string) => void;
}

interface Grant extends HaltOf {
  readonly epoch: bigint;
  /** Settled when the lock was taken, or could not be. */
  taken: Promise<void>;
  /** Until when it lasts by our monotonic clock; counted from when a request came, so later than the replica counts. */
  deadlineMs: number;
  /** The end of what must not overlap: transactions of the replica, and letting the lock go. */
  turn: Promise<unknown>;
  ending: Promise<void> | undefined;
}

/**
 * HALT on the primary: which replica writes which database. While it does, the applier holds SQLite's write lock for it, and commits
 * each of its transactions under that lock. What is granted belongs to one epoch, one stream and a deadline; it ends with any
 * of them, and with the first transaction that does not come out as the replica said.
 */
export class HaltGrants implements HaltHost {
  readonly #options: HaltGrantsOptions;
  readonly #grants = new Map<string, Grant>();

  constructor(options: HaltGrantsOptions) {
    this.#options = options;
  }

  get ttlMs(): number {
    return this.#options.ttlMs;
  }

  /** Who writes a database; undefined: nobody (any more), or the lock for it is being waited for. */
  status(name: string): HaltStatus | undefined {
    const grant = this.#grants.get(name);
    if (!grant || grant.ending || grant.deadlineMs === Infinity) return undefined;
    const { nodeId, id, deadlineMs } = grant;
    return { nodeId, id, remainingMs: Math.max(0, deadlineMs - monotonicMs()) };
  }

  async acquire(of: HaltOf, waitMs: number): Promise<EpochPosition> {
    const limitMs = monotonicMs() + waitMs;
    const cameMs = monotonicMs();
    for (let grant; (grant = this.#grants.get(of.name)); await sleep(POLL_MS)) {
      if (grant.nodeId === of.nodeId && grant.id === of.id && !grant.ending) {
        await grant.taken;
        return await this.#renew(grant, cameMs);
      }
      if (monotonicMs() < limitMs) continue;
      throw new KiteError(
        'ERR_HALT_HELD',
        `${grant.nodeId} writes ${of.name} at the moment (HALT ${grant.id})`,
      );
    }
    const { epoch } = this.#options.control;
    this.#mustBePrimary(epoch);
    const none = Promise.resolve();
    const grant: Grant = { ...of, epoch, taken: none, deadlineMs: Infinity, turn: none, ending: undefined };
    grant.turn = grant.taken = this.#lock(grant, limitMs);
    this.#grants.set(of.name, grant);
    try {
      await grant.taken;
    } catch (error) {
      this.#grants.delete(of.name);
      throw error;
    }
    try {
      const position = await this.#renew(grant, monotonicMs());
      this.#options.onEvent('halted', of.name, `${of.nodeId} writes ${of.name} (HALT ${of.id})`);
      return position;
    } catch (error) {
      await this.#end(grant, toKiteError(error).message);
      throw error;
    }
  }

  async #lock(grant: Grant, limitMs: number): Promise<void> {
    for (;;) {
      try {
        return await this.#options.applier.halt(grant.name, LOCK_ATTEMPT_MS);
      } catch (thrown) {
        const isBusy = toKiteError(thrown).code === 'ERR_APPLIER_LOCKED';
        if (!isBusy || grant.ending || monotonicMs() >= limitMs) throw thrown;
      }
    }
  }

  async renew(of: HaltOf): Promise<EpochPosition> {
    const grant = this.#grants.get(of.name);
    if (grant?.nodeId !== of.nodeId || grant.id !== of.id) throw over(of);
    return await this.#renew(grant, monotonicMs());
  }

  async #renew(grant: Grant, cameMs: number): Promise<EpochPosition> {
    this.#check(grant);
    grant.deadlineMs = cameMs + this.ttlMs;
    this.#endAtDeadline(grant);
    return await this.#position(grant);
  }

  receive(of: HaltOf, meta: LogFileMeta): IncomingTransaction {
    const grant = this.#grants.get(of.name);
    const path = join(this.#options.tmpDir, `halt-${randomUUID()}.ltx`);
    const fd = openSync(path, 'wx', 0o600);
    let isOpen = true;
    const close = (): void => {
      if (isOpen) closeSync(fd);
      isOpen = false;
    };
    return {
      write: (data) => void writeSync(fd, data),
      commit: async () => {
        try {
          close();
          if (!grant || grant.nodeId !== of.nodeId || grant.id !== of.id) throw over(of);
          return await this.#commit(grant, path, meta);
        } finally {
          rmSync(path, { force: true });
        }
      },
      abort: () => {
        close();
        rmSync(path, { force: true });
      },
    };
  }

  #commit(grant: Grant, path: string, meta: LogFileMeta): Promise<EpochPosition> {
    return this.#inTurn(grant, async () => {
      try {
        this.#check(grant);
        const end = { txid: meta.maxTxid, checksum: meta.postApplyChecksum };
        const before = await this.#position(grant);
        if (before.txid + 1n !== meta.minTxid || before.checksum !== meta.preApplyChecksum) {
          throw new KiteError(
            'ERR_HALT_ENDED',
            `TXID ${meta.minTxid} of ${grant.nodeId} does not follow ${formatPosition(before)}`,
          );
        }
        await verifyFile(path, meta);
        // The last look before it becomes true here. The mount looks again, at the write and before its answer.
        this.#check(grant);
        await this.#options.applier.haltWrite(grant.name, path);
        const after = await this.#position(grant);
        if (after.txid !== end.txid || after.checksum !== end.checksum) {
          throw new KiteError(
            'ERR_HALT_ENDED',
            `${grant.name} is at ${formatPosition(after)} here and at ${formatPosition(end)} on ${grant.nodeId}`,
          );
        }
        return after;
      } catch (thrown) {
        // Not awaited: it comes after this turn.
        void this.#end(grant, toKiteError(thrown).message);
        throw thrown;
      }
    });
  }

  /** Also of one that is over already. */
  async release(of: HaltOf): Promise<void> {
    const grant = this.#grants.get(of.name);
    if (grant?.nodeId === of.nodeId && grant.id === of.id) await this.#end(grant, 'it is done');
  }

  /** The stream of a node ended: whether it will be heard of again is not known. */
  disconnected(nodeId: string): void {
    for (const grant of this.#grants.values()) {
      if (grant.nodeId === nodeId) void this.#end(grant, `${nodeId} is not connected any more`);
    }
  }

  /** Resolves when no lock is held for a replica any more. */
  async endAll(reason: string): Promise<void> {
    await Promise.all([...this.#grants.values()].map((grant) => this.#end(grant, reason)));
  }

  #endAtDeadline(grant: Grant): void {
    const { deadlineMs } = grant;
    const late = setTimeout(() => {
      // Renewed meanwhile: then another timer runs.
      if (grant.deadlineMs === deadlineMs)
        void this.#end(grant, `it was not renewed within ${this.ttlMs} ms`);
    }, deadlineMs - monotonicMs());
    late.unref();
  }

  #end(grant: Grant, reason: string): Promise<void> {
    grant.ending ??= this.#inTurn(grant, async () => {
      // A lock that cannot be let go of belongs to a process that is being replaced.
      await this.#options.applier.unhalt(grant.name).catch(() => undefined);
      if (this.#grants.get(grant.name) === grant) this.#grants.delete(grant.name);
      const { onEvent } = this.#options;
      onEvent('halt-ended', grant.name, `${grant.nodeId} does not write ${grant.name} any more: ${reason}`);
    });
    return grant.ending;
  }

  #inTurn<T>(grant: Grant, work: () => Promise<T>): Promise<T> {
    const turn = grant.turn.catch(() => undefined).then(work);
    grant.turn = turn.catch(() => undefined);
    return turn;
  }

  #check(grant: Grant): void {
    if (grant.ending || monotonicMs() >= grant.deadlineMs) throw over(grant);
    this.#mustBePrimary(grant.epoch);
  }

  #mustBePrimary(epoch: bigint): void {
    const { control } = this.#options;
    if (control.mayWrite() && control.epoch === epoch) return;
    throw new KiteError('ERR_DAEMON_NOT_PRIMARY', 'the node is not the primary, or may not write now');
  }

  /** Where the database is with everything that the mount has let pass. */
  async #position({ name }: HaltOf): Promise<EpochPosition> {
    const position = await this.#options.capture.position(name);
    if (position) return position;
    throw new KiteError('ERR_HALT_ENDED', `${name} is not captured on the primary`);
  }
}

const over = ({ name, id }: HaltOf): KiteError =>
  new KiteError('ERR_HALT_ENDED', `HALT ${id} of ${name} is over`);
