import type { BackupSettings } from '../backup/messages.js';
import type { AzureSettings } from '../backup/azure.js';
import type { GcsSettings } from '../backup/gcs.js';
import { parseHostKey } from '../backup/known-hosts.js';
import { OTHER_KINDS, parseDestinationUrl, sftpPath, type DestinationSettings } from '../backup/open.js';
import type { S3Settings } from '../backup/s3.js';
import type { SftpSettings } from '../backup/sftp.js';
import { KiteError } from '../errors.js';
import { nearest } from './nearest.js';
import { parseBoolean, parseDuration, parseInteger, parseList, parseSize } from './values.js';

/** What is wrong with one part of a value, in words: the rest of it may hold secrets and is not shown. */
export class BadValue extends Error {}

type Raw = Readonly<Record<string, unknown>>;

const S3_KEYS = [
  'bucket',
  'endpoint',
  'region',
  'force-path-style',
  'skip-verify',
  'access-key-id',
  'secret-access-key',
  'storage-class',
  'sse-customer-algorithm',
  'sse-customer-key',
  'sse-kms-key-id',
  'part-size',
  'concurrency',
] as const;
const GCS_KEYS = ['bucket', 'endpoint'] as const;
const AZURE_KEYS = ['bucket', 'endpoint', 'account-name', 'account-key', 'sas-token'] as const;
const SFTP_KEYS = ['host', 'user', 'password', 'key-path', 'host-key', 'concurrent-writes'] as const;
/** What each kind has beside the common keys. */
const KEYS: Readonly<Record<DestinationSettings['type'], readonly string[]>> = {
  s3: S3_KEYS,
  gs: GCS_KEYS,
  abs: AZURE_KEYS,
  sftp: SFTP_KEYS,
  file: [],
};
const COMMON_KEYS = [
  'type',
  'url',
  'path',
  'sync-interval',
  'snapshot',
  'levels',
  'l0-retention',
  'retention',
] as const;

const DEFAULT_LEVELS = [{ interval: '30s' }, { interval: '5m' }, { interval: '1h' }];

/**
 * Reads `backups`: a list of Litestream's replicas, each with its intervals beside it; elsewhere URLs separated by commas. Throws
 * BadValue for what cannot be; undefined when it is no such list at all.
 */
export function parseBackups(raw: unknown): readonly BackupSettings[] | undefined {
  const items: unknown[] | undefined = Array.isArray(raw) ? raw : parseList(raw)?.map((url) => ({ url }));
  const backups = items?.map((item, index) => {
    if (typeof item !== 'object' || item === null || Array.isArray(item)) return undefined;
    return new Entry(item as Raw, `entry ${index + 1}`).read();
  });
  return backups?.every((entry) => entry !== undefined) ? backups : undefined;
}

/** Reads `follow`: the URL of a place of backups. Throws BadValue for one that cannot be. */
export function parseFollow(raw: unknown): DestinationSettings | undefined {
  if (typeof raw !== 'string' || raw === '') return undefined;
  try {
    return parseDestinationUrl(raw);
  } catch (error) {
    if (error instanceof KiteError) throw new BadValue(error.message);
    throw error;
  }
}

/** One entry, read key by key; every error names the key. */
class Entry {
  readonly #raw: Raw;
  readonly #where: string;

  constructor(raw: Raw, where: string) {
    this.#raw = raw;
    this.#where = where;
  }

