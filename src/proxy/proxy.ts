import type { ChildProcess } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { KiteError, type ErrorCode } from '../errors.js';
import type { Logger } from '../observability/log.js';
import { monotonicMs } from '../util/clock.js';
import type { Counted, FromProxy, NodeFacts, ToProxy } from './messages.js';
import type { DatabaseView, TimelinePosition } from './node-view.js';
import type { ChangeMark } from '../util/change-mark.js';
import type { ProxySettings } from './settings.js';
import { forkChild, logErrors } from '../util/fork-child.js';

const MAIN = fileURLToPath(new URL('./main.js', import.meta.url));
/** Transactions are told so often at most: what a read waits longer by, and what they cost under load. */
const TELL_MS = 2;
const WEDGED_AFTER_MS = 30_000;
const FIRST_RESTART_MS = 50;
const LONGEST_RESTART_MS = 5000;

export interface ProxyOptions {
  readonly settings: ProxySettings;
  /** Touched before readers here can see anything new; undefined: the proxy asks each time. */
  readonly mark: ChangeMark | undefined;
  readonly logger: Logger;
  /** What the node is now. */
  readonly facts: () => NodeFacts;
  /** What readers here see; of all databases, or of one (undefined: it is gone). */
  readonly databases: () => readonly string[];
  readonly database: (name: string) => DatabaseView | undefined;
  /** NodeView.seen. */
  readonly seen: (databases: readonly string[]) => Promise<ReadonlyMap<string, TimelinePosition>>;
  readonly onRestart: () => void;
  readonly onCounted: (counted: readonly Counted[]) => void;
}

/**
 * The daemon's side of the proxy, which is a process of its own (docs/decisions/029): HTTP at any load takes neither time from the renewal
 * of the lease nor descriptors from the log. Killed or wedged, it is started again. Told here: what the node is, and
 * what readers see, so that it asks nothing to decide.
 */
export class Proxy {
  readonly #o: ProxyOptions;
  readonly #changed = new Set<string>();
  #settings: ProxySettings;
  #child: ChildProcess | undefined;
  #told = '';
  #tell: NodeJS.Timeout | undefined;
  #watch: NodeJS.Timeout | undefined;
  #restart: NodeJS.Timeout | undefined;
  #restartMs = 0;
  #heardMs = 0;
  #stopped = false;
  #started: { resolve: () => void; reject: (error: KiteError) => void } | undefined;
  #drained: (() => void) | undefined;
  /** Who waits until no write is under way. */
  readonly #quiet: (() => void)[] = [];
  #open = { requests: 0, upgrades: 0, targetsUp: 0 };

  private constructor(options: ProxyOptions) {
    this.#o = options;
    this.#settings = options.settings;
  }

  /** Resolves when it listens; rejects with ERR_DAEMON_PORT when it cannot. */
  static async start(options: ProxyOptions): Promise<Proxy> {
    const proxy = new Proxy(options);
    await new Promise<void>((resolve, reject) => {
      proxy.#started = { resolve, reject };
      proxy.#spawn();
    });
    proxy.#started = undefined;
    return proxy;
  }

