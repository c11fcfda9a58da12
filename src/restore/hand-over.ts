import type { Destination } from '../backup/destination.js';
import { KiteError, toKiteError } from '../errors.js';
import { fetchPart } from './fetch.js';
import type { FileKind } from './writer-thread.js';
import type { Writer } from './writer.js';

/** Objects are fetched in parts: one request's stream is slower than a disk. */
export const PART_BYTES = 2 * 1024 * 1024;
/** Parts that wait for their turn beside those being fetched. */
export const SPARE_PARTS = 2;

/** An object of the backup that cannot be used. */
export class BadFile extends Error {
  constructor(
    readonly key: string,
    readonly reason: KiteError,
  ) {
    super(reason.message);
  }
}

export interface HandOver {
  readonly from: Destination;
  /** In the order in which they are applied. */
  readonly objects: readonly { readonly key: string; readonly sizeBytes: number; readonly of: FileKind }[];
  readonly writer: Writer;
  /** How many of them the writer has applied. */
  readonly appliedCount: () => number;
}

/**
 * Fetches objects and hands them to the writer, until all are applied and durable. Parts are fetched side by side and handed over in
 * their order; the writer's buffers bound how many there are. `onBytes` is called with the bytes of each part and of all so far. Throws
 * BadFile for an object that is missing or damaged.
 */
export async function handOver(
  { from, objects, writer, appliedCount }: HandOver,
  onBytes: (bytes: number, doneBytes: number) => void,
): Promise<void> {
  let doneBytes = 0;
  let handedOver = Promise.resolve();
  try {
    for (const { key, sizeBytes, of } of objects) {
      for (let start = 0; start < Math.max(1, sizeBytes); start += PART_BYTES) {
        const bytes = new Uint8Array(await writer.buffer(), 0, Math.min(PART_BYTES, sizeBytes - start));
        const before = handedOver;
        const fetched = fetchPart(from, key, start, bytes);
        // Whoever waits for it hears of it, when its turn comes.
        fetched.catch(() => undefined);
        handedOver = before.then(async () => {
          await fetched.catch((error: unknown) => {
            const failed = toKiteError(error);
            throw failed.code === 'ERR_BACKUP_MISSING' ? new BadFile(key, failed) : failed;
          });
          if (start === 0) writer.file(sizeBytes, of);
          // Given away, they have no length any more.
          const { length } = bytes;
          writer.bytes(bytes);
          doneBytes += length;
          onBytes(length, doneBytes);
        });
        handedOver.catch((error: unknown) => writer.fail(error));
      }
    }
    await handedOver;
    await writer.end();
  } catch (error) {
    const failed = objects[appliedCount()];
    if (error instanceof KiteError && failed && error.code.startsWith('ERR_LTX_'))
      throw new BadFile(failed.key, error);
    throw error;
  }
}
