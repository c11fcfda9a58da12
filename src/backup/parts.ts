import { open } from 'node:fs/promises';
import type { ObjectBody } from './destination.js';

/** How large a body is. */
export const bodyBytes = (body: ObjectBody): number =>
  body instanceof Uint8Array ? body.length : body.sizeBytes;

/** A piece of a body, from `start` (inclusive) to `end` (exclusive). */
export async function bodyPart(body: ObjectBody, start: number, end: number): Promise<Uint8Array> {
  if (body instanceof Uint8Array) return body.subarray(start, end);
  const file = await open(body.path, 'r');
  try {
    const bytes = Buffer.allocUnsafe(end - start);
    let done = 0;
    while (done < bytes.length) {
      const { bytesRead } = await file.read(bytes, done, bytes.length - done, start + done);
      if (bytesRead === 0) throw new Error(`${body.path} became shorter`);
      done += bytesRead;
    }
    return bytes;
  } finally {
    await file.close();
  }
}

/** How long a server may say nothing before a request counts as lost. */
export const SILENCE_MS = 30_000;

/** How long a request with so many bytes may take: the slowest link that is waited for carries 64 KB a second. */
export const limitMs = (bytes = 0): number => SILENCE_MS + Math.ceil(bytes / 64);

/** A body without bytes. */
export async function* nothing(): AsyncGenerator<Uint8Array> {}

/** The body of an answer to `request`, which ends with it; what goes wrong in its middle is thrown as `failed` makes it. */
export async function* reading(
  body: AsyncIterable<Uint8Array>,
  request: AbortController,
  failed: (error: unknown) => Error,
): AsyncGenerator<Uint8Array> {
  try {
    yield* watched(body, () => request.abort());
  } catch (error) {
    throw failed(error);
  } finally {
    request.abort();
  }
}

/** Passes on what comes, and calls `onSilence`, which must end it, when nothing has come for too long. */
async function* watched(body: AsyncIterable<Uint8Array>, onSilence: () => void): AsyncGenerator<Uint8Array> {
  let timer = setTimeout(onSilence, SILENCE_MS);
  try {
    for await (const chunk of body) {
      // How long the reader takes with it is no silence of the server's.
      clearTimeout(timer);
      yield chunk;
      timer = setTimeout(onSilence, SILENCE_MS);
    }
  } finally {
    clearTimeout(timer);
  }
}