  get port(): number {
    return this.#settings.addr.port;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** What is open in it, as it last said. */
  get open(): { readonly requests: number; readonly upgrades: number; readonly targetsUp: number } {
    return this.#open;
  }

  /** The role, the lease or the primary may have changed. */
  nodeChanged(): void {
    const node = this.#o.facts();
    const text = JSON.stringify(node, (_key, value: unknown) =>
      typeof value === 'bigint' ? String(value) : value,
    );
    if (text === this.#told) return;
    this.#told = text;
    this.#o.mark?.touch();
    // What databases mean depends on the role: it never goes ahead of them.
    for (const name of this.#o.databases()) this.#changed.add(name);
    this.#tellDatabases();
    this.#send({ kind: 'node', node });
  }

  /** What readers see of a database has changed, or how old it is at most. */
  databaseChanged(name: string): void {
    // What was said of it between two roles may have been too little, and must not be believed any longer than that lasts.
    this.#o.mark?.touch();
    this.#changed.add(name);
    this.#tell ??= setTimeout(() => this.#tellDatabases(), TELL_MS);
  }

  /**
   * Resolves when the application has answered the writes that it was given before the last `nodeChanged`, or after `limitMs`: a node
   * that hands over holds the others.
   */
  async writesAnswered(limitMs: number): Promise<void> {
    if (this.#stopped || !this.#child) return;
    const quiet = new Promise<void>((resolve) => this.#quiet.push(resolve));
    this.#send({ kind: 'quiet' });
    await Promise.race([quiet, sleep(limitMs, undefined, { ref: false })]);
  }

  /** Requests that run are answered, upgraded connections have this time; then it ends. New ones are refused from here on. */
  async drain(drainMs = this.#settings.drainMs): Promise<void> {
    if (this.#stopped || !this.#child) return;
    this.#stopped = true;
    const drained = new Promise<void>((resolve) => {
      this.#drained = resolve;
    });
    this.#send({ kind: 'drain', drainMs });
    const limit = setTimeout(() => this.#drained?.(), drainMs + 1000);
    await drained;
    clearTimeout(limit);
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#tell);
    clearTimeout(this.#restart);
    clearInterval(this.#watch);
    this.#child?.kill('SIGKILL');
    this.#child = undefined;
    this.#drained?.();
  }

  #tellDatabases(): void {
    clearTimeout(this.#tell);
    this.#tell = undefined;
    if (this.#changed.size === 0) return;
    const databases = [...this.#changed].map((name) => [name, this.#o.database(name)] as const);
    this.#changed.clear();
    this.#send({ kind: 'databases', databases });
  }

  #spawn(): void {
    const child = forkChild(MAIN);
    this.#child = child;
    this.#heardMs = monotonicMs();
    logErrors(child, 'proxy', this.#o.logger);
    child.on('message', (message) => {
      if (child === this.#child) this.#heard(message as FromProxy, child);
    });
    child.on('error', (error) => this.#o.logger.error({ err: error }, 'the proxy has trouble'));
    child.once('exit', (code, signal) => {
      if (child === this.#child) this.#died(signal ?? `exit code ${code}`);
    });
    const databases = this.#o.databases().map((name) => [name, this.#o.database(name)] as const);
    // By the channel, not by arguments or the environment: others can read those, and there are secrets in it.
    this.#send({
      kind: 'start',
      settings: this.#settings,
      node: this.#o.facts(),
      databases,
      mark: this.#o.mark?.path,
    });
    clearInterval(this.#watch);
    this.#watch = setInterval(() => {
      if (monotonicMs() - this.#heardMs < WEDGED_AFTER_MS) return;
      this.#o.logger.error('the proxy is silent: it is killed');
      child.kill('SIGKILL');
    }, 1000);
    this.#watch.unref();
  }

  #died(how: string): void {
    this.#child = undefined;
    this.#drained?.();
    for (const tell of this.#quiet.splice(0)) tell();
    if (this.#stopped) return;
    if (this.#started) {
      this.#started.reject(new KiteError('ERR_INTERNAL', `the proxy ended at its start: ${how}`));
      this.stop();
      return;
    }
    this.#o.onRestart();
    this.#o.logger.warn({ how }, 'the proxy ended: another is started');
    this.#restartMs = Math.min(LONGEST_RESTART_MS, Math.max(FIRST_RESTART_MS, this.#restartMs * 2));
    this.#restart = setTimeout(() => this.#spawn(), this.#restartMs);
  }

  #send(message: ToProxy): void {
    // One that has just died shows by its `exit`; another is told all of this anew.
    this.#child?.send(message, () => {});
  }

  #heard(message: FromProxy, child: ChildProcess): void {
    this.#heardMs = monotonicMs();
    switch (message.kind) {
      case 'listening':
        this.#restartMs = 0;
        // The next process listens where this one did.
        this.#settings = { ...this.#settings, addr: { ...this.#settings.addr, port: message.port } };
        this.#o.logger.info(`the proxy listens on port ${message.port}`);
        this.#started?.resolve();
        break;
      case 'failed': {
        const error = new KiteError(message.code as ErrorCode, message.message);
        if (this.#started) {
          this.#started.reject(error);
          this.stop();
        } else {
          this.#o.logger.error(error.describe());
          child.kill('SIGKILL');
        }
        break;
      }
      case 'ask':
        this.#o.mark?.watch();
        this.#o.seen(message.databases).then(
          (positions) => {
            if (child === this.#child) this.#send({ kind: 'seen', id: message.id, positions });
          },
          (error: unknown) => {
            this.#o.logger.warn({ err: error }, 'what readers have seen is not known');
            if (child === this.#child) this.#send({ kind: 'seen', id: message.id, positions: undefined });
          },
        );
        break;
      case 'log':
        this.#o.logger[message.level](`proxy: ${message.message}`);
        break;
      case 'alive':
        this.#open = { requests: message.requests, upgrades: message.upgrades, targetsUp: message.targetsUp };
        this.#o.onCounted(message.counted);
        break;
      case 'quiet':
        for (const tell of this.#quiet.splice(0)) tell();
        break;
      case 'drained':
        this.#drained?.();
        break;
    }
  }
}
