import { randomBytes } from 'node:crypto';
import { text } from 'node:stream/consumers';
import type * as Sdk from '@azure/storage-blob';
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

/** Litestream's keys of a replica of type abs. */
export interface AzureSettings {
  readonly type: 'abs';
  /** The container. */
  readonly bucket: string;
  /** Where in it, without slashes at its ends; may be empty. */
  readonly path: string;
  readonly accountName?: string | undefined;
  readonly accountKey?: string | undefined;
  readonly sasToken?: string | undefined;
  /** Default `https://<account>.blob.core.windows.net`. */
  readonly endpoint?: string | undefined;
}

/** Bodies up to this go in one request. */
const SINGLE_PUT_BYTES = 16 * 1024 * 1024;
const BLOCK_BYTES = 8 * 1024 * 1024;
/** A blob takes 50 000 blocks. */
const MAX_BLOCKS = 45_000;
const BLOCKS_AT_ONCE = 2;
const REMOVE_AT_ONCE = 16;

/** For people. */
export const azureUrl = ({ accountName, bucket, path }: AzureSettings): string =>
  `abs://${accountName === undefined ? '' : `${accountName}@`}${bucket}${path && `/${path}`}`;

/** Azure Blob Storage. The libraries are loaded here only; that of identities only where neither a key nor a SAS token is given. */
export async function openAzure(settings: AzureSettings, pageSize: number): Promise<Destination> {
  const sdk = await import('@azure/storage-blob');
  const environment = process.env;
  const account = settings.accountName ?? environment['AZURE_STORAGE_ACCOUNT'];
  const sas =
    settings.sasToken ?? environment['LITESTREAM_AZURE_SAS_TOKEN'] ?? environment['AZURE_STORAGE_SAS_TOKEN'];
  const key =
    settings.accountKey ?? environment['LITESTREAM_AZURE_ACCOUNT_KEY'] ?? environment['AZURE_STORAGE_KEY'];
  const url = azureUrl(settings);
  if (settings.endpoint === undefined && account === undefined)
    throw new KiteError('ERR_BACKUP_DENIED', `${url}: neither account-name nor endpoint is given`);
  const endpoint = settings.endpoint ?? `https://${account}.blob.core.windows.net`;
  const options: Sdk.StoragePipelineOptions = {
    // Attempts of one request; what is lost after that is begun again by whoever asked.
    retryOptions: { maxTries: 3, retryDelayInMs: 200, maxRetryDelayInMs: 2000 },
    userAgentOptions: { userAgentPrefix: 'kitefs' },
  };
  const open = (credential?: Sdk.StorageSharedKeyCredential | Sdk.BlobServiceClient['credential']) =>
    new sdk.BlobServiceClient(
      sas === undefined ? endpoint : `${endpoint}?${sas.replace(/^\?/, '')}`,
      credential,
      options,
    );
  let service: Sdk.BlobServiceClient;
  if (sas !== undefined) service = open();
  else if (key !== undefined && account !== undefined) {
    if (!/^[A-Za-z0-9+/]+=*$/.test(key))
      throw new KiteError('ERR_BACKUP_DENIED', `${url}: account-key is not base64`);
    service = open(new sdk.StorageSharedKeyCredential(account, key));
  } else {
    const { DefaultAzureCredential } = await import('@azure/identity');
    service = open(new DefaultAzureCredential());
  }
  return new AzureDestination(service.getContainerClient(settings.bucket), settings, pageSize);
}

class AzureDestination implements Destination {
  readonly type = 'abs';
  readonly url: string;
  readonly #container: Sdk.ContainerClient;
  readonly #prefix: string;
  readonly #pageSize: number;
  /** Ends what is under way when the destination is closed. */
  readonly #closed = new AbortController();

  constructor(container: Sdk.ContainerClient, settings: AzureSettings, pageSize: number) {
    this.#pageSize = pageSize;
    this.#container = container;
    this.#prefix = settings.path === '' ? '' : `${settings.path}/`;
    this.url = azureUrl(settings);
  }

