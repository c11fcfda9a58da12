import { createHash } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { readFileSync } from 'node:fs';
import { Agent as HttpAgent, type IncomingMessage } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import Consul from 'consul';
import { KiteError } from '../errors.js';
import { monotonicMs } from '../util/clock.js';
import { decodeMember, decodeRecord, encodeMember, encodeRecord } from './record.js';
import type { LeaseAdapter, LeaseRecord, Member, VersionedRecord } from './types.js';

export interface ConsulLeaseOptions {
  /** `https://:TOKEN@host:8501/prefix/`, as FLY_CONSUL_URL: the password is the ACL token, the path goes before the key. */
  readonly url: string;
  /** Key of the record; members are keys below `<key>/members/`. */
  readonly key: string;
  /** ACL token; before the one in the URL. */
  readonly token?: string | undefined;
  /** File of the authorities (PEM) to trust instead of the system's. */
  readonly caFile?: string | undefined;
  readonly clientCert?: string | undefined;
  readonly clientKey?: string | undefined;
  /** The name in Consul's certificate, where it is not the host of the URL. */
  readonly tlsServerName?: string | undefined;
  readonly tlsSkipVerify?: boolean;
}

/**
 * The lease as a key of Consul, changed by check-and-set on its ModifyIndex. No session: its TTL (doubled by
 * Consul), its lock-delay and its health checks are what the lease must not depend on (docs/decisions/010).
 * Throws ERR_CONFIG_INVALID when a file of certificates cannot be read; calls nothing yet.
 */
export function openConsulLease(options: ConsulLeaseOptions): LeaseAdapter {
  return new ConsulLease(options);
}

/** What the package offers and its types leave out: common options of every call, of which timeout matters most. */
interface CallOptions {
  readonly timeout: number;
  readonly ctx: CallContext;
  readonly consistent?: boolean;
  readonly index?: string;
  readonly wait?: string;
}

/** The package cancels by an event, and puts the response before the answer when asked here. */
class CallContext extends EventEmitter {
  readonly includeResponse = true;
}

interface Entry {
  readonly Key: string;
  readonly ModifyIndex: number;
  readonly Value: string | null;
}

interface Api {
  readonly kv: {
    get(options: CallOptions & { key: string }): Promise<[IncomingMessage, Entry?]>;
    get(options: CallOptions & { key: string; recurse: true }): Promise<[IncomingMessage, Entry[]?]>;
    set(options: CallOptions & { key: string; value: string }): Promise<[IncomingMessage, boolean]>;
    del(options: CallOptions & { key: string }): Promise<unknown>;
  };
  readonly transaction: {
    create(
      operations: readonly object[],
      options: CallOptions,
    ): Promise<[IncomingMessage, { Results: { KV: Entry }[] }]>;
  };
  destroy(): void;
}

/** The version of a record that is not there: to Consul's check-and-set, index 0 is "only if absent". */
const ABSENT = '0';

/** With the content, because the indexes of a Consul that was wiped begin again. */
const versionOf = (index: number, text: string): string =>
  `${index}-${createHash('sha256').update(text).digest('hex').slice(0, 16)}`;

const indexOf = (version: string): number => Number.parseInt(version, 10);

/** Between two looks of a watch that Consul answered early. */
const PAUSE_MS = 50;

class ConsulLease implements LeaseAdapter {
  readonly remote = true;
  readonly #api: Api;
  readonly #address: string;
  readonly #token: string | undefined;
  readonly #key: string;
  readonly #calls = new Set<CallContext>();
  /** Consul's index when the key was last seen absent, for a watch to begin at. */
  #absentAt: string | undefined;
  #closed = false;

