import { setTimeout as sleep } from 'node:timers/promises';
import { readObject, type Destination } from '../backup/destination.js';
import type { BackupFile } from '../backup/layout.js';
import { KiteError, toKiteError } from '../errors.js';
import { HEADER_BYTES, parseHeader, type LtxHeader } from '../ltx/format.js';

const ATTEMPTS = 5;
const FIRST_DELAY_MS = 200;

/** Runs a request again, later each time, while its error says that this can help. */
async function withRetries<T>(call: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call();
    } catch (error) {
      const failed = toKiteError(error);
      if (!failed.row.retry || attempt === ATTEMPTS) throw failed;
      // Half of it by chance, so that many parts do not come back at once.
      await sleep(FIRST_DELAY_MS * 2 ** (attempt - 1) * (0.5 + Math.random()));
    }
  }
}

/** Fills `into` with the bytes of an object from `start` on. After a break it goes on where it was. Throws ERR_BACKUP_*. */
export async function fetchPart(
  from: Destination,
  key: string,
  start: number,
  into: Uint8Array,
): Promise<void> {
  let done = 0;
  await withRetries(async () => {
    for await (const chunk of await from.get(key, { start: start + done, end: start + into.length })) {
      const fits = Math.min(chunk.length, into.length - done);
      into.set(fits < chunk.length ? chunk.subarray(0, fits) : chunk, done);
      done += fits;
    }
    if (done < into.length)
      throw new KiteError('ERR_BACKUP_UNREACHABLE', `${from.url}: ${key} broke off at byte ${start + done}`);
  });
}

/** The header of an object, by one small request. Throws ERR_BACKUP_*, ERR_LTX_*. */
export async function fetchHeader(from: Destination, file: BackupFile): Promise<LtxHeader> {
  return await withRetries(
    async () => parseHeader(await readObject(from, file.key, { start: 0, end: HEADER_BYTES })).header,
  );
}
