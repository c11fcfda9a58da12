import { createHash } from 'node:crypto';
import { Agent } from 'node:https';
import type * as Sdk from '@aws-sdk/client-s3';
import { KiteError } from '../errors.js';
import {
  missingObject,
  type ByteRange,
  type Destination,
  type ObjectBody,
  type StoredObject,
  type VersionedObject,
} from './destination.js';
import { bodyBytes, bodyPart, nothing } from './parts.js';

/** Litestream's keys of a replica of type s3. */
export interface S3Settings {
  readonly type: 's3';
  readonly bucket: string;
  /** Where in the bucket, without slashes at its ends; may be empty. */
  readonly path: string;
  readonly endpoint?: string | undefined;
  readonly region?: string | undefined;
  /** Bucket in the path of the URL, not in the host name; the default with an endpoint. */
  readonly forcePathStyle?: boolean | undefined;
  /** Take any certificate. */
  readonly skipVerify?: boolean | undefined;
  readonly accessKeyId?: string | undefined;
  readonly secretAccessKey?: string | undefined;
  readonly storageClass?: string | undefined;
  readonly sseCustomerAlgorithm?: string | undefined;
  /** 32 bytes in base64. */
  readonly sseCustomerKey?: string | undefined;
  readonly sseKmsKeyId?: string | undefined;
  readonly partSizeBytes?: number | undefined;
  readonly concurrency?: number | undefined;
}

/** Bodies up to this go in one request. */
const SINGLE_PUT_BYTES = 16 * 1024 * 1024;
const PART_BYTES = 8 * 1024 * 1024;
/** S3 takes 10 000 parts. */
const MAX_PARTS = 9_000;
const REMOVE_AT_ONCE = 1000;

/** For people. */
export const s3Url = ({ bucket, path }: S3Settings): string => `s3://${bucket}${path && `/${path}`}`;

/**
 * S3 and compatibles. The library is loaded here only, because it takes 200 ms and 30 MB that a node without such a destination
 * should not pay.
 */
export async function openS3(settings: S3Settings, pageSize: number): Promise<Destination> {
  // It writes ten lines to standard error about versions of Node.js to come.
  process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] ??= 'true';
  const sdk = await import('@aws-sdk/client-s3');
  return new S3Destination(sdk, settings, pageSize);
}

class S3Destination implements Destination {
  readonly type = 's3';
  readonly url: string;
  readonly #sdk: typeof Sdk;
  readonly #client: Sdk.S3Client;
  readonly #settings: S3Settings;
  readonly #pageSize: number;
  readonly #prefix: string;
  readonly #agent: Agent | undefined;
  /** What every request about an object says when the customer has the key. */
  readonly #sse: { SSECustomerAlgorithm?: string; SSECustomerKey?: string; SSECustomerKeyMD5?: string };