  constructor(options: ConsulLeaseOptions) {
    const url = new URL(options.url);
    const secure = url.protocol === 'https:';
    this.#address = `${url.protocol}//${url.host}`;
    this.#token = options.token ?? (decodeURIComponent(url.password) || undefined);
    this.#key = [...url.pathname.split('/'), ...options.key.split('/')].filter(Boolean).join('/');
    const agent = secure
      ? new HttpsAgent({ keepAlive: true, ...tls(options) })
      : new HttpAgent({ keepAlive: true });
    this.#api = new Consul({
      host: url.hostname,
      port: Number(url.port || (secure ? 443 : 80)),
      secure,
      agent,
      ...(this.#token !== undefined && { defaults: { token: this.#token } }),
    }) as unknown as Api;
  }

  async read(timeoutMs: number): Promise<VersionedRecord> {
    return await this.#look(timeoutMs, {});
  }

  async compareAndSet(expected: string, record: LeaseRecord, timeoutMs: number): Promise<string | undefined> {
    const text = encodeRecord(record);
    const Value = Buffer.from(text).toString('base64');
    // A transaction of one operation, because it alone answers with the new index: a second call to learn
    // it might see a later version.
    const operation = { KV: { Verb: 'cas', Key: this.#key, Index: indexOf(expected), Value } };
    return await this.#call('write', timeoutMs, async (options) => {
      try {
        const [, { Results }] = await this.#api.transaction.create([operation], options);
        return versionOf(Results[0]!.KV.ModifyIndex, text);
      } catch (error) {
        if (isStale(error)) return undefined;
        throw error;
      }
    });
  }

  /** One blocking query, or several when Consul answers early; an answer may come up to a sixteenth later than it was asked for. */
  async watch(version: string, waitMs: number): Promise<VersionedRecord> {
    const untilMs = monotonicMs() + waitMs;
    for (;;) {
      const leftMs = Math.max(1, untilMs - monotonicMs());
      const index = version === ABSENT ? this.#absentAt : String(indexOf(version));
      const wait = `${Math.ceil((leftMs * 15) / 16)}ms`;
      const seen = await this.#look(leftMs + waitMs / 2, index === undefined ? {} : { index, wait });
      if (seen.version !== version || monotonicMs() >= untilMs - PAUSE_MS) return seen;
      await sleep(PAUSE_MS);
    }
  }

  async register(member: Member, timeoutMs: number): Promise<void> {
    const key = this.#memberKey(member.nodeId);
    await this.#call('write', timeoutMs, (options) =>
      this.#api.kv.set({ ...options, key, value: encodeMember(member) }),
    );
  }

  async members(timeoutMs: number): Promise<readonly Member[]> {
    const key = this.#memberKey('');
    const [response, entries = []] = await this.#call('read', timeoutMs, (options) =>
      this.#api.kv.get({ ...options, key, recurse: true }),
    );
    this.#assertConsul(response);
    return entries.flatMap(({ Value }) => {
      try {
        return [decodeMember(Value ?? '')];
      } catch {
        return []; // a stray key must not stop an election
      }
    });
  }

  async unregister(nodeId: string, timeoutMs: number): Promise<void> {
    const key = this.#memberKey(nodeId);
    await this.#call('write', timeoutMs, (options) => this.#api.kv.del({ ...options, key }));
  }

  close(): Promise<void> {
    this.#closed = true;
    for (const call of this.#calls) call.emit('cancel');
    this.#api.destroy();
    return Promise.resolve();
  }

  async #look(timeoutMs: number, query: { index?: string; wait?: string }): Promise<VersionedRecord> {
    const [response, entry] = await this.#call('read', timeoutMs, (options) =>
      // Consistent: the leader asks its peers whether it still leads before it answers.
      this.#api.kv.get({ ...options, key: this.#key, consistent: true, ...query }),
    );
    const index = this.#assertConsul(response);
    if (!entry) {
      this.#absentAt = index;
      return { record: undefined, version: ABSENT };
    }
    const text = entry.Value ?? '';
    return { record: this.#decode(text), version: versionOf(entry.ModifyIndex, text) };
  }

  #decode(value: string): LeaseRecord {
    try {
      return decodeRecord(value);
    } catch (error) {
      const message = `the key ${this.#key} of Consul at ${this.#address}: ${(error as Error).message}`;
      throw new KiteError('ERR_LEASE_RECORD', message, { cause: error });
    }
  }

  /** "Not found" from anything but Consul must not pass for a key that is absent. */
  #assertConsul(response: IncomingMessage): string {
    const index = response.headers['x-consul-index'];
    if (typeof index === 'string') return index;
    throw new KiteError('ERR_LEASE_UNREACHABLE', `what answers at ${this.#address} is not Consul`);
  }

  /** Makes a call that ends at its timeout, with this adapter, and with errors that show no secret. */
  async #call<T>(
    what: 'read' | 'write',
    timeoutMs: number,
    call: (options: CallOptions) => Promise<T>,
  ): Promise<T> {
    if (this.#closed) throw new KiteError('ERR_LEASE_UNREACHABLE', 'The lease is closed');
    const ctx = new CallContext();
    this.#calls.add(ctx);
    try {
      return await call({ ctx, timeout: Math.ceil(timeoutMs) });
    } catch (error) {
      throw this.#failure(what, error);
    } finally {
      this.#calls.delete(ctx);
    }
  }

  #failure(what: string, error: unknown): KiteError {
    const { statusCode } = responseOf(error) ?? {};
    const denied = statusCode === 403 || refusals(error).some((text) => /permission denied|ACL/i.test(text));
    let why = refusals(error)[0] ?? messageOf(error).replace(/^consul: /, '') + bodyOf(error);
    if (this.#token !== undefined) why = why.replaceAll(this.#token, '(token)');
    // Without its cause: that holds the request, and the token in it.
    return new KiteError(
      denied ? 'ERR_LEASE_DENIED' : 'ERR_LEASE_UNREACHABLE',
      denied
        ? `Consul at ${this.#address} lets this node not ${what} ${this.#key} (${why})`
        : `Consul at ${this.#address}: ${why}`,
    );
  }

  #memberKey(nodeId: string): string {
    return `${this.#key}/members/${encodeURIComponent(nodeId)}`;
  }
}

