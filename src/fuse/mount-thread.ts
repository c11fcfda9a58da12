import { workerData, type MessagePort } from 'node:worker_threads';

import { IoQueue } from './io-queue.js';
import { KernelDriver } from './kernel-driver.js';
import type { ServingOptions } from './mail.js';
import { Serving } from './serving.js';
import { Waker } from './waker.js';

/** Entry of the mount thread. It blocks in reads of /dev/fuse and never returns to an event loop. */
export interface MountThreadData {
  readonly fuseFd: number;
  readonly options: ServingOptions;
  readonly port: MessagePort;
  readonly waker: SharedArrayBuffer;
  readonly queues: readonly SharedArrayBuffer[];
}

const data = workerData as MountThreadData;
const serving = new Serving(data.options, data.port, false);
const stopped = new KernelDriver({
  fd: data.fuseFd,
  fileSystem: serving.fileSystem,
  waker: new Waker(data.waker),
  queues: data.queues.map((queue) => new IoQueue(queue)),
  drain: () => serving.drain(),
  ready: () => serving.ready(),
  error: (message) => serving.error(message),
}).run();
if (!stopped) serving.gone();
serving.close();
