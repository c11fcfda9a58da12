import { createReadStream, createWriteStream } from 'node:fs';
import { open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { KiteError } from '../errors.js';
import { callNode } from './node-client.js';
import { print } from './output.js';

/** `kitefs import`: sends a SQLite file to the primary. */
export async function importFile(
  url: string,
  name: string,
  path: string,
  { ifNotExists }: { readonly ifNotExists: boolean },
): Promise<void> {
  const sizeBytes = await sizeOf(path);
  if (sizeBytes === undefined) throw new KiteError('ERR_CLI_FILE', `there is no file ${path}`);
  // Their content belongs to the database and would be lost: the file alone is sent.
  for (const side of [`${path}-wal`, `${path}-journal`]) {
    if (await sizeOf(side)) {
      throw new KiteError(
        'ERR_CLI_FILE',
        `${side} is not empty: end what uses the database, then run sqlite3 ${path} 'PRAGMA wal_checkpoint(TRUNCATE)'`,
      );
    }
  }
  // The primary decides: only it knows what it has restored.
  const more = ifNotExists ? '&if-not-exists=true' : '';
  const body = Readable.toWeb(createReadStream(path)) as ReadableStream;
  const response = await callNode(url, `/import?name=${encodeURIComponent(name)}${more}`, {
    method: 'POST',
    headers: { 'content-length': String(sizeBytes) },
    body,
    duplex: 'half',
  });
  const { position, imported } = (await response.json()) as { position: string; imported: boolean };
  if (imported) print(`${name}: ${sizeBytes} bytes imported, now at ${position}`);
  else print(`${name} is there already, at ${position}: nothing is imported`);
}

/** `kitefs export`: replaces `path` once the whole copy is there and durable. */
export async function exportFile(
  url: string,
  name: string,
  path: string,
  options: { quiet?: boolean } = {},
): Promise<void> {
  const response = await callNode(url, `/export?name=${encodeURIComponent(name)}`);
  if (!response.body) throw new KiteError('ERR_CLI_UNREACHABLE', `${url} answered without a body`);
  const temporary = `${path}.tmp`;
  try {
    await pipeline(Readable.fromWeb(response.body), createWriteStream(temporary, { flush: true }));
    const announced = Number(response.headers.get('content-length') ?? Number.NaN);
    const received = await sizeOf(temporary);
    if (received !== announced)
      throw new KiteError('ERR_CLI_UNREACHABLE', `the copy broke off at ${received} of ${announced} bytes`);
    // Left beside the new file, these would be taken for its own and change it.
    for (const side of ['-wal', '-shm', '-journal']) await rm(`${path}${side}`, { force: true });
    await rename(temporary, path);
    await syncFolder(dirname(path));
    if (!options.quiet) print(`${path}: ${received} bytes of ${name}`);
  } catch (error) {
    await rm(temporary, { force: true });
    if (error instanceof KiteError) throw error;
    throw new KiteError('ERR_CLI_FILE', `cannot write ${path} (${(error as Error).message})`, {
      cause: error,
    });
  }
}

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new KiteError('ERR_CLI_FILE', `cannot look at ${path} (${(error as Error).message})`, {
      cause: error,
    });
  }
}

/** Makes the rename durable: without it a power cut may bring the old file back. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
