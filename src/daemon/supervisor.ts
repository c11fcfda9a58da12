import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import type { ExecCommand } from '../config/values.js';
import type { Logger } from '../observability/log.js';
import { withoutFuse } from '../util/child-stdio.js';

/** What is run: a command line for the shell (`exec` of the file), or words as they are (`mount -- CMD`). */
export type Command = ExecCommand | { readonly argv: readonly string[] };

export interface SupervisorOptions {
  readonly candidate: boolean;
  readonly logger: Logger;
  /** Told the process group that runs now, undefined when it has ended: for the guard. */
  readonly onGroup: (groupId: number | undefined) => void;
}

/**
 * Runs the application once the mount is ready: all commands but the last to their end, one after the
 * other, then the last, whose exit code becomes ours. Each runs in a process group of its own, so that
 * what it starts ends with it.
 */
export class Supervisor {
  readonly #options: SupervisorOptions;
  #child: ChildProcess | undefined;
  #stopping = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
  }

  /**
   * Resolves with the exit code of the last command (128 + signal when one ended it), with that of an
   * earlier one that failed, or with undefined when the last one is not for this node (if-candidate).
   */
  async run(commands: readonly Command[]): Promise<number | undefined> {
    for (const [index, command] of commands.entries()) {
      const isLast = index === commands.length - 1;
      if ('ifCandidate' in command && command.ifCandidate && !this.#options.candidate) {
        this.#options.logger.info({ cmd: command.cmd }, 'not run: this node is no candidate');
        continue;
      }
      if (this.#stopping) return undefined;
      const code = await this.#runOne(command);
      if (isLast || code !== 0) return code;
    }
    return undefined;
  }

  /** Forwards a signal to the whole process group of the running command. */
  signal(signal: NodeJS.Signals): void {
    killGroup(this.#child?.pid, signal);
  }

  /** Asks the running command to end by `signal`, and after `graceMs` ends it; resolves when the whole group is gone. */
  async stop(graceMs: number, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    this.#stopping = true;
    const groupId = this.#child?.pid;
    if (groupId === undefined) return;
    killGroup(groupId, signal);
    if (!(await groupEnds(groupId, graceMs))) {
      this.#options.logger.warn({ group: groupId }, 'the application did not end in time and is killed');
      killGroup(groupId, 'SIGKILL');
      await groupEnds(groupId, graceMs);
    }
  }

  async #runOne(command: Command): Promise<number> {
    const { logger, onGroup } = this.#options;
    const shown = 'cmd' in command ? command.cmd : command.argv.join(' ');
    const [file = '', ...words] = 'cmd' in command ? ['/bin/sh', '-c', command.cmd] : command.argv;
    const child = spawn(file, words, {
      stdio: withoutFuse(['inherit', 'inherit', 'inherit'] as const),
      detached: true,
    });
    this.#child = child;
    onGroup(child.pid);
    logger.info({ pid: child.pid }, `started: ${shown}`);
    try {
      const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
      const status = code ?? 128 + (signal ? constants.signals[signal] : 0);
      logger[status === 0 ? 'info' : 'warn']({ status, ...(signal && { signal }) }, `ended: ${shown}`);
      return status;
    } catch (error) {
      // As in a shell: the command was not found, or is no program.
      logger.error(`cannot run ${shown}: ${(error as Error).message}`);
      return 127;
    } finally {
      // What the command left behind in its group would go on using the mount.
      if (child.pid !== undefined && groupExists(child.pid)) killGroup(child.pid, 'SIGTERM');
      this.#child = undefined;
      onGroup(undefined);
    }
  }
}

function killGroup(groupId: number | undefined, signal: NodeJS.Signals): void {
  if (groupId === undefined) return;
  try {
    process.kill(-groupId, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

function groupExists(groupId: number): boolean {
  try {
    process.kill(-groupId, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Whether the group is gone within the time; there is no event for a group, so it is looked at. */
async function groupEnds(groupId: number, withinMs: number): Promise<boolean> {
  const end = performance.now() + withinMs;
  while (groupExists(groupId)) {
    if (performance.now() > end) return false;
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
  }
  return true;
}