  read(): BackupSettings {
    const raw = this.#raw;
    const destination = this.#destination();
    checkKeys(raw, [...COMMON_KEYS, ...KEYS[destination.type]], this.#where);
    const snapshot = this.#group('snapshot', ['interval', 'retention']);
    const retention = this.#group('retention', ['enabled']);
    const levels = raw['levels'] ?? DEFAULT_LEVELS;
    if (!Array.isArray(levels) || levels.length > 8)
      throw this.#bad('levels: expected a list of up to 8 {interval: …}');
    const settings = {
      destination,
      syncIntervalMs: duration(raw, 'sync-interval', '1s', this.#where),
      levelIntervalsMs: levels.map((level: unknown, i) => {
        const where = `${this.#where}, level ${i + 1}`;
        const group = (level ?? {}) as Raw;
        checkKeys(group, ['interval'], where);
        return duration(group, 'interval', '', where);
      }),
      snapshotIntervalMs: duration(snapshot, 'interval', '24h', `${this.#where}, snapshot`),
      retentionMs: duration(snapshot, 'retention', '24h', `${this.#where}, snapshot`),
      l0RetentionMs: duration(raw, 'l0-retention', '5m', this.#where),
      retentionEnabled: read(retention, 'enabled', 'true', parseBoolean, 'true or false', this.#where),
    };
    const { snapshotIntervalMs, retentionMs, levelIntervalsMs } = settings;
    if ([snapshotIntervalMs, retentionMs, ...levelIntervalsMs].some((ms) => ms < 1))
      throw this.#bad('intervals and the retention must be more than 0');
    return settings;
  }

  #destination(): DestinationSettings {
    const { url, type, path = '', bucket } = this.#raw;
    if (url !== undefined) {
      if (type !== undefined || bucket !== undefined || this.#raw['path'] !== undefined)
        throw this.#bad('url stands for type, bucket and path: give one or the other');
      if (typeof url !== 'string') throw this.#bad('url: expected text');
      return this.#ofUrl(url);
    }
    if (type === 'file') {
      if (typeof path !== 'string' || path === '')
        throw this.#bad('path: type file needs the path of a folder');
      return { type, path };
    }
    if (type === 'sftp') {
      if (typeof path !== 'string') throw this.#bad('path: expected text');
      return this.#sftp({ path: sftpPath(path) });
    }
    if (type === 's3' || type === 'gs' || type === 'abs') {
      if (typeof bucket !== 'string' || bucket === '')
        throw this.#bad(`bucket: type ${type} needs the name of a bucket`);
      const place = { bucket, path: String(path).replaceAll(/^\/+|\/+$/g, '') };
      if (type === 's3') return { ...this.#s3(), type, ...place };
      return type === 'gs' ? { ...this.#gcs(), type, ...place } : { ...this.#azure(), type, ...place };
    }
    const kinds = 's3, gs, abs, sftp or file';
    if (OTHER_KINDS.includes(String(type)) || type === 'gcs')
      throw this.#bad(`type ${String(type)} is not there; expected ${kinds}`);
    throw this.#bad(
      `type: expected ${kinds}${type === undefined ? ', or a url' : `, found ${JSON.stringify(type)}`}`,
    );
  }

  #ofUrl(url: string): DestinationSettings {
    let settings: DestinationSettings;
    try {
      settings = parseDestinationUrl(url);
    } catch (error) {
      if (error instanceof KiteError) throw this.#bad(error.message);
      throw error;
    }
    if (settings.type === 's3') return { ...settings, ...this.#s3() };
    if (settings.type === 'gs') return { ...settings, ...this.#gcs() };
    if (settings.type === 'abs') return { ...settings, ...this.#azure() };
    return settings.type === 'sftp' ? this.#sftp(settings) : settings;
  }

  #text(key: string): string | undefined {
    const parse = (value: unknown): string | undefined =>
      typeof value === 'string' && value !== '' ? value : undefined;
    return read(this.#raw, key, undefined, parse, 'text', this.#where);
  }

  #endpoint(): string | undefined {
    const endpoint = this.#text('endpoint');
    if (endpoint !== undefined && !URL.canParse(endpoint))
      throw this.#bad('endpoint: expected a URL such as https://s3.example.com');
    return endpoint;
  }

  #gcs(): Partial<GcsSettings> {
    return given({ endpoint: this.#endpoint() });
  }

  #azure(): Partial<AzureSettings> {
    const settings = {
      accountName: this.#text('account-name'),
      accountKey: this.#text('account-key'),
      sasToken: this.#text('sas-token'),
      endpoint: this.#endpoint(),
    };
    if (settings.accountKey !== undefined && settings.sasToken !== undefined)
      throw this.#bad('account-key and sas-token: give one of them');
    return given(settings);
  }

  #sftp(from: Pick<SftpSettings, 'path'> & Partial<SftpSettings>): SftpSettings {
    const { host, user, ...rest } = {
      ...from,
      ...given({
        host: this.#text('host'),
        user: this.#text('user'),
        password: this.#text('password'),
        keyPath: this.#text('key-path'),
        hostKey: this.#text('host-key'),
        concurrentWrites: read(
          this.#raw,
          'concurrent-writes',
          undefined,
          parseBoolean,
          'true or false',
          this.#where,
        ),
      }),
    };
    if (host === undefined || user === undefined) throw this.#bad('type sftp needs host and user');
    if (rest.hostKey !== undefined && parseHostKey(rest.hostKey) === undefined)
      throw this.#bad('host-key: expected a public key such as "ssh-ed25519 AAAA…"');
    return { ...rest, type: 'sftp', host, user };
  }

  #s3(): Partial<S3Settings> {
    const raw = this.#raw;
    const where = this.#where;
    const text = (key: (typeof S3_KEYS)[number]): string | undefined => this.#text(key);
    const flag = (key: (typeof S3_KEYS)[number]): boolean | undefined =>
      read(raw, key, undefined, parseBoolean, 'true or false', where);
    const settings: Partial<S3Settings> = {
      endpoint: this.#endpoint(),
      region: text('region'),
      forcePathStyle: flag('force-path-style'),
      skipVerify: flag('skip-verify'),
      accessKeyId: text('access-key-id'),
      secretAccessKey: text('secret-access-key'),
      storageClass: text('storage-class'),
      sseCustomerAlgorithm: text('sse-customer-algorithm'),
      sseCustomerKey: text('sse-customer-key'),
      sseKmsKeyId: text('sse-kms-key-id'),
      partSizeBytes: read(raw, 'part-size', undefined, parseSize, 'a size such as 8MB', where),
      concurrency: read(raw, 'concurrency', undefined, parseInteger, 'a whole number', where),
    };
    if ((settings.accessKeyId === undefined) !== (settings.secretAccessKey === undefined))
      throw this.#bad('access-key-id and secret-access-key need one another');
    if ((settings.partSizeBytes ?? MIN_PART_BYTES) < MIN_PART_BYTES)
      throw this.#bad('part-size: at least 5MB');
    return given(settings);
  }

  #group(key: string, keys: readonly string[]): Raw {
    const group = this.#raw[key] ?? {};
    if (typeof group !== 'object' || Array.isArray(group))
      throw this.#bad(`${key}: expected {${keys.map((name) => `${name}: …`).join(', ')}}`);
    checkKeys(group as Raw, keys, `${this.#where}, ${key}`);
    return group as Raw;
  }

  #bad(text: string): BadValue {
    return new BadValue(`${this.#where}: ${text}`);
  }
}

const MIN_PART_BYTES = 5 << 20;

/** Without the keys that have no value. */
const given = <T extends object>(settings: T): Partial<T> =>
  Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined)) as Partial<T>;

function checkKeys(raw: Raw, known: readonly string[], where: string): void {
  for (const key of Object.keys(raw)) {
    if (known.includes(key)) continue;
    const near = nearest(key, known);
    throw new BadValue(`${where}: unknown key ${key}${near === undefined ? '' : `; did you mean ${near}?`}`);
  }
}

function read<T>(
  raw: Raw,
  key: string,
  fallback: string,
  parse: (value: unknown) => T | undefined,
  form: string,
  where: string,
): T;
function read<T>(
  raw: Raw,
  key: string,
  fallback: undefined,
  parse: (value: unknown) => T | undefined,
  form: string,
  where: string,
): T | undefined;
function read<T>(
  raw: Raw,
  key: string,
  fallback: string | undefined,
  parse: (value: unknown) => T | undefined,
  form: string,
  where: string,
): T | undefined {
  const given = raw[key] ?? fallback;
  if (given === undefined) return undefined;
  const value = parse(given);
  // The value itself may be a secret.
  if (value === undefined) throw new BadValue(`${where}: ${key}: expected ${form}`);
  return value;
}

const duration = (raw: Raw, key: string, fallback: string, where: string): number =>
  read(raw, key, fallback, parseDuration, 'a duration such as 1s, 5m or 24h', where);