  constructor(sdk: typeof Sdk, settings: S3Settings, pageSize: number) {
    this.#sdk = sdk;
    this.#pageSize = pageSize;
    this.#settings = settings;
    this.#prefix = settings.path === '' ? '' : `${settings.path}/`;
    this.url = s3Url(settings);
    const { accessKeyId, secretAccessKey, endpoint, sseCustomerKey } = settings;
    if (settings.skipVerify) this.#agent = new Agent({ rejectUnauthorized: false, keepAlive: true });
    this.#sse = sseCustomerKey
      ? {
          SSECustomerAlgorithm: settings.sseCustomerAlgorithm ?? 'AES256',
          SSECustomerKey: sseCustomerKey,
          SSECustomerKeyMD5: createHash('md5').update(Buffer.from(sseCustomerKey, 'base64')).digest('base64'),
        }
      : {};
    this.#client = new sdk.S3Client({
      region:
        settings.region ?? process.env['AWS_REGION'] ?? process.env['AWS_DEFAULT_REGION'] ?? 'us-east-1',
      followRegionRedirects: true,
      forcePathStyle: settings.forcePathStyle ?? endpoint !== undefined,
      maxAttempts: 3,
      requestHandler: {
        connectionTimeout: 5_000,
        // A silent server must not hold a destination up for ever: the request is made again.
        socketTimeout: 30_000,
        ...(this.#agent && { httpsAgent: this.#agent }),
      },
      ...(endpoint !== undefined && {
        endpoint,
        // Many compatibles do not know the newer checksum headers and trailers.
        requestChecksumCalculation: 'WHEN_REQUIRED',
        responseChecksumValidation: 'WHEN_REQUIRED',
      }),
      ...(accessKeyId !== undefined &&
        secretAccessKey !== undefined && { credentials: { accessKeyId, secretAccessKey } }),
    });
    this.#learnRegion();
  }

  /**
   * Signs for the region that a refusal names, from then on: who runs a compatible often does not know that it has one. (The library
   * itself follows S3's redirects only.)
   */
  #learnRegion(): void {
    const { config, middlewareStack } = this.#client;
    middlewareStack.add(
      (next) => async (args) => {
        try {
          return await next(args);
        } catch (error) {
          const region = regionNamedBy(error);
          if (region === undefined || region === (await config.region())) throw error;
          config.region = async () => region;
          return await next(args);
        }
      },
      { step: 'initialize', name: 'learnRegion' },
    );
  }

  async *list(prefix: string, options: { readonly after?: string } = {}): AsyncGenerator<StoredObject> {
    const more = options.after === undefined ? {} : { StartAfter: this.#prefix + options.after };
    for await (const { Contents = [] } of this.#pages(prefix, more)) {
      for (const { Key, Size, LastModified } of Contents) {
        if (Key === undefined) continue;
        const key = Key.slice(this.#prefix.length);
        yield { key, sizeBytes: Size ?? 0, modifiedMs: LastModified?.getTime() ?? 0 };
      }
    }
  }

  async folders(prefix: string): Promise<string[]> {
    const names: string[] = [];
    for await (const { CommonPrefixes = [] } of this.#pages(prefix, { Delimiter: '/' })) {
      for (const { Prefix = '' } of CommonPrefixes)
        names.push(Prefix.slice(this.#prefix.length + prefix.length, -1));
    }
    return names;
  }

  /** A listing, which S3 gives in pages. */
  async *#pages(
    prefix: string,
    more: { StartAfter?: string; Delimiter?: string },
  ): AsyncGenerator<Sdk.ListObjectsV2CommandOutput> {
    let token: string | undefined;
    do {
      const command = new this.#sdk.ListObjectsV2Command({
        Bucket: this.#settings.bucket,
        Prefix: this.#prefix + prefix,
        ContinuationToken: token,
        MaxKeys: this.#pageSize,
        ...more,
      });
      const page = await this.#do('list', prefix, () => this.#client.send(command));
      yield page;
      token = page.IsTruncated ? page.NextContinuationToken : undefined;
    } while (token !== undefined);
  }

  async get(key: string, range?: ByteRange): Promise<AsyncIterable<Uint8Array>> {
    const { start = 0, end } = range ?? {};
    // HTTP has no range without bytes.
    if (end !== undefined && end <= start) return nothing();
    const command = new this.#sdk.GetObjectCommand({
      ...this.#object(key),
      ...this.#sse,
      ...(range && { Range: `bytes=${start}-${end === undefined ? '' : end - 1}` }),
    });
    const { Body } = await this.#do('get', key, () => this.#client.send(command));
    return this.#reading(key, Body as unknown as AsyncIterable<Uint8Array>);
  }

  /** An error in the middle of a body is one of ours too. */
  async *#reading(key: string, body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    try {
      yield* body;
    } catch (error) {
      throw this.#failed('get', key, error);
    }
  }

  async create(key: string, body: ObjectBody, timestampMs: number): Promise<'created' | 'exists'> {
    const size = bodyBytes(body);
    const head = {
      ...this.#object(key),
      ...this.#sse,
      ...this.#storage(),
      Metadata: { 'litestream-timestamp': new Date(timestampMs).toISOString() },
    };
    try {
      if (size > SINGLE_PUT_BYTES) await this.#createInParts(head, body, size);
      else {
        const bytes = await bodyPart(body, 0, size);
        await this.#client.send(new this.#sdk.PutObjectCommand({ ...head, Body: bytes, IfNoneMatch: '*' }));
      }
      return 'created';
    } catch (error) {
      if (isPrecondition(error)) return 'exists';
      throw this.#failed('create', key, error);
    }
  }

  async #createInParts(head: { Bucket: string; Key: string }, body: ObjectBody, size: number): Promise<void> {
    const { Bucket, Key } = head;
    const client = this.#client;
    const partBytes = Math.max(this.#settings.partSizeBytes ?? PART_BYTES, Math.ceil(size / MAX_PARTS));
    const { UploadId } = await client.send(new this.#sdk.CreateMultipartUploadCommand(head));
    try {
      const parts: { PartNumber: number; ETag: string | undefined }[] = [];
      let next = 0;
      const worker = async (): Promise<void> => {
        while (next * partBytes < size) {
          const index = next;
          next += 1;
          const start = index * partBytes;
          const end = Math.min(size, start + partBytes);
          const bytes = await bodyPart(body, start, end);
          const PartNumber = index + 1;
          const command = { Bucket, Key, UploadId, PartNumber, Body: bytes, ...this.#sse };
          const { ETag } = await client.send(new this.#sdk.UploadPartCommand(command));
          parts[index] = { PartNumber, ETag };
        }
      };
      await Promise.all(Array.from({ length: this.#settings.concurrency ?? 2 }, worker));
      const MultipartUpload = { Parts: parts };
      await client.send(
        new this.#sdk.CompleteMultipartUploadCommand({
          Bucket,
          Key,
          UploadId,
          MultipartUpload,
          IfNoneMatch: '*',
          ...this.#sse,
        }),
      );
    } catch (error) {
      // Parts that nobody names cost money until they are given up.
      const abort = new this.#sdk.AbortMultipartUploadCommand({ Bucket, Key, UploadId });
      await client.send(abort).catch(() => undefined);
      throw error;
    }
  }

  async read(key: string): Promise<VersionedObject> {
    try {
      const { Body, ETag } = await this.#client.send(
        new this.#sdk.GetObjectCommand({ ...this.#object(key), ...this.#sse }),
      );
      return { bytes: Buffer.from((await Body?.transformToByteArray()) ?? []), version: ETag };
    } catch (error) {
      if (codeOf(error) === 'NoSuchKey') return { bytes: Buffer.alloc(0), version: undefined };
      throw this.#failed('read', key, error);
    }
  }

  async compareAndSet(key: string, version: string | undefined, bytes: Uint8Array): Promise<boolean> {
    const condition = version === undefined ? { IfNoneMatch: '*' } : { IfMatch: version };
    try {
      await this.#client.send(
        new this.#sdk.PutObjectCommand({ ...this.#object(key), ...this.#sse, Body: bytes, ...condition }),
      );
      return true;
    } catch (error) {
      if (isPrecondition(error) || codeOf(error) === 'NoSuchKey') return false;
      throw this.#failed('write', key, error);
    }
  }

  async remove(keys: readonly string[]): Promise<void> {
    for (let at = 0; at < keys.length; at += REMOVE_AT_ONCE) {
      const Objects = keys.slice(at, at + REMOVE_AT_ONCE).map((key) => ({ Key: this.#prefix + key }));
      const command = new this.#sdk.DeleteObjectsCommand({
        Bucket: this.#settings.bucket,
        Delete: { Objects, Quiet: true },
      });
      const { Errors = [] } = await this.#do('remove', keys[at]!, () => this.#client.send(command));
      const left = Errors.find(({ Code }) => Code !== 'NoSuchKey');
      if (left) throw this.#failed('remove', left.Key ?? '', { name: left.Code, message: left.Message });
    }
  }

  close(): void {
    this.#client.destroy();
    this.#agent?.destroy();
  }

  #object(key: string): { Bucket: string; Key: string } {
    return { Bucket: this.#settings.bucket, Key: this.#prefix + key };
  }

  #storage(): object {
    const { storageClass, sseKmsKeyId } = this.#settings;
    return {
      ...(storageClass && { StorageClass: storageClass }),
      ...(sseKmsKeyId && { ServerSideEncryption: 'aws:kms', SSEKMSKeyId: sseKmsKeyId }),
    };
  }

  async #do<T>(what: string, key: string, call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (error) {
      throw this.#failed(what, key, error);
    }
  }

  #failed(what: string, key: string, error: unknown): KiteError {
    if (error instanceof KiteError) return error;
    const code = codeOf(error);
    if (code === 'NoSuchKey') return missingObject(this.url, key, error);
    // Only S3's own code and words: a message of the transport may show headers.
    const { message: text = '', Endpoint: elsewhere } = error as { message?: string; Endpoint?: string };
    const where = elsewhere === undefined ? '' : `; it is at ${elsewhere}: set region or endpoint`;
    const message = `${this.url}: cannot ${what} ${key === '' ? 'it' : key}: ${code}${text && ` (${text})`}${where}`;
    return new KiteError(kindOf(code, statusOf(error)), message, { cause: error });
  }
}

