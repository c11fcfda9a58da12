import { fork, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { Logger } from '../observability/log.js';
import { withoutFuse } from './child-stdio.js';

/** Starts a process of the daemon's own: messages keep their bigints and maps, standard error is for `logErrors`, the mount is not its. */
export function forkChild(
  main: string,
  { args = [], execArgv }: { readonly args?: readonly string[]; readonly execArgv?: string[] } = {},
): ChildProcess {
  return fork(main, args, {
    serialization: 'advanced',
    stdio: withoutFuse(['ignore', 'ignore', 'pipe', 'ipc'] as const),
    ...(execArgv && { execArgv }),
  });
}

/** What it says on standard error goes to the log, under its name. */
export function logErrors(child: ChildProcess, name: string, logger: Logger): void {
  if (!child.stderr) return;
  createInterface({ input: child.stderr }).on('line', (line) =>
    logger.warn({ pid: child.pid }, `${name}: ${line}`),
  );
}
