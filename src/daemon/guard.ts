import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

/** What the daemon tells its guard, one JSON object a line. */
export type GuardMessage = { readonly group: number | null } | { readonly goodbye: true };

/**
 * A very small child that outlives the daemon by a moment: when its pipe closes without a goodbye (kill
 * -9, OOM, a crash), it ends the supervised process group, because WAL connections on a dead mount go on
 * reading a frozen snapshot without any error (trap 5). The dead mount itself stays until the next start
 * clears it (docs/decisions/006-a-dead-mount-stays.md).
 */
export class Guard {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  static start(): Guard {
    const child = spawn(process.execPath, [fileURLToPath(new URL('./guard-main.js', import.meta.url))], {
      // A session of its own: Ctrl-C in the daemon's terminal is the daemon's to handle, not the guard's.
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    // The guard's end shows in `exited`; a write to a dead one must not take the daemon down.
    child.stdin?.on('error', () => {});
    child.unref();
    return new Guard(child);
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** The process group to end when the daemon dies; undefined: none (any more). */
  supervise(groupId: number | undefined): void {
    this.#send({ group: groupId ?? null });
  }

  /** Nothing is left to guard. Resolves when the guard has ended. */
  async goodbye(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    // Started so that it keeps nobody from ending; now its end is waited for.
    this.#child.ref();
    const ended = once(this.#child, 'exit');
    this.#send({ goodbye: true });
    this.#child.stdin?.end();
    await ended;
  }

  #send(message: GuardMessage): void {
    this.#child.stdin?.write(`${JSON.stringify(message)}\n`);
  }
}
