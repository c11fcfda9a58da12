import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { readObject, type Destination } from '../../src/backup/destination.js';
import { openDestination } from '../../src/backup/open.js';
import type { S3Settings } from '../../src/backup/s3.js';
import { BadLink, httpAnswer } from '../helpers/bad-link.js';
import { TestMinio } from '../helpers/minio.js';

/** What S3 and its SDK offer, as far as MinIO can show it; and what goes wrong with it. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-s3-options-'));
const OURS = [
  'AWS_ACCESS_KEY_ID',
  'AWS_SECRET_ACCESS_KEY',
  'AWS_SESSION_TOKEN',
  'AWS_PROFILE',
  'AWS_CONFIG_FILE',
];
const THEIRS = ['AWS_SHARED_CREDENTIALS_FILE', 'AWS_ENDPOINT_URL_STS', 'AWS_REGION'];
const before = Object.fromEntries([...OURS, ...THEIRS].map((name) => [name, process.env[name]]));
const opened: Destination[] = [];
let minio: TestMinio;

beforeAll(async () => {
  minio = await TestMinio.start(['backups']);
});
afterEach(() => {
  for (const destination of opened.splice(0)) destination.close();
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
});
afterAll(async () => {
  await minio.stop();
  rmSync(dir, { recursive: true, force: true });
});

const SECRET = 'a-secret-that-nobody-may-see';

async function open(more: Partial<S3Settings> = {}): Promise<Destination> {
  const place = { type: 's3', bucket: 'backups', path: 'p', endpoint: minio.endpoint } as const;
  const destination = await openDestination({ ...place, region: 'us-east-1', ...more });
  opened.push(destination);
  return destination;
}
const keys = (): Partial<S3Settings> => ({
  accessKeyId: minio.env.AWS_ACCESS_KEY_ID,
  secretAccessKey: minio.env.AWS_SECRET_ACCESS_KEY,
});

async function works(at: Destination): Promise<void> {
  const key = `k-${Math.random()}`;
  expect(await at.create(key, Buffer.from('bytes'), 0)).toBe('created');
  expect((await readObject(at, key)).toString()).toBe('bytes');
}

/** What a call is refused with. */
async function refusal(call: Promise<unknown>): Promise<{ code: string; message: string; retry: boolean }> {
  const error = await call.then(
    () => undefined,
    (thrown: unknown) => thrown as { code: string; message: string; row: { retry: boolean } },
  );
  expect(error).toBeDefined();
  const { code, message, row } = error!;
  return { code, message, retry: row.retry };
}

it('takes credentials from the environment, from a profile, and from a role that the profile takes on', async () => {
  Object.assign(process.env, minio.env);
  await works(await open());
  for (const name of Object.keys(minio.env)) delete process.env[name];
  const credentials = join(dir, 'credentials');
  const config = join(dir, 'config');
  writeFileSync(
    credentials,
    `[base]\naws_access_key_id = ${minio.env.AWS_ACCESS_KEY_ID}\naws_secret_access_key = ${minio.env.AWS_SECRET_ACCESS_KEY}\n`,
  );
  // The role's credentials have a session token, which MinIO asks for.
  writeFileSync(
    config,
    '[profile base]\nregion = us-east-1\n[profile role]\nregion = us-east-1\nrole_arn = arn:minio:iam:::role/dummy\nsource_profile = base\n',
  );
  Object.assign(process.env, { AWS_SHARED_CREDENTIALS_FILE: credentials, AWS_CONFIG_FILE: config });
  process.env['AWS_PROFILE'] = 'base';
  await works(await open());
  Object.assign(process.env, { AWS_PROFILE: 'role', AWS_ENDPOINT_URL_STS: minio.endpoint });
  await works(await open());
});

