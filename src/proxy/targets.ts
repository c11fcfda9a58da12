import { Agent } from 'node:http';
import { connect } from 'node:net';
import type { Address } from '../config/values.js';
import { monotonicMs } from '../util/clock.js';

const PROBE_MS = 100;
const CONNECT_MS = 2000;
/** Idle connections are closed before an application closes them (gunicorn after 2 s, Node after 5): a request must not meet that. */
const KEEP_ALIVE_MS = 1500;
const IDLE_MAX = 256;

interface Target {
  readonly address: Address;
  isUp: boolean;
}

/**
 * The addresses of the application. They take turns; one that refuses a connection is left out until it takes one again, which one probe
 * finds out for all who wait.
 */
export class Targets {
  readonly agent = keepAliveAgent(KEEP_ALIVE_MS);
  readonly #targets: readonly Target[];
  readonly #waiting = new Set<() => void>();
  #turn = 0;
  #probe: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(addresses: readonly Address[]) {
    this.#targets = addresses.map((address) => ({ address, isUp: true }));
  }

  /** The next one that is not known to be down; undefined: all are. */
  next(): Address | undefined {
    const { length } = this.#targets;
    for (let i = 0; i < length; i++) {
      const target = this.#targets[this.#turn++ % length]!;
      if (target.isUp) return target.address;
    }
    return undefined;
  }

  /** It has refused a connection. */
  down(address: Address): void {
    const target = this.#targets.find((one) => one.address === address);
    if (target) target.isUp = false;
    this.#startProbe();
  }

  /** Resolves when one is up again, after `untilMs` (monotonic), or when the signal aborts. */
  async anyUp(untilMs: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted || this.#targets.some(({ isUp }) => isUp)) return;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(done);
        signal.removeEventListener('abort', done);
        resolve();
      };
      const timer = setTimeout(done, Math.max(0, untilMs - monotonicMs()));
      signal.addEventListener('abort', done);
      this.#waiting.add(done);
    });
  }

  get states(): readonly { readonly address: Address; readonly isUp: boolean }[] {
    return this.#targets;
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#probe);
    this.agent.destroy();
    for (const wake of this.#waiting) wake();
  }

  #startProbe(): void {
    if (this.#stopped) return;
    this.#probe ??= setTimeout(() => {
      const down = this.#targets.filter(({ isUp }) => !isUp);
      void Promise.all(down.map((target) => this.#try(target))).then(() => {
        this.#probe = undefined;
        if (this.#targets.some(({ isUp }) => !isUp)) this.#startProbe();
      });
    }, PROBE_MS).unref();
  }

  async #try(target: Target): Promise<void> {
    const isUp = await takesConnections(target.address);
    if (!isUp || this.#stopped) return;
    target.isUp = true;
    for (const wake of this.#waiting) wake();
  }
}

export const keepAliveAgent = (timeoutMs: number): Agent =>
  new Agent({ keepAlive: true, maxFreeSockets: IDLE_MAX, scheduling: 'lifo', timeout: timeoutMs });

function takesConnections({ host, port }: Address): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ port, ...(host === '' ? {} : { host }), timeout: CONNECT_MS });
    const end = (isUp: boolean): void => {
      socket.destroy();
      resolve(isUp);
    };
    socket.once('connect', () => end(true));
    socket.once('timeout', () => end(false));
    socket.once('error', () => end(false));
  });
}
