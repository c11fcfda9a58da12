import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { KiteError } from '../errors.js';
import type { LogFile } from '../store/types.js';
import { RecentFiles } from './recent-files.js';
import { verifyIncoming } from './verify-incoming.js';

const RECENT_BYTES = 32 << 20;
/** Files up to this size are received in memory and sent from memory. */
export const SMALL_FILE_BYTES = 256 << 10;

/** Reads files of the log for those who follow it: what was just written from memory, small ones verified, large ones as a stream. */
export class LogReader {
  readonly #recent = new RecentFiles(RECENT_BYTES);
  readonly #onUnusable: (file: LogFile, error: KiteError) => void;

  /** `onUnusable` is told of a file that cannot be read, or is not what was written; the reading rejects with the same error. */
  constructor(onUnusable: (file: LogFile, error: KiteError) => void) {
    this.#onUnusable = onUnusable;
  }

  remember(path: string, bytes: Buffer): void {
    this.#recent.add(path, bytes);
  }

  forget(): void {
    this.#recent.clear();
  }

  read(file: LogFile): Promise<Buffer> | AsyncIterable<Buffer> {
    const bytes = this.#recent.get(file.path);
    if (bytes) return Promise.resolve(bytes);
    return file.sizeBytes <= SMALL_FILE_BYTES ? this.#readSmall(file) : this.#readLarge(file);
  }

  /** A replica relies on each byte, and would refuse a damaged file again and again. */
  async #readSmall(file: LogFile): Promise<Buffer> {
    try {
      const bytes = await readFile(file.path);
      verifyIncoming(bytes, file);
      return bytes;
    } catch (error) {
      throw this.#unusable(file, error);
    }
  }

  /** Verified by the replica before it applies any of it: here it would hold the thread. */
  async *#readLarge(file: LogFile): AsyncGenerator<Buffer> {
    let bytes = 0;
    try {
      const stream = createReadStream(file.path, { highWaterMark: 256 << 10 });
      for await (const chunk of stream as AsyncIterable<Buffer>) {
        bytes += chunk.length;
        yield chunk;
      }
    } catch (error) {
      throw this.#unusable(file, error);
    }
    if (bytes === file.sizeBytes) return;
    throw this.#unusable(file, new Error(`it has ${bytes} bytes and had ${file.sizeBytes}`));
  }

  #unusable(file: LogFile, cause: unknown): KiteError {
    const why = cause instanceof Error ? cause.message : String(cause);
    const error = new KiteError('ERR_STORE_LOG_DAMAGED', `${file.path} cannot be used: ${why}`, { cause });
    this.#onUnusable(file, error);
    return error;
  }
}