const codeOf = (error: unknown): string => {
  const { name, Code, code } = error as { name?: string; Code?: string; code?: string };
  return Code ?? (name === 'Error' || name === undefined ? (code ?? 'Error') : name);
};

const statusOf = (error: unknown): number =>
  (error as { $metadata?: { httpStatusCode?: number } }).$metadata?.httpStatusCode ?? 0;

/** 409: a conditional write met another one; it is not known which of them stays. */
const isPrecondition = (error: unknown): boolean =>
  codeOf(error) === 'PreconditionFailed' || statusOf(error) === 412;

/** Of a request that was signed for another region. */
function regionNamedBy(error: unknown): string | undefined {
  if (codeOf(error) !== 'AuthorizationHeaderMalformed') return undefined;
  const { Region, message = '' } = error as { Region?: string; message?: string };
  return Region ?? /expecting '([a-z0-9-]+)'/.exec(message)?.[1];
}

const DENIED =
  /^(AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|CredentialsProviderError|RequestTimeTooSkewed|ExpiredToken|InvalidToken|AuthorizationHeaderMalformed)$/;

function kindOf(
  code: string,
  status: number,
): 'ERR_BACKUP_NO_BUCKET' | 'ERR_BACKUP_DENIED' | 'ERR_BACKUP_UNREACHABLE' | 'ERR_BACKUP_UNSUPPORTED' {
  // Backblaze B2, of conditional writes.
  if (code === 'NotImplemented' || status === 501) return 'ERR_BACKUP_UNSUPPORTED';
  if (code === 'NoSuchBucket') return 'ERR_BACKUP_NO_BUCKET';
  if (DENIED.test(code) || status === 401 || status === 403) return 'ERR_BACKUP_DENIED';
  return 'ERR_BACKUP_UNREACHABLE';
}