function tls(options: ConsulLeaseOptions) {
  return {
    ...(options.caFile !== undefined && { ca: readPem('ca-file', options.caFile) }),
    ...(options.clientCert !== undefined && { cert: readPem('client-cert', options.clientCert) }),
    ...(options.clientKey !== undefined && { key: readPem('client-key', options.clientKey) }),
    ...(options.tlsServerName !== undefined && { servername: options.tlsServerName }),
    rejectUnauthorized: !(options.tlsSkipVerify ?? false),
  };
}

function readPem(key: string, path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new KiteError('ERR_CONFIG_INVALID', `lease.consul.${key}: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/** A host with several addresses fails with several errors and no message of its own. */
function messageOf(error: unknown): string {
  const [first] = (error as { errors?: unknown[] }).errors ?? [];
  return first instanceof Error ? first.message : (error as Error).message;
}

/** What came with an answer such as "bad request": that HTTP was spoken where HTTPS is, for instance. */
function bodyOf(error: unknown): string {
  const body = responseOf(error)?.body;
  const text = body instanceof Buffer || typeof body === 'string' ? body.toString().trim() : '';
  return text === '' ? '' : ` (${text.split('\n')[0]!.slice(0, 100)})`;
}

interface Refusal extends IncomingMessage {
  readonly body?: unknown;
}

const responseOf = (error: unknown): Refusal | undefined =>
  (error as { response?: Refusal } | undefined)?.response;

/** What a transaction that was not made says of each operation. */
function refusals(error: unknown): string[] {
  const body = responseOf(error)?.body as { Errors?: { What?: string }[] } | undefined;
  return (body?.Errors ?? []).map(({ What = '' }) => What);
}

const isStale = (error: unknown): boolean =>
  responseOf(error)?.statusCode === 409 && refusals(error).some((text) => text.endsWith('index is stale'));
