import { MessageChannel, Worker } from 'node:worker_threads';
import { KiteError } from '../errors.js';
import { SMALL_YOUNG_GENERATION } from '../util/young-generation.js';
import type { WrittenState } from './database-writer.js';
import type { AppliedLtx, FileKind, FromWriter, ToWriter, WriterSetup } from './writer-thread.js';

export interface WriterOptions {
  /** The file, which is there. */
  readonly path: string;
  readonly from: WrittenState | undefined;
  /** So many buffers of so many bytes are all that is used: whoever fetches waits for a free one. */
  readonly buffers: number;
  readonly bufferBytes: number;
  /** Called after each file, in order; with what is known of it when it was an LTX file. */
  readonly onApplied: (ltx: AppliedLtx | undefined) => void;
}

/** The main thread's end of the thread that decodes and writes (writer-thread.ts). */
export class Writer {
  readonly #worker: Worker;
  readonly #port;
  readonly #signal = new Int32Array(new SharedArrayBuffer(4));
  readonly #free: ArrayBuffer[] = [];
  readonly #waiting: { resolve: (buffer: ArrayBuffer) => void; reject: (error: unknown) => void }[] = [];
  readonly #done: Promise<void>;
  #failed: { readonly error: unknown } | undefined;
  #resolveDone: () => void = () => undefined;
  #rejectDone: (error: unknown) => void = () => undefined;

  constructor(options: WriterOptions) {
    for (let i = 0; i < options.buffers; i += 1) this.#free.push(new ArrayBuffer(options.bufferBytes));
    this.#done = new Promise((resolve, reject) => {
      this.#resolveDone = resolve;
      this.#rejectDone = reject;
    });
    // Whoever waits for the end hears of it; until then nobody may.
    this.#done.catch(() => undefined);
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    const setup: WriterSetup = { path: options.path, from: options.from, port: port2, signal: this.#signal };
    this.#worker = new Worker(new URL('./writer-thread.js', import.meta.url), {
      name: 'restore',
      workerData: setup,
      transferList: [port2],
      resourceLimits: SMALL_YOUNG_GENERATION,
    });
    this.#worker.on('error', (error) => this.fail(error));
    port1.on('message', (message: FromWriter) => {
      if (message.kind === 'free') this.#put(message.bytes.buffer);
      else if (message.kind === 'applied') options.onApplied(message.ltx);
      else if (message.kind === 'done') this.#resolveDone();
      else this.fail(new KiteError(message.code, message.message));
    });
  }

  /** A buffer to fill; waits until one is free. */
  async buffer(): Promise<ArrayBuffer> {
    if (this.#failed) throw this.#failed.error;
    const free = this.#free.pop();
    if (free) return free;
    return await new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  /** The next file begins. */
  file(sizeBytes: number, of: FileKind): void {
    this.#send({ kind: 'file', sizeBytes, of });
  }

  /** The next bytes of it, in a buffer of `buffer`, which is given away. */
  bytes(bytes: Uint8Array<ArrayBuffer>): void {
    this.#send({ kind: 'bytes', bytes }, [bytes.buffer]);
  }

  /** Returns when everything is applied and durable. Throws what the thread met. */
  async end(): Promise<void> {
    this.#send({ kind: 'end' });
    await this.#done;
  }

  /** Makes everybody who waits give up. */
  fail(error: unknown): void {
    this.#failed ??= { error };
    this.#rejectDone(error);
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }

  /** Ends the thread, whatever it does. */
  async close(): Promise<void> {
    await this.#worker.terminate();
    this.#port.close();
  }

  #put(buffer: ArrayBuffer): void {
    const waiting = this.#waiting.shift();
    if (waiting) waiting.resolve(buffer);
    else this.#free.push(buffer);
  }

  #send(message: ToWriter, transfer: ArrayBuffer[] = []): void {
    this.#port.postMessage(message, transfer);
    Atomics.add(this.#signal, 0, 1);
    Atomics.notify(this.#signal, 0);
  }
}
