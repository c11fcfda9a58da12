import { Worker } from 'node:worker_threads';

import type { CheckpointAnswer, CheckpointRequest } from './checkpoint-thread.js';

/** Runs checkpoints in a thread of their own, one after another. */
export class Checkpointer {
  readonly #waiting = new Map<number, (complete: boolean) => void>();
  #worker: Worker | undefined;
  #nextId = 1;

  /** Copies the WAL into the database and empties it. False: readers were in the way, or it failed; try later. */
  run(path: string): Promise<boolean> {
    return this.#ask(path, false);
  }

  /** Copies of the WAL into the database what it can without keeping a writer waiting. */
  async runBesideWriters(path: string): Promise<void> {
    await this.#ask(path, true);
  }

  #ask(path: string, passive: boolean): Promise<boolean> {
    this.#worker ??= this.#start();
    const request: CheckpointRequest = { id: this.#nextId++, path, passive };
    return new Promise((resolve) => {
      this.#waiting.set(request.id, resolve);
      this.#worker?.postMessage(request);
    });
  }

  #start(): Worker {
    const worker = new Worker(new URL('./checkpoint-thread.js', import.meta.url), { name: 'checkpoint' });
    worker.on('message', ({ id, complete, error }: CheckpointAnswer) => {
      if (error !== undefined) process.stderr.write(`checkpoint: ${error}\n`);
      this.#waiting.get(id)?.(complete);
      this.#waiting.delete(id);
    });
    // An error that the thread did not catch ends it, and with it the process: main starts another.
    worker.on('error', (error) => {
      throw error;
    });
    return worker;
  }
}
