import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { KiteError } from '../errors.js';
import type { Destination } from './destination.js';
import { DirectoryDestination, directoryUrl } from './directory.js';
import { openS3, s3Url, type S3Settings } from './s3.js';

/** What a destination is made from: Litestream's keys of a replica. */
export type DestinationSettings = S3Settings | { readonly type: 'file'; readonly path: string };

/** Opens a destination; makes no request yet. */
export async function openDestination(settings: DestinationSettings): Promise<Destination> {
  if (settings.type === 's3') return await openS3(settings);
  return new DirectoryDestination(resolve(settings.path));
}

/** For people; has no secrets. */
export const describeDestination = (settings: DestinationSettings): string =>
  settings.type === 's3' ? s3Url(settings) : directoryUrl(resolve(settings.path));

/** Schemes of Litestream that a later version brings. */
const LATER = ['gs', 'gcs', 'abs', 'sftp', 'webdav', 'webdavs', 'nats', 'oss'];

/**
 * Takes a Litestream URL: `s3://bucket/path?endpoint=…&region=…`, `file:///path`. Throws ERR_BACKUP_URL. The URL has no
 * credentials: they come from the environment, a file or the machine's role.
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
  const scheme = url.protocol.slice(0, -1);
  if (LATER.includes(scheme)) throw bad(`${scheme} comes with a later version`);
  if (url.username || url.password)
    throw bad('it has credentials; give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment');
  if (scheme === 'file') return { type: 'file', path: fileURLToPath(url) };
  if (scheme !== 's3') throw bad('only s3 and file are known');
  if (!url.hostname) throw bad('it names no bucket');
  const settings: Record<string, unknown> = {};
  for (const [name, value] of url.searchParams) {
    const key = QUERY[name.replaceAll('-', '').toLowerCase()];
    if (!key) throw bad(`${name} is unknown`);
    settings[key] = key === 'forcePathStyle' || key === 'skipVerify' ? value === 'true' : value;
  }
  return {
    ...settings,
    type: 's3',
    bucket: url.hostname,
    path: decodeURIComponent(url.pathname).replaceAll(/^\/+|\/+$/g, ''),
  };
}

const QUERY: Readonly<Record<string, keyof S3Settings>> = {
  endpoint: 'endpoint',
  region: 'region',
  forcepathstyle: 'forcePathStyle',
  skipverify: 'skipVerify',
};
