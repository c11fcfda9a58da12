import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { KiteError } from '../errors.js';
import { azureUrl, openAzure, type AzureSettings } from './azure.js';
import type { Destination } from './destination.js';
import { DirectoryDestination, directoryUrl } from './directory.js';
import { gcsUrl, openGcs, type GcsSettings } from './gcs.js';
import { openS3, s3Url, type S3Settings } from './s3.js';
import { openSftp, sftpUrl, type SftpSettings } from './sftp.js';

/** What a destination is made from: Litestream's keys of a replica. */
export type DestinationSettings =
  | S3Settings
  | GcsSettings
  | AzureSettings
  | SftpSettings
  | { readonly type: 'file'; readonly path: string };

/**
 * Opens a destination; makes no request yet. `pageSize` is how many names an object store may put into one answer. Throws
 * ERR_BACKUP_DENIED for credentials that cannot be any.
 */
export async function openDestination(settings: DestinationSettings, pageSize = 1000): Promise<Destination> {
  if (settings.type === 's3') return await openS3(settings, pageSize);
  if (settings.type === 'gs') return await openGcs(settings, pageSize);
  if (settings.type === 'abs') return await openAzure(settings, pageSize);
  if (settings.type === 'sftp') return await openSftp(settings);
  return new DirectoryDestination(resolve(settings.path));
}

/** For people; has no secrets. */
export function describeDestination(settings: DestinationSettings): string {
  if (settings.type === 's3') return s3Url(settings);
  if (settings.type === 'gs') return gcsUrl(settings);
  if (settings.type === 'abs') return azureUrl(settings);
  if (settings.type === 'sftp') return sftpUrl(settings);
  return directoryUrl(resolve(settings.path));
}

/** Kinds of Litestream that are not there. */
export const OTHER_KINDS: readonly string[] = ['webdav', 'webdavs', 'nats', 'oss'];

/** What may be said behind the `?` of a URL, without hyphens; no secrets. */
const QUERY: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  s3: {
    endpoint: 'endpoint',
    region: 'region',
    forcepathstyle: 'forcePathStyle',
    skipverify: 'skipVerify',
  },
  gs: { endpoint: 'endpoint' },
  abs: { endpoint: 'endpoint' },
  sftp: { keypath: 'keyPath', hostkey: 'hostKey' },
  file: {},
};

/**
 * Takes a Litestream URL: `s3://bucket/path?endpoint=…&region=…`, `gs://bucket/path`, `abs://account@container/path`,
 * `sftp://user@host:port/path` (`/~/path`: below the folder in which a login begins), `file:///path`. Throws ERR_BACKUP_URL. The URL has
 * no secrets: they come from the environment, a file or the machine's role.
 */
export function parseDestinationUrl(text: string): DestinationSettings {
  const bad = (why: string): KiteError =>
    new KiteError('ERR_BACKUP_URL', `${text.replace(/\/\/[^/@]*@/, '//…@')} is no place for backups: ${why}`);
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw bad('it is no URL');
  }
  const type = url.protocol.slice(0, -1);
  if (OTHER_KINDS.includes(type)) throw bad(`${type} is not supported`);
  if (!Object.hasOwn(QUERY, type))
    throw bad(type === 'gcs' ? 'write gs://' : 'only s3, gs, abs, sftp and file are known');
  if (url.password !== '' || (url.username !== '' && type !== 'abs' && type !== 'sftp'))
    throw bad(
      'it has credentials; they come from the environment or the configuration (docs/backup.md), and nobody sees them there',
    );
  const settings: Record<string, unknown> = {};
  // A folder's name may hold anything.
  for (const [name, value] of type === 'file' ? [] : url.searchParams) {
    const key = QUERY[type]![name.replaceAll('-', '').toLowerCase()];
    if (key === undefined) throw bad(`${name} is unknown`);
    settings[key] = key === 'forcePathStyle' || key === 'skipVerify' ? value === 'true' : value;
  }
  if (type === 'file') return { type, path: fileURLToPath(url) };
  const path = decodeURIComponent(url.pathname);
  const user = decodeURIComponent(url.username);
  if (type === 'sftp') {
    if (url.hostname === '' || user === '') throw bad('it names no user or no host: sftp://user@host/path');
    return { ...settings, type, user, host: url.host, path: sftpPath(path.replace(/^\/~(\/|$)/, '')) };
  }
  if (url.hostname === '') throw bad('it names no bucket');
  const place = { bucket: url.hostname, path: path.replaceAll(/^\/+|\/+$/g, '') };
  if (type === 'abs') return { ...settings, type, ...place, ...(user !== '' && { accountName: user }) };
  return { ...settings, type: type as 's3' | 'gs', ...place };
}

/** A path on a server: no slash at its end, unless it is all there is. */
export const sftpPath = (path: string): string => path.replace(/(?<=.)\/+$/, '');