  async *list(prefix: string, options: { readonly after?: string } = {}): AsyncGenerator<StoredObject> {
    const { after = '' } = options;
    const pages = this.#pages(prefix, (how) => this.#container.listBlobsFlat(how));
    for await (const { segment } of pages) {
      for (const { name, properties } of segment.blobItems) {
        const key = name.slice(this.#prefix.length);
        // Not every service can begin a listing in its middle.
        if (key <= after) continue;
        const { contentLength = 0, lastModified } = properties;
        yield { key, sizeBytes: contentLength, modifiedMs: lastModified.getTime() };
      }
    }
  }

  async folders(prefix: string): Promise<string[]> {
    const names: string[] = [];
    const pages = this.#pages(prefix, (how) => this.#container.listBlobsByHierarchy('/', how));
    for await (const { segment } of pages) {
      for (const { name } of segment.blobPrefixes ?? [])
        names.push(name.slice(this.#prefix.length + prefix.length, -1));
    }
    return names;
  }

  /** A listing, page by page, each with a limit of its own. */
  async *#pages<T extends { continuationToken?: string }>(
    prefix: string,
    list: (how: Sdk.ContainerListBlobsOptions) => {
      byPage: (from: { continuationToken?: string; maxPageSize: number }) => AsyncIterator<T>;
    },
  ): AsyncGenerator<T> {
    let token: string | undefined;
    do {
      const how = { prefix: this.#prefix + prefix, abortSignal: this.#limited() };
      const from = { maxPageSize: this.#pageSize, ...(token !== undefined && { continuationToken: token }) };
      const page = await list(how)
        .byPage(from)
        .next()
        .catch((error: unknown) => {
          throw this.#failed('list', prefix, error);
        });
      if (page.done) return;
      yield page.value;
      token = page.value.continuationToken;
    } while (token !== undefined && token !== '');
  }

  async get(key: string, range?: ByteRange): Promise<AsyncIterable<Uint8Array>> {
    const { start = 0, end } = range ?? {};
    // A count of 0 would mean all of it.
    if (end !== undefined && end <= start) return nothing();
    const request = new AbortController();
    try {
      const { readableStreamBody } = await this.#blob(key).download(
        start,
        end === undefined ? undefined : end - start,
        { maxRetryRequests: 0, abortSignal: AbortSignal.any([request.signal, this.#closed.signal]) },
      );
      return reading(readableStreamBody as AsyncIterable<Uint8Array>, request, (error) =>
        this.#failed('get', key, error),
      );
    } catch (error) {
      throw this.#failed('get', key, error);
    }
  }

  async create(key: string, body: ObjectBody, timestampMs: number): Promise<'created' | 'exists'> {
    const options = {
      conditions: { ifNoneMatch: '*' },
      // A name with hyphens is not allowed here.
      metadata: { litestreamtimestamp: new Date(timestampMs).toISOString() },
    };
    const size = bodyBytes(body);
    try {
      if (size > SINGLE_PUT_BYTES) await this.#createInBlocks(key, body, options);
      else {
        const abortSignal = this.#limited(size);
        await this.#blob(key).upload(await bodyPart(body, 0, size), size, { ...options, abortSignal });
      }
      return 'created';
    } catch (error) {
      if (isTaken(error)) return 'exists';
      throw this.#failed('create', key, error);
    }
  }

  async #createInBlocks(
    key: string,
    body: ObjectBody,
    options: Sdk.BlockBlobCommitBlockListOptions,
  ): Promise<void> {
    const blob = this.#blob(key);
    const size = bodyBytes(body);
    const blockBytes = Math.max(BLOCK_BYTES, Math.ceil(size / MAX_BLOCKS));
    // Blocks of a blob that does not exist yet belong to nobody: with names of one's own, another writer's cannot be among them.
    const upload = randomBytes(8).toString('hex');
    const ids = Array.from({ length: Math.ceil(size / blockBytes) }, (_, index) =>
      Buffer.from(`${upload}-${String(index).padStart(6, '0')}`).toString('base64'),
    );
    let next = 0;
    const worker = async (): Promise<void> => {
      while (next < ids.length) {
        const index = next;
        next += 1;
        const start = index * blockBytes;
        const bytes = await bodyPart(body, start, Math.min(size, start + blockBytes));
        const abortSignal = this.#limited(bytes.length);
        await blob.stageBlock(ids[index]!, bytes, bytes.length, { abortSignal });
      }
    };
    await Promise.all(Array.from({ length: BLOCKS_AT_ONCE }, worker));
    try {
      await blob.commitBlockList(ids, { ...options, abortSignal: this.#limited() });
    } catch (error) {
      // Another writer's commit has thrown our blocks away.
      if (codeOf(error) === 'InvalidBlockList' && (await blob.exists())) throw new Taken();
      throw error;
    }
  }

  async read(key: string): Promise<VersionedObject> {
    try {
      const { etag, readableStreamBody } = await this.#blob(key).download(0, undefined, {
        abortSignal: this.#limited(),
      });
      return { bytes: Buffer.from(await text(readableStreamBody!)), version: etag };
    } catch (error) {
      const failed = this.#failed('read', key, error);
      if (failed.code === 'ERR_BACKUP_MISSING') return { bytes: Buffer.alloc(0), version: undefined };
      throw failed;
    }
  }

  async compareAndSet(key: string, version: string | undefined, bytes: Uint8Array): Promise<boolean> {
    const conditions = version === undefined ? { ifNoneMatch: '*' } : { ifMatch: version };
    try {
      await this.#blob(key).upload(bytes, bytes.length, { conditions, abortSignal: this.#limited() });
      return true;
    } catch (error) {
      if (isTaken(error)) return false;
      throw this.#failed('write', key, error);
    }
  }

  async remove(keys: readonly string[]): Promise<void> {
    for (let at = 0; at < keys.length; at += REMOVE_AT_ONCE) {
      await Promise.all(
        keys.slice(at, at + REMOVE_AT_ONCE).map(async (key) => {
          try {
            await this.#blob(key).deleteIfExists({ abortSignal: this.#limited() });
          } catch (error) {
            throw this.#failed('remove', key, error);
          }
        }),
      );
    }
  }

  close(): void {
    this.#closed.abort();
  }

  /** Ends a request that takes too long for so many bytes, and all when the destination is closed. */
  #limited(bytes = 0): AbortSignal {
    return AbortSignal.any([AbortSignal.timeout(limitMs(bytes)), this.#closed.signal]);
  }

  #blob(key: string): Sdk.BlockBlobClient {
    return this.#container.getBlockBlobClient(this.#prefix + key);
  }

  #failed(what: string, key: string, error: unknown): KiteError {
    if (error instanceof KiteError) return error;
    const code = codeOf(error);
    if (code === 'BlobNotFound') return missingObject(this.url, key);
    // The first line: after it come ids of the request. The library's error is not kept as the cause, because it has the request's URL, which may be signed.
    const [said = ''] = ((error as { message?: string }).message ?? '').split('\n');
    const message = `${this.url}: cannot ${what} ${key === '' ? 'it' : key}: ${code}${said && ` (${said})`}`;
    return new KiteError(kindOf(code, statusOf(error)), message);
  }
}

/** Somebody else has made this object. */
class Taken extends Error {}

const codeOf = (error: unknown): string => {
  const { code, name, details } = error as {
    code?: string;
    name?: string;
    details?: { errorCode?: string };
  };
  return details?.errorCode ?? code ?? name ?? 'Error';
};

const statusOf = (error: unknown): number => (error as { statusCode?: number }).statusCode ?? 0;

const isTaken = (error: unknown): boolean =>
  error instanceof Taken ||
  statusOf(error) === 412 ||
  (statusOf(error) === 409 && codeOf(error) === 'BlobAlreadyExists');

const DENIED =
  /CredentialUnavailable|AuthenticationRequired|AuthenticationError|AggregateAuthenticationError/;

function kindOf(
  code: string,
  status: number,
): 'ERR_BACKUP_NO_BUCKET' | 'ERR_BACKUP_DENIED' | 'ERR_BACKUP_UNREACHABLE' {
  if (code === 'ContainerNotFound') return 'ERR_BACKUP_NO_BUCKET';
  if (status === 401 || status === 403 || DENIED.test(code)) return 'ERR_BACKUP_DENIED';
  return 'ERR_BACKUP_UNREACHABLE';
}
