import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import { isAbsolute, relative } from 'node:path';
import { parseDuration } from '../config/values.js';
import { KiteError } from '../errors.js';
import type { NodeStatus } from '../observability/node-status.js';
import { Halt } from './halt.js';
import { callNode } from './node-client.js';
import { print } from './output.js';

/** Commands that change who is primary, on the node at `url`. */

/** `kitefs promote`: makes the node primary. */
export async function promote(
  url: string,
  { wait, acceptLoss }: { wait: string; acceptLoss: boolean },
): Promise<void> {
  const query = new URLSearchParams({ wait: String(waitMs(wait)) });
  if (acceptLoss) query.set('accept-loss', 'true');
  const response = await callNode(url, `/promote?${String(query)}`, { method: 'POST' });
  const { nodeId, epoch } = (await response.json()) as { nodeId: string; epoch: string };
  print(`${nodeId} is the primary, epoch ${epoch}`);
}

/** `kitefs demote`: makes the primary hand over, to `target` or to whoever is nearest. */
export async function demote(
  url: string,
  { wait, target }: { wait: string; target?: string },
): Promise<void> {
  const query = new URLSearchParams({ wait: String(waitMs(wait)) });
  if (target !== undefined) query.set('nodeID', target);
  const response = await callNode(url, `/handoff?${String(query)}`, { method: 'POST' });
  const { primary } = (await response.json()) as { primary: string };
  print(`handed over to ${primary}`);
}

export interface RunOptions {
  readonly url: string;
  readonly promote: boolean;
  readonly ifCandidate: boolean;
  readonly wait: string;
  /** A database, by its name or by its path in the mount. */
  readonly haltLockOn: string | undefined;
}

/** `kitefs run`: promotes this node if asked to, then runs a command; returns its exit code (128 + signal). */
export async function run(words: readonly string[], options: RunOptions): Promise<number> {
  const { url, ifCandidate, wait, haltLockOn } = options;
  if (options.promote && haltLockOn !== undefined) {
    throw new KiteError('ERR_CLI_USAGE', '--promote and --with-halt-lock-on exclude each other');
  }
  if (ifCandidate) {
    const status = (await (await callNode(url, '/status')).json()) as NodeStatus;
    if (!status.candidate) {
      print('not run: this node is no candidate');
      return 0;
    }
  }
  if (options.promote) await promote(url, { wait, acceptLoss: false });
  if (haltLockOn === undefined) return await runToEnd(words);
  const halt = await Halt.acquire(url, await nameOf(url, haltLockOn), waitMs(wait));
  try {
    return await runToEnd(words);
  } finally {
    await halt.release();
  }
}

/** LiteFS takes the path of the database in the mount. */
async function nameOf(url: string, database: string): Promise<string> {
  if (!isAbsolute(database)) return database;
  const { mount } = (await (await callNode(url, '/status')).json()) as NodeStatus;
  const name = relative(mount.dir, database);
  if (!name.startsWith('..')) return name;
  throw new KiteError('ERR_CLI_USAGE', `--with-halt-lock-on: ${database} is not in the mount ${mount.dir}`);
}

async function runToEnd([command = '', ...args]: readonly string[]): Promise<number> {
  const child = spawn(command, args, { stdio: 'inherit' });
  // The terminal sends its signals to both; this process must outlive the command to tell how it ended.
  const forward = (signal: NodeJS.Signals): void => void child.kill(signal);
  for (const signal of ['SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const) process.on(signal, forward);
  for (const signal of ['SIGINT', 'SIGQUIT'] as const) process.on(signal, () => undefined);
  try {
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
    return code ?? 128 + (signal === null ? 0 : constants.signals[signal]);
  } catch (error) {
    throw new KiteError('ERR_CLI_FILE', `${command} cannot be run: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

function waitMs(text: string): number {
  const ms = parseDuration(text);
  if (ms === undefined) {
    throw new KiteError(
      'ERR_CLI_USAGE',
      `--wait: expected a duration such as 5s, found ${JSON.stringify(text)}`,
    );
  }
  return ms;
}
