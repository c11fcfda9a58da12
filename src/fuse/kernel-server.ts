import { spawn, type ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { Worker, type MessagePort } from 'node:worker_threads';

import { IoOp, IoQueue } from './io-queue.js';
import type { IoThreadData } from './io-thread.js';
import { mountKernel, openFuseDevice } from './kernel-mount.js';
import type { ServingOptions } from './mail.js';
import { abortConnection, mountAt, unmount } from './mount-point.js';
import type { MountThreadData } from './mount-thread.js';
import type { MountOptions, Server } from './mount.js';
import type { Waker } from './waker.js';
import { SMALL_YOUNG_GENERATION } from '../util/young-generation.js';

const IO_THREADS = 2;
const STOP_LIMIT_MS = 5000;

/** Mounts with the kernel driver and starts the threads that serve it. Errors: ERR_MOUNT_*. */
export async function startKernel(
  options: MountOptions,
  serving: ServingOptions,
  port: MessagePort,
  waker: Waker,
): Promise<Server> {
  const fuseFd = openFuseDevice();
  try {
    await mountKernel(fuseFd, options.mountDir, options.allowOther);
  } catch (error) {
    fs.closeSync(fuseFd);
    throw error;
  }
  const connection = mountAt(options.mountDir)?.minor;
  const queues = Array.from({ length: IO_THREADS }, () => new IoQueue());
  const failed = (error: Error): void => options.onEvent({ type: 'error', message: error.message });
  // A thread that has died answers nothing any more while the descriptor is still open: whoever waits for it would
  // wait for ever. The kernel is told to fail everything, and the daemon ends.
  const died = (error: Error): void => {
    failed(new Error(`a thread of the mount has died: ${error.stack ?? error.message}`));
    abortConnection(connection);
    options.onEvent({ type: 'gone' });
  };
  const start = (
    file: string,
    workerData: MountThreadData | IoThreadData,
    transferList: MessagePort[],
  ): Worker => {
    const worker = new Worker(new URL(file, import.meta.url), {
      workerData,
      transferList,
      resourceLimits: SMALL_YOUNG_GENERATION,
      trackUnmanagedFds: false,
    });
    worker.on('error', died);
    return worker;
  };
  const thread: MountThreadData = {
    fuseFd,
    options: serving,
    port,
    waker: waker.buffer,
    queues: queues.map((queue) => queue.buffer),
  };
  const ports = serving.captureEndpoint ? [port, serving.captureEndpoint.port] : [port];
  const workers = [
    start('./mount-thread.js', thread, ports),
    ...queues.map((queue) => start('./io-thread.js', { fuseFd, queue: queue.buffer }, [])),
  ];
  const holder = holdWakeFile(options.mountDir);

  return {
    async stop(tell) {
      const exits = Promise.all(workers.map((worker) => exited(worker)));
      // Detached first: no new user can come while it ends.
      await unmount(options.mountDir).catch((error: Error) => failed(error));
      tell();
      for (const queue of queues) queue.put(IoOp.stop, 0, 0, 0, 0);
      const limit = setTimeout(() => abortConnection(connection), STOP_LIMIT_MS);
      await exits;
      clearTimeout(limit);
      // No thread uses the descriptor any more. Closing it ends the connection: requests of whoever
      // still has files open fail instead of hanging.
      waker.close();
      fs.closeSync(fuseFd);
      holder.kill('SIGKILL');
    },
  };
}

/**
 * A child process that keeps the wake file open, so that the kernel remembers it (waker.ts). It ends
 * with this process, whose end of the pipe then closes.
 */
function holdWakeFile(mountDir: string): ChildProcess {
  const file = path.join(mountDir, '.kitefs', 'wake');
  const holder = spawn('sh', ['-c', 'exec 3<"$1" && exec cat', 'sh', file], {
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  holder.on('error', () => undefined); // the mount then does not get ready, which is said there
  holder.stdin.on('error', () => undefined);
  holder.unref();
  return holder;
}

const exited = (worker: Worker): Promise<void> =>
  new Promise((resolve) => {
    if (worker.threadId === -1) return resolve();
    worker.once('exit', () => resolve());
  });
