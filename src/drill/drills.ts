import type { ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { BackupSettings } from '../backup/messages.js';
import { toKiteError } from '../errors.js';
import type { Logger } from '../observability/log.js';
import type { DrillStatus } from '../observability/node-status.js';
import { problemsOf, type DrillObjects, type DrillReport } from './drill.js';
import type { DrillOrder, FromDrill } from './messages.js';
import { keepReport, lastReport } from './reports.js';
import { forkChild } from '../util/fork-child.js';

const MAIN = fileURLToPath(new URL('./main.js', import.meta.url));
const LOOK_MS = 1000;
/** After a start or a change of primary: shipping and compaction come first. */
const SETTLE_MS = 60_000;
/** The next attempt when a drill came to no end. */
const AGAIN_MS = 60_000;
const GRACE_MS = 2000;

export interface DrillSettings {
  /** 0: none. */
  readonly intervalMs: number;
  readonly objects: DrillObjects;
  readonly exec: string | undefined;
  readonly recoveryObjectiveMs: number | undefined;
}

export interface DrillsOptions {
  readonly settings: DrillSettings;
  readonly backups: readonly BackupSettings[];
  readonly dataDir: string;
  readonly scratchDir: string;
  /** Whether there is anything that should be in the backups. */
  readonly hasDatabases: () => boolean;
  readonly logger: Logger;
  readonly onEvent: (kind: 'drill' | 'drill-failed', message: string, level: 'info' | 'error') => void;
}

/**
 * Drills by schedule, on the primary only, each in a process of its own of the lowest priority. The next is due by the time of the last report, on
 * this node or in a bucket, not by how long anything has run: so a node that lives for minutes at a time gets its drills, and a new
 * primary does not begin anew.
 */
export class Drills {
  readonly #o: DrillsOptions;
  #last: DrillStatus | undefined;
  #lastMs = 0;
  #primarySinceMs: number | undefined;
  #notBeforeMs = 0;
  #child: ChildProcess | undefined;
  readonly #timer: NodeJS.Timeout;

  constructor(options: DrillsOptions) {
    this.#o = options;
    const kept = lastReport(options.dataDir);
    if (kept) {
      this.#last = statusOf(kept.report, kept.path);
      this.#lastMs = Date.parse(kept.report.startedAt);
    }
    this.#timer = setInterval(() => this.#look(), LOOK_MS);
    this.#timer.unref();
  }

  /** The last one that this node has made. */
  status(): DrillStatus | undefined {
    return this.#last;
  }

  primary(): void {
    this.#primarySinceMs ??= Date.now();
  }

  /** Another node is, or nobody: what runs is for its successor to do. */
  fenced(): void {
    this.#primarySinceMs = undefined;
    this.#end();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.fenced();
  }

  #end(): void {
    const child = this.#child;
    this.#child = undefined;
    if (child) endDrill(child);
  }

  #look(): void {
    const nowMs = Date.now();
    const { intervalMs } = this.#o.settings;
    const since = this.#primarySinceMs;
    if (since === undefined || this.#child || nowMs < this.#notBeforeMs) return;
    // A clock that was set back must not put it off for ever.
    if (nowMs - this.#lastMs < intervalMs && this.#lastMs <= nowMs) return;
    if (nowMs - since < Math.min(SETTLE_MS, intervalMs)) return;
    if (this.#o.hasDatabases()) this.#start(nowMs);
  }

  #start(nowMs: number): void {
    const { settings, backups, scratchDir, logger } = this.#o;
    const child = forkChild(MAIN);
    this.#child = child;
    const { objects, exec, recoveryObjectiveMs, intervalMs } = settings;
    const order: DrillOrder = {
      backups,
      scratchDir,
      objects,
      exec,
      recoveryObjectiveMs,
      notSinceMs: nowMs - intervalMs,
    };
    // Another may be due by then: whatever it hangs in is no less a failure than what it could have found.
    const limitMs = Math.max(intervalMs, SETTLE_MS);
    const late = setTimeout(() => endDrill(child), limitMs);
    let said = '';
    if (child.stderr) createInterface({ input: child.stderr }).on('line', (line) => (said = line));
    child.on('message', (message) => {
      if (child === this.#child) this.#heard(message as FromDrill);
    });
    child.on('error', (error) => logger.error({ err: error }, 'the process of a drill has trouble'));
    child.once('exit', (code, signal) => {
      clearTimeout(late);
      if (child !== this.#child) return;
      this.#child = undefined;
      if (code === 0) return;
      this.#notBeforeMs = Date.now() + AGAIN_MS;
      const why =
        Date.now() - nowMs >= limitMs
          ? `no end after ${limitMs / 1000} s`
          : said || signal || `exit code ${code}`;
      this.#o.onEvent('drill-failed', `a drill of the backups came to no result: ${why}`, 'error');
    });
    child.send(order, () => {});
  }

  #heard(message: FromDrill): void {
    if (message.kind === 'notDue') {
      this.#lastMs = message.lastMs;
      this.#notBeforeMs = Date.now() + AGAIN_MS;
      return;
    }
    const { report, notKept } = message;
    this.#lastMs = Date.parse(report.startedAt);
    let path = '';
    try {
      path = keepReport(this.#o.dataDir, report);
    } catch (error) {
      this.#o.logger.error(`the report of a drill cannot be kept: ${toKiteError(error).message}`);
    }
    for (const text of notKept) this.#o.logger.warn(`the report of a drill is not in the backups: ${text}`);
    this.#last = statusOf(report, path);
    const { ok, problems } = this.#last;
    if (ok)
      this.#o.onEvent(
        'drill',
        `${report.restores.length} restores of the backups are right; the slowest destination took ${report.restoreSeconds} s`,
        'info',
      );
    else
      this.#o.onEvent(
        'drill-failed',
        `a drill of the backups failed (${path}): ${problems.join('; ')}`,
        'error',
      );
  }
}

/** First so that it can end the command of the user's; then whatever it is in. The next drill removes its scratch space. */
function endDrill(child: ChildProcess): void {
  child.kill('SIGTERM');
  setTimeout(() => child.kill('SIGKILL'), GRACE_MS).unref();
}

const statusOf = (report: DrillReport, path: string): DrillStatus => ({
  startedAt: report.startedAt,
  endedAt: report.endedAt,
  ok: report.ok,
  restores: report.restores.length,
  restoreSeconds: report.restoreSeconds,
  problems: problemsOf(report),
  report: path,
});