it('stores as it is told: class, and with the customer’s key over TLS', async () => {
  await works(await open({ ...keys(), storageClass: 'REDUCED_REDUNDANCY' }));
  expect(
    await refusal((await open({ ...keys(), storageClass: 'NO_SUCH' })).create('x', Buffer.from('x'), 0)),
  ).toMatchObject({
    message: expect.stringContaining('InvalidStorageClass') as string,
  });
  const sseCustomerKey = Buffer.alloc(32, 7).toString('base64');
  const plain = await refusal((await open({ ...keys(), sseCustomerKey })).create('y', Buffer.from('y'), 0));
  expect(plain.message).toMatch(/secure connection|https/i);
  expect(plain.message).not.toContain(sseCustomerKey);

  const certs = join(dir, 'certs');
  mkdirSync(certs);
  const subject = '-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -days 2 -nodes';
  const files = `-keyout ${certs}/private.key -out ${certs}/public.crt`;
  execFileSync('openssl', `req -x509 -newkey rsa:2048 ${subject} ${files}`.split(' '), { stdio: 'pipe' });
  const secure = await TestMinio.start(['backups'], certs);
  try {
    const stranger = await refusal((await open({ ...keys(), endpoint: secure.endpoint })).read('z'));
    expect(stranger.message).toMatch(/self-signed/i);
    const tls = { ...keys(), endpoint: secure.endpoint, skipVerify: true };
    const keyed = await open({ ...tls, sseCustomerKey });
    await works(keyed);
    expect(await keyed.create('large', Buffer.alloc(17 << 20, 1), 0)).toBe('created');
    expect((await readObject(keyed, 'large', { start: (17 << 20) - 2 })).toString('hex')).toBe('0101');
    expect(await keyed.compareAndSet('head', undefined, Buffer.from('head'))).toBe(true);
    expect((await keyed.read('head')).bytes.toString()).toBe('head');
    await refusal(readObject(await open(tls), 'large'));
  } finally {
    await secure.stop();
  }
}, 60_000);

it('says what a server in trouble said, and whether to try again', async () => {
  const link = await BadLink.to(minio.port);
  const endpoint = `http://127.0.0.1:${link.port}`;
  const xml = (code: string): string => `<Error><Code>${code}</Code><Message>words</Message></Error>`;
  try {
    for (const [status, code, expected, retry] of [
      ['500 Internal Server Error', 'InternalError', 'ERR_BACKUP_UNREACHABLE', true],
      ['503 Slow Down', 'SlowDown', 'ERR_BACKUP_UNREACHABLE', true],
      ['403 Forbidden', 'RequestTimeTooSkewed', 'ERR_BACKUP_DENIED', false],
      ['501 Not Implemented', 'NotImplemented', 'ERR_BACKUP_UNSUPPORTED', false],
    ] as const) {
      link.answer = httpAnswer(status, xml(code));
      const at = await open({ endpoint, accessKeyId: 'id', secretAccessKey: SECRET });
      const refused = await refusal(at.create('x', Buffer.from('x'), 0));
      expect(refused, code).toMatchObject({ code: expected, retry });
      expect(refused.message).toContain(code);
      expect(refused.message).not.toContain(SECRET);
    }
    // It was in trouble, and is well again.
    link.answer = undefined;
    await works(await open({ ...keys(), endpoint }));
  } finally {
    link.stop();
  }
});

it('signs for the region that a refusal names, and says where a bucket is that is elsewhere', async () => {
  process.env['MINIO_REGION'] = 'eu-central-1';
  const abroad = await TestMinio.start(['backups']);
  delete process.env['MINIO_REGION'];
  const link = await BadLink.to(abroad.port);
  try {
    const at = await open({ ...keys(), endpoint: abroad.endpoint });
    expect(await at.compareAndSet('head', undefined, Buffer.from('head'))).toBe(true);
    await works(at);
    expect(await at.folders('')).toEqual([]);
    const where = 'b.s3-eu-central-1.example.com';
    link.answer = httpAnswer(
      '301 Moved Permanently',
      `<Error><Code>PermanentRedirect</Code><Message>words</Message><Endpoint>${where}</Endpoint></Error>`,
    );
    const moved = await open({ ...keys(), endpoint: `http://127.0.0.1:${link.port}` });
    const refused = await refusal(moved.create('x', Buffer.from('x'), 0));
    expect(refused.message).toContain(where);
  } finally {
    link.stop();
    await abroad.stop();
  }
});
