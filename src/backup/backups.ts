import type { ChildProcess } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { KiteError, toKiteError, type ErrorCode } from '../errors.js';
import type { Position } from '../ltx/position.js';
import { formatTxid } from '../ltx/position.js';
import type { Logger } from '../observability/log.js';
import type { BackupStatus } from '../observability/node-status.js';
import type { LogHold } from '../store/log.js';
import { monotonicMs } from '../util/clock.js';
import type { BackupSource } from './database-backup.js';
import type { Writer } from './head.js';
import type { BackupQuestions, BackupSettings, FromBackup, ToBackup } from './messages.js';
import { describeDestination } from './open.js';
import { forkChild, logErrors } from '../util/fork-child.js';

const MAIN = fileURLToPath(new URL('./main.js', import.meta.url));
/** Growth of logs is told so often, whatever the number of commits. */
const TELL_MS = 20;
const WEDGED_AFTER_MS = 60_000;
const LONGEST_RESTART_MS = 10_000;
/** The age of what is not shipped is known to this. */
const SAMPLE_MS = 250;

/** What backups need of the node's logs. */
export interface BackupLogs extends Omit<BackupSource, 'filesPerRead'> {
  /** Also those that were dropped. */
  logEnds(): ReadonlyMap<string, Position>;
  hold(name: string, afterTxid: bigint): LogHold;
}

export interface BackupsOptions {
  readonly backups: readonly BackupSettings[];
  readonly dataDir: string;
  readonly tmpDir: string;
  readonly logs: BackupLogs;
  readonly logger: Logger;
  readonly onEvent: (event: {
    readonly kind: string;
    readonly message: string;
    readonly name?: string | undefined;
    readonly level: 'info' | 'warn' | 'error';
  }) => void;
  readonly onPut: (type: string, name: string, sizeBytes: number) => void;
  readonly onError: (type: string) => void;
  /** The first destination has more of a database, or takes nothing more of it. */
  readonly onShipped: (name: string) => void;
  readonly onRestart: () => void;
}

/** A database as the daemon sees its backups. */
interface Tracked {
  hold: LogHold | undefined;
  /** Ends of the log and when each was seen first, oldest first: what is not everywhere yet. */
  readonly seen: { readonly txid: bigint; readonly atMs: number }[];
  /** By destination. */
  readonly shipped: (bigint | undefined)[];
  readonly level0: bigint[];
  readonly errors: (string | undefined)[];
}

/** Loud ones; the others are for the log only. */
const EVENT_LEVELS: Readonly<Record<string, 'info' | 'warn'>> = {
  resync: 'warn',
  superseded: 'warn',
  hole: 'warn',
  dropped: 'info',
};

/**
 * The daemon's side of backups. What is heavy or may hang (clients of object stores, merging, uploads) is in a child process of low
 * priority, which reads LTX files from the log by their names; killed or silent, it is started again, and finds in the bucket
 * where it was. Here: which files it still needs (held against retention by age, not by size), how far it is, and who is told.
 */
export class Backups {
  readonly #o: BackupsOptions;
  readonly #tracked = new Map<string, Tracked>();
  readonly #moved = new Set<string>();
  readonly #troubles: (string | undefined)[];
  readonly #copies = new Set<string>();
  readonly #waiters = new Set<() => void>();
  /** By destination: a higher epoch writes there. */
  readonly #fencedBy: boolean[];
  #child: ChildProcess | undefined;
  #writer: Writer | undefined;
  #leaseUntilMs = 0;
  #tell: NodeJS.Timeout | undefined;
  #restart: NodeJS.Timeout | undefined;
  #watch: NodeJS.Timeout | undefined;
  #heardMs = 0;
  #restartMs = 0;
  #stopped = false;

  private constructor(options: BackupsOptions) {
    this.#o = options;
    this.#troubles = options.backups.map(() => undefined);
    this.#fencedBy = options.backups.map(() => false);
  }

