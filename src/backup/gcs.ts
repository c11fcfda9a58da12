import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { GoogleAuth } from 'google-auth-library';
import { KiteError } from '../errors.js';
import {
  missingObject,
  type ByteRange,
  type Destination,
  type ObjectBody,
  type StoredObject,
  type VersionedObject,
} from './destination.js';
import { bodyBytes, bodyPart, limitMs, nothing, reading } from './parts.js';

/** Litestream's keys of a replica of type gs. */
export interface GcsSettings {
  readonly type: 'gs';
  readonly bucket: string;
  /** Where in the bucket, without slashes at its ends; may be empty. */
  readonly path: string;
  /** Default `https://storage.googleapis.com`, or STORAGE_EMULATOR_HOST, which takes requests of anybody. */
  readonly endpoint?: string | undefined;
}

/** Bodies up to this go in one request. */
const SINGLE_PUT_BYTES = 16 * 1024 * 1024;
/** A multiple of 256 KiB, as the service wants. */
const CHUNK_BYTES = 8 * 1024 * 1024;
const REMOVE_AT_ONCE = 16;
const ATTEMPTS = 3;
const RETRY_MS = 200;
const SCOPE = 'https://www.googleapis.com/auth/devstorage.read_write';

/** For people. */
export const gcsUrl = ({ bucket, path }: GcsSettings): string => `gs://${bucket}${path && `/${path}`}`;

/**
 * Google Cloud Storage, by its JSON API: the service's own library is large and brings streams and retries of its own in
 * the way of ours. The library of credentials (environment, files, the machine's role) is loaded here only.
 */
export async function openGcs(settings: GcsSettings, pageSize: number): Promise<Destination> {
  const emulator = process.env['STORAGE_EMULATOR_HOST'];
  if (emulator !== undefined && settings.endpoint === undefined) {
    const endpoint = /^https?:\/\//.test(emulator) ? emulator : `http://${emulator}`;
    return new GcsDestination(settings, pageSize, endpoint, undefined);
  }
  const { GoogleAuth: Auth } = await import('google-auth-library');
  const endpoint = settings.endpoint ?? 'https://storage.googleapis.com';
  return new GcsDestination(settings, pageSize, endpoint, new Auth({ scopes: [SCOPE] }));
}

/** What a request is made of. */
interface Request {
  readonly method?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
  /** Statuses that are answers, besides those of success. */
  readonly expected?: readonly number[];
}

class GcsDestination implements Destination {
  readonly type = 'gs';
  readonly url: string;
  readonly #bucket: string;
  readonly #prefix: string;
  readonly #pageSize: number;
  readonly #endpoint: string;
  readonly #auth: GoogleAuth | undefined;
  readonly #closed = new AbortController();

  constructor(settings: GcsSettings, pageSize: number, endpoint: string, auth: GoogleAuth | undefined) {
    this.#pageSize = pageSize;
    this.#bucket = `/storage/v1/b/${encodeURIComponent(settings.bucket)}`;
    this.#prefix = settings.path === '' ? '' : `${settings.path}/`;
    this.#endpoint = endpoint.replace(/\/+$/, '');
    this.#auth = auth;
    this.url = gcsUrl(settings);
  }

