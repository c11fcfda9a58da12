import { setTimeout as delay } from 'node:timers/promises';
import { formatRemark, type LoadedConfig } from '../config/load.js';
import { Guard } from '../daemon/guard.js';
import { Node } from '../daemon/node.js';
import { Supervisor, type Command } from '../daemon/supervisor.js';
import { toKiteError, type KiteError } from '../errors.js';
import { createLogger, type Logger } from '../observability/log.js';

/** How long the application, or a start that hangs, may take to end before it is cut off. */
const GRACE_MS = 10_000;
const READY_POLL_MS = 20;

/** `kitefs mount`: runs a node until a signal comes or its application ends; returns the exit code. */
export async function mount(
  { config, notes, file }: LoadedConfig,
  words: readonly string[],
): Promise<number> {
  const logger = createLogger(config.log);
  logger.info(`configuration: ${file ?? 'defaults and environment'}`);
  for (const note of notes) logger.warn(formatRemark(note));
  endOnBug(logger);

  let node: Node | undefined;
  let failure: KiteError | undefined;
  // Started before anything is mounted, so that no descriptor of the mount can reach it.
  const guard = Guard.start();
  const onGroup = (groupId: number | undefined): void => guard.supervise(groupId);
  const supervisor = new Supervisor({ candidate: config.lease.candidate, logger, onGroup });
  const stop = stopOnSignals(supervisor, logger, () => node !== undefined);

  try {
    const running = (node = await Node.start(config, logger));
    node.onFatal((error) => {
      failure = error;
      stop.abort('SIGTERM');
    });
    if (!config.skipSync) await ready(node, stop.signal);
    // Before the application starts, so that it meets the primary.
    if (!stop.signal.aborted) await node.promoteAtStart();
    const commands = words.length > 0 ? [{ argv: words }] : config.exec;
    const code = await supervise(supervisor, commands, stop.signal, async () => {
      // What has failed answers nobody any more.
      if (!failure) await running.drain();
    });
    if (failure) throw failure;
    return code;
  } catch (thrown) {
    const error = toKiteError(thrown);
    if (config.exitOnError || node || stop.signal.aborted) throw thrown;
    logger.error({ code: error.code }, error.describe());
    await aborted(stop.signal);
    return error.row.exit;
  } finally {
    await supervisor.stop(GRACE_MS);
    await node?.stop();
    await guard.goodbye();
    // A channel to the one who forked us (the demo) would keep this process alive.
    if (process.connected) process.disconnect();
  }
}

/** Aborts, with the signal as its reason, when the process is asked to end; a repeated signal reaches the application. */
function stopOnSignals(supervisor: Supervisor, logger: Logger, hasStarted: () => boolean): AbortController {
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGQUIT'] as const) {
    process.on(signal, () => {
      logger.info(`${signal}: stopping`);
      if (stop.signal.aborted) supervisor.signal(signal);
      stop.abort(signal);
      // A start that hangs cannot be asked to stop; the next start clears up what it had begun.
      if (!hasStarted()) setTimeout(() => hasStarted() || endNow(), GRACE_MS).unref();
    });
  }
  // Applications reload their configuration or reopen their logs at these; they must not end the node.
  for (const signal of ['SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const) {
    process.on(signal, () => supervisor.signal(signal));
  }
  // Forked with a channel (the demo): ends with the one who forked it.
  process.once('disconnect', () => stop.abort('SIGTERM'));
  process.channel?.unref();
  return stop;
}

/** What makes a replica ready may be no event but that time passed, so it is looked at. */
async function ready(node: Node, stop: AbortSignal): Promise<void> {
  while (!node.status().ready && !stop.aborted) await delay(READY_POLL_MS);
}

/** Runs the application, if there is one; resolves with the exit code of the whole once that or a signal ends it. */
async function supervise(
  supervisor: Supervisor,
  commands: readonly Command[],
  stop: AbortSignal,
  drain: () => Promise<void>,
): Promise<number> {
  if (commands.length === 0 || stop.aborted) {
    await aborted(stop);
    await drain();
    return 0;
  }
  const ended = supervisor.run(commands);
  // After a signal the application has its time to end, and its exit code counts.
  const stopped = aborted(stop)
    // Requests that have come in are answered while there is somebody to answer them.
    .then(() => drain())
    .then(() => supervisor.stop(GRACE_MS, stop.reason as NodeJS.Signals));
  await Promise.race([ended, stopped]);
  const code = await ended;
  if (code === undefined) await stopped;
  return code ?? 0;
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise((resolve) => {
    signal.addEventListener('abort', resolve, { once: true });
  });
}

/** A bug ends the node at once: the guard clears up, which is safer than going on in an unknown state. */
function endOnBug(logger: Logger): void {
  const end = (thrown: unknown): void => {
    logger.error({ err: thrown }, 'this is a bug in KiteFS; the node ends');
    process.stderr.write(`${thrown instanceof Error ? thrown.stack : String(thrown)}\n`);
    endNow();
  };
  process.on('uncaughtException', end);
  process.on('unhandledRejection', end);
}

/** Not process.exit, which joins all threads: that of the mount may wait in the kernel for a request that never comes. */
function endNow(): void {
  process.kill(process.pid, 'SIGKILL');
}