  static start(options: BackupsOptions): Backups {
    const backups = new Backups(options);
    backups.#spawn();
    return backups;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** This node is the primary of an epoch: its databases are shipped. */
  primary(writer: Writer, leaseUntilMs: number): void {
    this.#writer = writer;
    this.#release();
    this.#troubles.fill(undefined);
    this.#fencedBy.fill(false);
    for (const [name, end] of this.#o.logs.logEnds()) this.#note(name, end.txid);
    this.renewed(leaseUntilMs);
    this.#sendPrimary();
  }

  renewed(leaseUntilMs: number): void {
    this.#leaseUntilMs = leaseUntilMs;
    this.#send({ kind: 'lease', untilMs: leaseUntilMs });
  }

  /** This node is not the primary any more: another one goes on. */
  fenced(): void {
    if (!this.#writer) return;
    this.#writer = undefined;
    this.#release();
    this.#send({ kind: 'stop' });
  }

  /** The log of a database has grown. */
  logged(name: string, txid: bigint): void {
    if (!this.#writer) return;
    this.#note(name, txid);
    this.#moved.add(name);
    this.#tell ??= setTimeout(() => {
      this.#tell = undefined;
      this.#send({ kind: 'moved', names: [...this.#moved] });
      this.#moved.clear();
    }, TELL_MS);
  }

  /** Up to where the first destination has a database, in TXIDs of this node's log. */
  shipped(name: string): bigint | undefined {
    return this.#tracked.get(name)?.shipped[0];
  }

  /** Whether a higher epoch writes to the first destination. */
  get isFenced(): boolean {
    return this.#fencedBy[0] ?? false;
  }

  /** A commit of this database waits for the first destination: it goes at once. */
  hurry(name: string): void {
    this.#send({ kind: 'urgent', name });
  }

  /**
   * Resolves when every destination has what the logs hold now (of one database, or of all); rejects with what stands in the way
   * when that takes longer.
   */
  async sync(timeoutMs: number, only?: string): Promise<void> {
    if (!this.#writer) throw new KiteError('ERR_DAEMON_NOT_PRIMARY', 'only the primary ships backups');
    const goals = [...this.#o.logs.logEnds()].filter(([name]) => only === undefined || name === only);
    const limitMs = monotonicMs() + timeoutMs;
    this.#send({ kind: 'moved', names: goals.map(([name]) => name) });
    for (;;) {
      this.#send({ kind: 'hurry' });
      const behind = goals.flatMap(([name, { txid }]) =>
        this.#o.backups.flatMap((_, i) =>
          (this.#tracked.get(name)?.shipped[i] ?? -1n) >= txid ? [] : { name, i },
        ),
      );
      const [first] = behind;
      if (!first) return;
      const leftMs = limitMs - monotonicMs();
      if (leftMs <= 0 || !this.#writer) {
        const why =
          this.#troubles[first.i] ?? this.#tracked.get(first.name)?.errors[first.i] ?? 'it takes longer';
        const url = describeDestination(this.#o.backups[first.i]!.destination);
        throw new KiteError('ERR_BACKUP_BEHIND', `${url} does not have all of ${first.name} yet: ${why}`);
      }
      await this.#progress(Math.min(leftMs, 1000));
    }
  }

  status(): readonly BackupStatus[] {
    const nowMs = monotonicMs();
    return this.#o.backups.map(({ destination }, i) => ({
      url: describeDestination(destination),
      type: destination.type,
      error: this.#troubles[i],
      databases: this.#writer
        ? [...this.#tracked].map(([name, { shipped, level0, seen, errors }]) => ({
            name,
            txid: formatTxid(shipped[i] ?? 0n),
            level0: formatTxid(level0[i] ?? 0n),
            lagMs: Math.round(nowMs - (seen.find(({ txid }) => txid > (shipped[i] ?? -1n))?.atMs ?? nowMs)),
            error: errors[i],
          }))
        : [],
    }));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#release();
    clearTimeout(this.#tell);
    clearTimeout(this.#restart);
    clearInterval(this.#watch);
    // It has nothing to lose: what was half uploaded is no object.
    this.#child?.kill('SIGKILL');
    this.#child = undefined;
    await this.#removeCopies();
  }

  // --- the child

  #spawn(): void {
    const child = forkChild(MAIN);
    this.#child = child;
    this.#heardMs = monotonicMs();
    logErrors(child, 'backup', this.#o.logger);
    child.on('message', (message) => {
      if (child === this.#child) this.#heard(message as FromBackup);
    });
    child.on('error', (error) => this.#o.logger.error({ err: error }, 'the backup process has trouble'));
    child.once('exit', (code, signal) => {
      if (child === this.#child) this.#died(signal ?? `exit code ${code}`);
    });
    const { backups, dataDir, tmpDir } = this.#o;
    // By the channel, not by arguments or the environment: others can read those, and there are secrets in it.
    this.#send({ kind: 'start', backups, dataDir, tmpDir });
    this.renewed(this.#leaseUntilMs);
    this.#sendPrimary();
    clearInterval(this.#watch);
    this.#watch = setInterval(() => {
      if (monotonicMs() - this.#heardMs < WEDGED_AFTER_MS) return;
      this.#o.logger.error('the backup process is silent: it is killed');
      child.kill('SIGKILL');
    }, 1000);
    this.#watch.unref();
  }

  #died(how: string): void {
    if (this.#stopped) return;
    this.#child = undefined;
    this.#o.onRestart();
    this.#o.logger.warn({ how }, 'the backup process ended: another is started');
    this.#removeCopies().catch(() => undefined);
    this.#restartMs = Math.min(LONGEST_RESTART_MS, Math.max(100, this.#restartMs * 2));
    this.#restart = setTimeout(() => this.#spawn(), this.#restartMs);
  }

  #sendPrimary(): void {
    if (!this.#writer) return;
    this.#send({ kind: 'primary', writer: this.#writer, names: [...this.#o.logs.logEnds().keys()] });
  }

  #send(message: ToBackup): void {
    // One that has just died shows by its `exit`; another is told all of this anew.
    this.#child?.send(message, () => {});
  }

  #heard(message: FromBackup): void {
    this.#heardMs = monotonicMs();
    switch (message.kind) {
      case 'ask':
        this.#answer(message.id, message.op, message.args).catch((error: unknown) =>
          this.#o.logger.error({ err: error }, 'the backup process got no answer'),
        );
        break;
      case 'shipped':
        this.#shipped(message.destination, message.name, message.progress);
        break;
      case 'trouble':
        this.#trouble(message.destination, message.name, message.code, message.message);
        break;
      case 'event': {
        const level = EVENT_LEVELS[message.event];
        const { name, event, message: text } = message;
        if (level) this.#o.onEvent({ kind: `backup-${event}`, name, message: text, level });
        else this.#o.logger.debug({ database: name }, text);
        break;
      }
      case 'put':
        this.#o.onPut(
          this.#o.backups[message.destination]!.destination.type,
          message.name,
          message.sizeBytes,
        );
        break;
      default:
    }
  }

  async #answer<K extends keyof BackupQuestions>(
    id: number,
    op: K,
    args: BackupQuestions[K][0],
  ): Promise<void> {
    const child = this.#child;
    const { logs } = this.#o;
    try {
      const { name, position } = args as { name: string; position: Position };
      let value: unknown;
      if (op === 'filesAfter') value = await logs.filesAfter(name, position);
      else if (op === 'contains') value = await logs.contains(name, position);
      else {
        const copy = await logs.copy(name);
        if (copy && 'path' in copy) this.#copies.add(copy.path);
        value = copy;
        // Who asked is gone: nobody else would remove it.
        if (child !== this.#child) await this.#removeCopies();
      }
      if (child === this.#child) this.#send({ kind: 'answer', id, value });
    } catch (thrown) {
      const { code, message } = toKiteError(thrown);
      if (child === this.#child) this.#send({ kind: 'refused', id, code, message });
    }
  }

  async #removeCopies(): Promise<void> {
    const copies = [...this.#copies];
    this.#copies.clear();
    for (const path of copies) await rm(path, { force: true });
  }

  // --- how far it is

  #note(name: string, txid: bigint): void {
    let tracked = this.#tracked.get(name);
    if (!tracked) {
      const { backups, logs } = this.#o;
      tracked = {
        // From here on nothing that is not shipped goes by its age; how far the bucket is, the child finds out.
        hold: logs.hold(name, 0n),
        seen: [],
        shipped: backups.map(() => undefined),
        level0: backups.map(() => 0n),
        errors: backups.map(() => undefined),
      };
      this.#tracked.set(name, tracked);
    }
    const nowMs = monotonicMs();
    const last = tracked.seen.at(-1);
    if (last && last.txid >= txid) return;
    // Of commits that come close together the first one's time and the last one's TXID: then the age is never too small.
    const before = tracked.seen.at(-2);
    const joined = last && before && nowMs - before.atMs < SAMPLE_MS ? last : undefined;
    if (joined) tracked.seen.pop();
    tracked.seen.push({ txid, atMs: joined?.atMs ?? nowMs });
  }

  #shipped(destination: number, name: string, progress: { txid: bigint; level0: bigint }): void {
    const tracked = this.#tracked.get(name);
    if (!tracked || !this.#writer) return;
    this.#restartMs = 0;
    tracked.shipped[destination] = progress.txid;
    tracked.level0[destination] = progress.level0;
    tracked.errors[destination] = undefined;
    const everywhere = tracked.shipped.reduce((least, txid) =>
      (txid ?? -1n) < (least ?? -1n) ? txid : least,
    );
    if (everywhere !== undefined) {
      tracked.hold?.move(everywhere);
      while (tracked.seen[0] && tracked.seen[0].txid <= everywhere) tracked.seen.shift();
    }
    for (const wake of this.#waiters) wake();
    if (destination === 0) this.#o.onShipped(name);
  }

  #trouble(
    destination: number,
    name: string | undefined,
    code: ErrorCode | undefined,
    message: string | undefined,
  ): void {
    const errors = name === undefined ? this.#troubles : this.#tracked.get(name)?.errors;
    const { type } = this.#o.backups[destination]!.destination;
    if (message !== undefined) this.#o.onError(type);
    if (code === 'ERR_BACKUP_FENCED') {
      this.#fencedBy[destination] = true;
      for (const tracked of this.#tracked.keys()) this.#o.onShipped(tracked);
    }
    const before = errors?.[destination];
    if (errors) errors[destination] = message;
    // Said once, not at each attempt.
    if (message !== undefined && before === undefined) {
      this.#o.onEvent({
        kind: code === 'ERR_BACKUP_FENCED' ? 'backup-fenced' : 'backup-failed',
        name,
        message,
        level: 'error',
      });
    }
    if (message === undefined && before !== undefined) {
      this.#o.onEvent({
        kind: 'backup-restored',
        name,
        message: 'the destination takes backups again',
        level: 'info',
      });
    }
    for (const wake of this.#waiters) wake();
  }

  #progress(limitMs: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#waiters.delete(done);
        resolve();
      };
      const timer = setTimeout(done, limitMs);
      this.#waiters.add(done);
    });
  }

  #release(): void {
    for (const { hold } of this.#tracked.values()) hold?.release();
    this.#tracked.clear();
    this.#moved.clear();
  }
}