  async *list(prefix: string, options: { readonly after?: string } = {}): AsyncGenerator<StoredObject> {
    const { after } = options;
    const more: Record<string, string> = after === undefined ? {} : { startOffset: this.#prefix + after };
    for await (const { items = [] } of this.#pages(prefix, more)) {
      for (const { name, size, updated } of items) {
        const key = name.slice(this.#prefix.length);
        // A listing begins at the offset, not behind it.
        if (key !== after) yield { key, sizeBytes: Number(size), modifiedMs: Date.parse(updated) };
      }
    }
  }

  async folders(prefix: string): Promise<string[]> {
    const names: string[] = [];
    for await (const { prefixes = [] } of this.#pages(prefix, { delimiter: '/' }))
      for (const name of prefixes) names.push(name.slice(this.#prefix.length + prefix.length, -1));
    return names;
  }

  async *#pages(prefix: string, more: Readonly<Record<string, string>>): AsyncGenerator<Page> {
    let pageToken: string | undefined;
    do {
      const query = new URLSearchParams({
        prefix: this.#prefix + prefix,
        maxResults: String(this.#pageSize),
        fields: 'nextPageToken,prefixes,items(name,size,updated)',
        ...more,
        ...(pageToken !== undefined && { pageToken }),
      });
      const answer = await this.#send('list', prefix, `${this.#bucket}/o?${query.toString()}`);
      const page = (await this.#body('list', prefix, answer.json())) as Page;
      yield page;
      pageToken = page.nextPageToken;
    } while (pageToken !== undefined && pageToken !== '');
  }

  async get(key: string, range?: ByteRange): Promise<AsyncIterable<Uint8Array>> {
    const { start = 0, end } = range ?? {};
    if (end !== undefined && end <= start) return nothing();
    const headers = range && { range: `bytes=${start}-${end === undefined ? '' : end - 1}` };
    const request = new AbortController();
    const answer = await this.#send(
      'get',
      key,
      `${this.#object(key)}?alt=media`,
      { ...(headers && { headers }) },
      request,
    );
    return reading(answer.body as unknown as AsyncIterable<Uint8Array>, request, (error) =>
      this.#failed('get', key, error),
    );
  }

  async create(key: string, body: ObjectBody, timestampMs: number): Promise<'created' | 'exists'> {
    const metadata = { 'litestream-timestamp': new Date(timestampMs).toISOString() };
    if (bodyBytes(body) > SINGLE_PUT_BYTES) return await this.#createInChunks(key, body, metadata);
    const bytes = await bodyPart(body, 0, bodyBytes(body));
    return (await this.#put('create', key, bytes, '0', metadata)) ? 'created' : 'exists';
  }

  /** One request with all of it; false when the object is not that generation ("0": there must be none). */
  async #put(
    what: string,
    key: string,
    bytes: Uint8Array,
    generation: string,
    metadata?: Readonly<Record<string, string>>,
  ): Promise<boolean> {
    const boundary = 'kitefs-part-of-an-object';
    const about = JSON.stringify({ name: this.#prefix + key, metadata });
    const body = Buffer.concat([
      Buffer.from(`--${boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n${about}\r\n`),
      Buffer.from(`--${boundary}\r\ncontent-type: application/octet-stream\r\n\r\n`),
      bytes,
      Buffer.from(`\r\n--${boundary}--\r\n`),
    ]);
    const answer = await this.#send(
      what,
      key,
      `/upload${this.#bucket}/o?uploadType=multipart&ifGenerationMatch=${generation}`,
      {
        method: 'POST',
        headers: { 'content-type': `multipart/related; boundary=${boundary}` },
        body,
        expected: [412],
      },
    );
    await answer.body?.cancel();
    return answer.status !== 412;
  }

  async #createInChunks(
    key: string,
    body: ObjectBody,
    metadata: Readonly<Record<string, string>>,
  ): Promise<'created' | 'exists'> {
    const size = bodyBytes(body);
    // With its checksum said first, an upload that was put together wrongly after a break makes no object.
    const about = { name: this.#prefix + key, metadata, md5Hash: await md5Of(body) };
    const begun = await this.#send(
      'create',
      key,
      `/upload${this.#bucket}/o?uploadType=resumable&ifGenerationMatch=0`,
      {
        method: 'POST',
        headers: { 'content-type': 'application/json; charset=UTF-8' },
        body: Buffer.from(JSON.stringify(about)),
        expected: [412],
      },
    );
    await begun.body?.cancel();
    if (begun.status === 412) return 'exists';
    const session = begun.headers.get('location');
    if (session === null) throw this.#failed('create', key, new Error('the upload got no address'));
    for (let at = 0; ;) {
      const end = Math.min(size, at + CHUNK_BYTES);
      const bytes = await bodyPart(body, at, end);
      const answer = await this.#sendChunk(key, session, bytes, at, size);
      await answer.body?.cancel();
      if (answer.status === 412) return 'exists';
      if (answer.status !== 308) return 'created';
      at = storedUpTo(answer);
    }
  }

  /** After a break the service is asked how much it has: that is an answer of the same form. */
  async #sendChunk(
    key: string,
    session: string,
    body: Uint8Array,
    at: number,
    size: number,
  ): Promise<Response> {
    const expected = [308, 412];
    try {
      const headers = { 'content-range': `bytes ${at}-${at + body.length - 1}/${size}` };
      return await this.#try('upload', key, session, { method: 'PUT', headers, body, expected });
    } catch (error) {
      if (!(error instanceof KiteError) || error.code !== 'ERR_BACKUP_UNREACHABLE') throw error;
      await sleep(RETRY_MS);
      const headers = { 'content-range': `bytes */${size}` };
      const asked = await this.#send('upload', key, session, { method: 'PUT', headers, expected });
      // Nothing new is there: whoever asked for the upload begins it again, later.
      if (asked.status === 308 && storedUpTo(asked) <= at) throw error;
      return asked;
    }
  }

  async read(key: string): Promise<VersionedObject> {
    try {
      const answer = await this.#send('read', key, `${this.#object(key)}?alt=media`);
      const bytes = Buffer.from((await this.#body('read', key, answer.arrayBuffer())) as ArrayBuffer);
      return { bytes, version: answer.headers.get('x-goog-generation') ?? '' };
    } catch (error) {
      if (!(error instanceof KiteError) || error.code !== 'ERR_BACKUP_MISSING') throw error;
      return { bytes: Buffer.alloc(0), version: undefined };
    }
  }

  async compareAndSet(key: string, version: string | undefined, bytes: Uint8Array): Promise<boolean> {
    return await this.#put('write', key, bytes, version ?? '0');
  }

  async remove(keys: readonly string[]): Promise<void> {
    for (let at = 0; at < keys.length; at += REMOVE_AT_ONCE) {
      await Promise.all(
        keys.slice(at, at + REMOVE_AT_ONCE).map(async (key) => {
          const answer = await this.#send('remove', key, this.#object(key), {
            method: 'DELETE',
            expected: [404],
          });
          await answer.body?.cancel();
        }),
      );
    }
  }

  close(): void {
    this.#closed.abort();
  }

  #object(key: string): string {
    return `${this.#bucket}/o/${encodeURIComponent(this.#prefix + key)}`;
  }

  /** A request, made again after what passes. */
  async #send(
    what: string,
    key: string,
    path: string,
    request: Request = {},
    abort = new AbortController(),
  ): Promise<Response> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.#try(what, key, path, request, abort);
      } catch (error) {
        const isLast = attempt === ATTEMPTS || this.#closed.signal.aborted;
        if (isLast || !(error instanceof KiteError) || error.code !== 'ERR_BACKUP_UNREACHABLE') throw error;
        await sleep(RETRY_MS * 2 ** attempt * (0.5 + Math.random()));
      }
    }
  }

  /** One attempt. Gives up when the answer does not begin in time; then `abort` is for its body. */
  async #try(
    what: string,
    key: string,
    path: string,
    { method = 'GET', headers, body, expected = [] }: Request,
    abort = new AbortController(),
  ): Promise<Response> {
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), limitMs(body?.length));
    let answer: Response;
    try {
      const identity = await this.#identity(late.signal);
      answer = await fetch(path.startsWith('/') ? this.#endpoint + path : path, {
        method,
        headers: { ...Object.fromEntries(identity), ...headers },
        // A chunk that is not the last one is answered by 308, which is no redirection here.
        redirect: 'manual',
        signal: AbortSignal.any([late.signal, abort.signal, this.#closed.signal]),
        ...(body && { body }),
      });
    } catch (error) {
      throw this.#failed(what, key, late.signal.aborted ? new Error('the server does not answer') : error);
    } finally {
      clearTimeout(timer);
    }
    if (answer.ok || expected.includes(answer.status)) return answer;
    const said = await answer.text().catch(() => '');
    throw this.#refused(what, key, answer.status, wordsOf(said));
  }

  /** The headers that say who asks. Throws ERR_BACKUP_DENIED for credentials that are none. */
  async #identity(late: AbortSignal): Promise<Headers> {
    if (!this.#auth) return new Headers();
    try {
      // The library has no limit of its own.
      const isLate = new Promise<never>((_resolve, reject) =>
        late.addEventListener('abort', () => reject(new Error('late'))),
      );
      return await Promise.race([this.#auth.getRequestHeaders(), isLate]);
    } catch (error) {
      const { code, status = 0, message } = error as { code?: unknown; status?: number; message: string };
      const isOfFile = code === 'ENOENT' || code === 'EACCES' || /credential file/.test(message);
      const isOfTransport = typeof code === 'string' && /^E[A-Z]+$/.test(code) && !isOfFile;
      const isOfLink = late.aborted || status >= 500 || isOfTransport;
      if (isOfLink) throw error;
      throw new KiteError('ERR_BACKUP_DENIED', `${this.url}: no credentials that can be used: ${message}`);
    }
  }

  async #body(what: string, key: string, body: Promise<unknown>): Promise<unknown> {
    try {
      return await body;
    } catch (error) {
      throw this.#failed(what, key, error);
    }
  }

  #refused(what: string, key: string, status: number, said: string): KiteError {
    const isAboutBucket = what === 'list' || what === 'create' || what === 'write' || /bucket/i.test(said);
    // An upload that is forgotten is begun again.
    const isUpload = what === 'upload';
    if (status === 404 && !isUpload && !(isAboutBucket && !/no such object/i.test(said)))
      return missingObject(this.url, key);
    const message = `${this.url}: cannot ${what} ${key === '' ? 'it' : key}: ${status}${said && ` (${said})`}`;
    if (status === 404 && !isUpload) return new KiteError('ERR_BACKUP_NO_BUCKET', message);
    const denied = status === 401 || status === 403;
    return new KiteError(denied ? 'ERR_BACKUP_DENIED' : 'ERR_BACKUP_UNREACHABLE', message);
  }

  /** Of the transport, or of the credentials. The error is not kept as the cause: those of credentials have requests with secrets in them. */
  #failed(what: string, key: string, error: unknown): KiteError {
    if (error instanceof KiteError) return error;
    const { message = '', cause } = error as {
      message?: string;
      cause?: { message?: string; code?: string };
    };
    const said = cause?.message ?? cause?.code ?? message;
    return new KiteError(
      'ERR_BACKUP_UNREACHABLE',
      `${this.url}: cannot ${what} ${key === '' ? 'it' : key}: ${said}`,
    );
  }
}

interface Page {
  readonly items?: readonly { readonly name: string; readonly size: string; readonly updated: string }[];
  readonly prefixes?: readonly string[];
  readonly nextPageToken?: string;
}

async function md5Of(body: ObjectBody): Promise<string> {
  const hash = createHash('md5');
  const size = bodyBytes(body);
  for (let at = 0; at < size; at += CHUNK_BYTES)
    hash.update(await bodyPart(body, at, Math.min(size, at + CHUNK_BYTES)));
  return hash.digest('base64');
}

/** How much of an upload the service has: `bytes=0-41`, no header for nothing. */
const storedUpTo = (answer: Response): number => {
  const range = answer.headers.get('range');
  return range === null ? 0 : Number(range.slice(range.indexOf('-') + 1)) + 1;
};

/** The service's words about an error, from JSON or as they are. */
function wordsOf(body: string): string {
  try {
    const { error } = JSON.parse(body) as { error?: { message?: string } };
    if (error?.message !== undefined) return error.message;
  } catch {
    // Not JSON.
  }
  return body.slice(0, 200).trim();
}
