import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

import { KiteError } from '../errors.js';
import type { Logger } from '../observability/log.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import type {
  AppliedChecksums,
  AppliedDatabase,
  ApplierCall,
  ApplierCalls,
  ApplierEvent,
  FromApplier,
  JournalMode,
  ToApplier,
  Unlocked,
} from './messages.js';
import { SMALL_YOUNG_GENERATION_FLAG } from '../util/young-generation.js';
import { forkChild, logErrors } from '../util/fork-child.js';

export interface ApplierOptions {
  readonly mountDir: string;
  readonly dataDir: string;
  /** How much the full check behind an open may read per second; left out: it is not made. */
  readonly checkBytesPerSecond?: number;
  readonly logger: Logger;
  /**
   * Tells the mount that the next open of each of these files (names in the mount, `app.db-wal`…) with
   * O_SYNC and O_RDWR is the applier's. Left out where there is no mount, or where it goes by the pid: O_SYNC
   * costs an fsync per write.
   */
  readonly arm?: (names: readonly string[]) => Promise<void>;
  readonly onEvent?: (event: ApplierEvent) => void;
  /** A new process serves in place of one that died: nothing is open in it. `open` what was. */
  readonly onRestart?: (pid: number) => void;
  /** Each process that is started, the first one too; no call is made before this has resolved. The kernel driver knows the applier by its pid. */
  readonly onStart?: (pid: number) => Promise<void> | void;
  /** Silence, while calls wait, after which the process counts as wedged. Milliseconds. */
  readonly wedgedAfterMs?: number;
}

interface Waiting {
  readonly resolve: (value: never) => void;
  readonly reject: (error: KiteError) => void;
}

const MAIN = fileURLToPath(new URL('./main.js', import.meta.url));
const STOP_LIMIT_MS = 10_000;

/**
 * The child process that works through the mount, as the main process sees it (DESIGN §3, §6). Databases
 * are independent: a call that has to wait for one holds up none of another. When the process dies or no
 * longer answers, every call that waits rejects with ERR_APPLIER_RESTARTED and another process is
 * started; calls may be repeated as they are, after `open`.
 */
export class Applier {
  readonly #options: ApplierOptions;
  readonly #waiting = new Map<number, Waiting>();
  #child: ChildProcess | undefined;
  #nextId = 1;
  #lastHeardMs = 0;
  #stopping = false;
  #watch: NodeJS.Timeout | undefined;
  #restartDelayMs = 0;
  /** Calls made while no process serves wait for the next one. */
  #ready: Promise<void> = Promise.resolve();

  private constructor(options: ApplierOptions) {
    this.#options = options;
  }

  /** Resolves when the process answers. */
  static async start(options: ApplierOptions): Promise<Applier> {
    const applier = new Applier(options);
    applier.#spawn();
    await applier.#ready;
    return applier;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /**
   * Serves a database on a replica: opens it, in WAL mode whatever the primary's mode is, and finds where
   * it stands in the log. A database that does not exist is at TXID 0. Rejects with ERR_APPLIER_DIVERGED
   * when its bytes are those of no position of the log: it needs a resync, a snapshot may be applied at once. Open
   * already: it is placed in the log as that is now, which may have been replaced by a difference.
   */
  open(name: string): Promise<AppliedDatabase> {
    return this.#call('open', { name });
  }

  /**
   * Applies log files in order; resolves when readers see the last. May be called again before: files
   * that queue up are applied several in one transaction. Rejects with ERR_APPLIER_DIVERGED when a file does
   * not follow, ERR_LTX_DAMAGED when it is damaged, ERR_APPLIER_IO when the database cannot be written.
   */
  apply(name: string, files: readonly LogFile[]): Promise<AppliedDatabase> {
    return this.#call('apply', { name, files });
  }

  /**
   * Page checksums of `count` pages from `firstPgno` on, while nothing is applied. Where the bytes are at no position of the
   * log all pages are read for it. Undefined when there is no database, or SQLite cannot open it.
   */
  checksums(name: string, firstPgno: number, count: number): Promise<AppliedChecksums | undefined> {
    return this.#call('checksums', { name, firstPgno, count });
  }

  /** Writes what the database holds now to `path` as a snapshot LTX, while nothing is applied. */
  keep(name: string, path: string): Promise<void> {
    return this.#call('keep', { name, path });
  }

  /**
   * Ends what `open` started (a promotion needs that, trap 18): checksums flushed with their position, and
   * SQLite's WAL checkpointed when nobody else has the database open. Returns the position; undefined when
   * it was not open.
   */
  close(name: string): Promise<EpochPosition | undefined> {
    return this.#call('close', { name });
  }

  /**
   * The first part of `closeAll`, for a node that becomes the primary: when it resolves capture may have the databases. The
   * connections, whose end is a checkpoint, stay until `closeLetGo`.
   */
  letGoAll(): Promise<void> {
    return this.#call('letGoAll', {});
  }

  /** Closes the connections that `letGoAll` has left. */
  closeLetGo(): Promise<void> {
    return this.#call('closeLetGo', {});
  }

  closeAll(): Promise<void> {
    return this.#call('closeAll', {});
  }

  /** Does now, while everything goes on, what a `letGoAll` soon after would keep writers waiting for: checkpoints and fsyncs. */
  settleAll(): Promise<void> {
    return this.#call('settleAll', {});
  }

  /**
   * Lets SQLite roll back a hot journal or recover the WAL, at the path applications use (trap 6), and leaves
   * the WAL as it is. To be called when capture has read the WAL (trap 7), before the mount opens.
   */
  recover(name: string): Promise<void> {
    return this.#call('recover', { name });
  }

  /**
   * On a new primary: makes the journal mode real, with a transaction of its own that capture sees. `delete`
   * falls back to `wal` while applications have the database open. Returns the mode in force.
   */
  makeJournalMode(name: string, mode: JournalMode): Promise<JournalMode> {
    return this.#call('makeJournalMode', { name, mode });
  }

  /**
   * Takes SQLite's write lock on each of these databases on the primary, so that writers see BUSY. Returns those whose
   * lock was not had in time; the others stay locked until `unlock`.
   */
  lockForHandOff(names: readonly string[], timeoutMs: number): Promise<readonly Unlocked[]> {
    return this.#call('lock', { names, timeoutMs });
  }

  unlock(): Promise<void> {
    return this.#call('unlock', {});
  }

  /**
   * Takes SQLite's write lock on a database of the primary for a replica that writes it (HALT), until `unhalt`. Rejects with
   * ERR_APPLIER_LOCKED when it is not had in time, ERR_HALT_JOURNAL_MODE when the database is not in WAL mode.
   */
  halt(name: string, timeoutMs: number): Promise<void> {
    return this.#call('halt', { name, timeoutMs });
  }

  /** Commits the transaction in a verified LTX file under that lock, durably. Rejects with ERR_HALT_ENDED without the lock. */
  haltWrite(name: string, path: string): Promise<void> {
    return this.#call('haltWrite', { name, path });
  }

  unhalt(name: string): Promise<void> {
    return this.#call('unhalt', { name });
  }

  /** A consistent copy at `path` (replaced), made while others read and write. */
  export(name: string, path: string): Promise<void> {
    return this.#call('export', { name, path });
  }

  /** On the primary: replaces the database by the file at `path` in one SQLite transaction, or creates it. */
  import(name: string, path: string): Promise<void> {
    return this.#call('import', { name, path });
  }

  /** Removes the database from the mount. On a replica its readers see an empty database first (trap 25). */
  drop(name: string): Promise<void> {
    return this.#call('drop', { name });
  }

  /** On the primary: removes a database that is out of service, as `rm` in the mount does. */
  remove(name: string): Promise<void> {
    return this.#call('remove', { name });
  }

  /** Reads up to `sizeBytes` of a database's `-wal`, so that the kernel has its pages (see read-wal.ts). */
  readWal(name: string, sizeBytes: number): Promise<void> {
    return this.#call('readWal', { name, sizeBytes });
  }

  /** Closes all databases and ends the process; kills it when that takes longer than 10 s. */
  async stop(): Promise<void> {
    if (this.#stopping) return;
    // Before `#stopping`, which refuses calls: this one keeps the page checksums, without which the next start reads
    // every page.
    const limit = new Promise((resolve) => setTimeout(resolve, STOP_LIMIT_MS).unref());
    await Promise.race([this.closeAll().catch(() => {}), limit]);
    this.#stopping = true;
    clearInterval(this.#watch);
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    // One that is stuck in a request to a mount that answers no more ends when the mount does.
    await Promise.race([exited, new Promise((resolve) => setTimeout(resolve, 1000).unref())]);
  }

  async #call<K extends keyof ApplierCalls>(op: K, args: ApplierCalls[K][0]): Promise<ApplierCalls[K][1]> {
    for (let ready; ready !== this.#ready;) {
      ready = this.#ready;
      await ready;
    }
    if (this.#stopping) throw new KiteError('ERR_APPLIER_RESTARTED', `${op}: the applier was stopped`);
    const id = this.#nextId++;
    // Silence is counted from the first call that waits, not from the last answer of an idle process.
    if (this.#waiting.size === 0) this.#lastHeardMs = monotonicMs();
    return await new Promise<ApplierCalls[K][1]>((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#send({ id, op, args } as ApplierCall);
    });
  }

  #spawn(): void {
    const { mountDir, dataDir, onStart } = this.#options;
    const checkRate = String(this.#options.checkBytesPerSecond ?? 0);
    const child = forkChild(MAIN, {
      args: [mountDir, dataDir, this.#options.arm ? 'armed' : 'plain', checkRate],
      execArgv: [SMALL_YOUNG_GENERATION_FLAG],
    });
    this.#child = child;
    logErrors(child, 'applier', this.#options.logger);
    const begun = new Promise<void>((resolve) => {
      child.on('message', (message) => {
        const said = message as FromApplier;
        if (said.kind === 'ready') resolve();
        this.#heard(child, said);
      });
      // Then the next process is what is waited for (see #call).
      child.once('exit', () => resolve());
    });
    const known = child.pid === undefined ? undefined : onStart?.(child.pid);
    this.#ready = Promise.all([begun, known]).then(() => {});
    // Whoever calls is told; nobody may be calling yet.
    this.#ready.catch((error: unknown) =>
      this.#options.logger.error({ err: error }, 'the mount does not know the applier'),
    );
    child.on('error', (error) => this.#options.logger.error({ err: error }, 'the applier has trouble'));
    child.once('exit', (code, signal) => this.#died(signal ?? `exit code ${code}`));
    this.#lastHeardMs = monotonicMs();
    clearInterval(this.#watch);
    this.#watch = setInterval(() => this.#killWhenWedged(child), 1000);
    this.#watch.unref();
  }

  #died(how: string): void {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    this.#child = undefined;
    if (!this.#stopping) {
      this.#options.logger.warn({ how, calls: waiting.length }, 'the applier ended: another is started');
      // A process that ends at once must not be started in a tight loop; one that served a while is replaced now.
      this.#restartDelayMs = this.#restartDelayMs === 0 ? 50 : Math.min(5000, this.#restartDelayMs * 2);
      const delayMs = this.#restartDelayMs;
      this.#ready = new Promise((resolve) => {
        setTimeout(() => {
          if (this.#stopping) return resolve();
          this.#spawn();
          const pid = this.#child?.pid;
          if (pid !== undefined) this.#ready.then(() => this.#options.onRestart?.(pid)).catch(() => {});
          resolve();
        }, delayMs);
      });
    }
    for (const call of waiting)
      call.reject(new KiteError('ERR_APPLIER_RESTARTED', `the applier ended (${how})`));
  }

  #killWhenWedged(child: ChildProcess): void {
    const silentMs = monotonicMs() - this.#lastHeardMs;
    if (this.#waiting.size === 0 || silentMs < (this.#options.wedgedAfterMs ?? 60_000)) return;
    this.#options.logger.error(
      { silentMs: Math.round(silentMs) },
      'the applier does not answer: it is killed',
    );
    this.#lastHeardMs = monotonicMs();
    child.kill('SIGKILL');
  }

  #heard(child: ChildProcess, message: FromApplier): void {
    if (child !== this.#child) return;
    this.#lastHeardMs = monotonicMs();
    if (message.kind === 'event') this.#options.onEvent?.(message.event);
    if (message.kind === 'arm') this.#arm(message.id, message.names);
    if (message.kind !== 'result' && message.kind !== 'error') return;
    this.#restartDelayMs = 0;
    const waiting = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if (message.kind === 'result') waiting?.resolve(message.value as never);
    else waiting?.reject(new KiteError(message.code, message.message));
  }

  #arm(id: number, names: readonly string[]): void {
    const armed = this.#options.arm?.(names) ?? Promise.resolve();
    armed
      // Not armed, its writes are refused, and that is what it then reports.
      .catch((error: unknown) =>
        this.#options.logger.error({ err: error }, 'the mount was not told of the applier'),
      )
      .finally(() => this.#send({ armed: id }))
      .catch(() => {});
  }

  #send(message: ToApplier): void {
    // A process that has just died shows by its `exit`, which rejects every call that waits.
    this.#child?.send(message, () => {});
  }
}
