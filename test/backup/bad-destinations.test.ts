import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { type Destination, readObject } from '../../src/backup/destination.js';
import { type DestinationSettings, openDestination } from '../../src/backup/open.js';
import { KiteError } from '../../src/errors.js';
import { runCli } from '../cli/run-cli.js';
import { Clocks } from '../helpers/clocks.js';
import { TestAzure, TestGcs } from '../helpers/cloud.js';
import { TestMinio } from '../helpers/minio.js';
import { TestSshd } from '../helpers/sshd.js';

/** What is wrong with a destination is said for what it is, without a secret, and nothing is damaged. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-bad-'));
const full = join(dir, 'full');
let minio: TestMinio;
let gcs: TestGcs;
let azure: TestAzure;
let sshd: TestSshd;
const opened: Destination[] = [];

beforeAll(async () => {
  [minio, gcs, azure, sshd] = await Promise.all([
    TestMinio.start(['backups']),
    TestGcs.start('backups'),
    TestAzure.start('backups'),
    TestSshd.start(),
  ]);
  mkdirSync(full);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'kitefs-test', full]);
});
afterEach(() => {
  for (const destination of opened.splice(0)) destination.close();
  for (const name of ['STORAGE_EMULATOR_HOST', 'GOOGLE_APPLICATION_CREDENTIALS']) delete process.env[name];
});
afterAll(async () => {
  execFileSync('umount', [full]);
  await minio.stop();
  for (const server of [gcs, azure, sshd]) server.stop();
  rmSync(dir, { recursive: true, force: true });
});

const SECRET = 'a-secret-that-nobody-may-see';
/** The same where it must be base64. */
const KEY = Buffer.from(SECRET).toString('base64');

const s3 = (): DestinationSettings => ({
  type: 's3',
  bucket: 'backups',
  path: 'p',
  region: 'us-east-1',
  endpoint: minio.endpoint,
  accessKeyId: minio.env.AWS_ACCESS_KEY_ID,
  secretAccessKey: minio.env.AWS_SECRET_ACCESS_KEY,
});
const abs = (): DestinationSettings => ({
  type: 'abs',
  bucket: 'backups',
  path: 'p',
  endpoint: azure.accountEndpoint,
  accountName: azure.account,
  accountKey: azure.key,
});
const sftp = (): DestinationSettings => ({
  type: 'sftp',
  host: sshd.host,
  user: sshd.user,
  path: 'p',
  keyPath: sshd.keyPath,
  hostKey: sshd.hostKey,
});

/** Every call is refused with this code, and nothing that a program could print of it has a secret in it. */
async function refuses(settings: object, code: string): Promise<KiteError> {
  const found: KiteError[] = [];
  const calls: ((at: Destination) => Promise<unknown>)[] = [
    (at) => at.create('x', Buffer.from('x'), 0),
    (at) => at.folders(''),
  ];
  for (const call of calls) {
    try {
      const at = await openDestination(settings as DestinationSettings);
      opened.push(at);
      await call(at);
    } catch (error) {
      expect(error).toBeInstanceOf(KiteError);
      found.push(error as KiteError);
    }
  }
  const said = found.map((error) => error.code);
  expect(said, inspect(found.map(({ message }) => message))).toEqual(calls.map(() => code));
  for (const secret of [SECRET, KEY, azure.key, minio.env.AWS_SECRET_ACCESS_KEY])
    expect(inspect(found, { depth: 20, showHidden: true })).not.toContain(secret);
  return found[0]!;
}

it('says of wrong credentials that they are refused', async () => {
  await refuses({ ...s3(), secretAccessKey: SECRET }, 'ERR_BACKUP_DENIED');
  await refuses({ ...abs(), accountKey: KEY }, 'ERR_BACKUP_DENIED');
  await refuses({ ...abs(), accountKey: `${SECRET}!` }, 'ERR_BACKUP_DENIED');
  const sas = `sv=2022-11-02&ss=b&srt=co&sp=rwdlac&se=2099-01-01T00:00:00Z&sig=${encodeURIComponent(SECRET)}`;
  await refuses({ ...abs(), accountKey: undefined, sasToken: sas }, 'ERR_BACKUP_DENIED');
  await refuses({ ...sftp(), keyPath: join(sshd.dir, 'stranger') }, 'ERR_BACKUP_DENIED');
  await refuses({ ...sftp(), keyPath: undefined, password: SECRET }, 'ERR_BACKUP_DENIED');
  await refuses({ ...sftp(), keyPath: join(dir, 'not-there') }, 'ERR_BACKUP_DENIED');
  const account = { type: 'service_account', client_email: 'kitefs@example.com', private_key: SECRET };
  const file = join(dir, 'account.json');
  process.env['GOOGLE_APPLICATION_CREDENTIALS'] = file;
  const gs = { type: 'gs', bucket: 'backups', path: 'p', endpoint: gcs.endpoint };
  writeFileSync(file, JSON.stringify(account));
  await refuses(gs, 'ERR_BACKUP_DENIED');
  rmSync(file);
  await refuses(gs, 'ERR_BACKUP_DENIED');
});

it('says of a missing bucket or container that there is none', async () => {
  process.env['STORAGE_EMULATOR_HOST'] = gcs.env.STORAGE_EMULATOR_HOST;
  const nowhere = { bucket: 'nowhere' };
  for (const settings of [s3(), abs()]) await refuses({ ...settings, ...nowhere }, 'ERR_BACKUP_NO_BUCKET');
  const gs = await openDestination({ type: 'gs', bucket: 'nowhere', path: 'p' });
  opened.push(gs);
  await expect(gs.folders('')).rejects.toMatchObject({ code: 'ERR_BACKUP_NO_BUCKET' });
  await expect(gs.create('x', Buffer.from('x'), 0)).rejects.toMatchObject({ code: 'ERR_BACKUP_NO_BUCKET' });
});

it('talks to no server whose key is another one or unknown', async () => {
  const stranger = execFileSync('cat', [join(sshd.dir, 'stranger.pub')], { encoding: 'utf8' });
  const other = await refuses({ ...sftp(), hostKey: stranger, password: SECRET }, 'ERR_BACKUP_HOST_KEY');
  expect(other.message).toContain('is not the one of host-key');
  const unknown = await refuses({ ...sftp(), hostKey: undefined }, 'ERR_BACKUP_HOST_KEY');
  expect(unknown.message).toContain(sshd.hostKey);
  expect(unknown.message).toMatch(/SHA256:/);
});

it('says that a disk is full, here and behind SFTP, and keeps what is there', async () => {
  const kinds = [
    { type: 'file', path: join(full, 'here') },
    { ...sftp(), path: join(full, 'there') },
  ];
  for (const settings of kinds) {
    const at = await openDestination(settings as DestinationSettings);
    opened.push(at);
    expect(await at.create('small', Buffer.from('small'), 0)).toBe('created');
    await expect(at.create('large', Buffer.alloc(2 << 20), 0)).rejects.toMatchObject({
      code: 'ERR_BACKUP_FULL',
      row: { retry: true },
    });
    expect((await readObject(at, 'small')).toString()).toBe('small');
    expect(readdirSync((settings as { path: string }).path), 'no half of it').toEqual(['small']);
    expect(await at.create('large', Buffer.alloc(100), 0)).toBe('created');
  }
});

it('asks an object store although the clock is wrong by an hour: the SDK takes the time from the refusal', async () => {
  const clocks = new Clocks();
  try {
    clocks.step({ wallMs: -3_600_000 });
    const url = `s3://backups/none?endpoint=${encodeURIComponent(minio.endpoint)}`;
    const output = join(dir, 'skewed.db');
    const run = await runCli(['restore', '-o', output, url], { env: { ...minio.env, ...clocks.env } });
    expect(run.code).toBe(1);
    expect(run.stderr).toContain('[ERR_RESTORE_NOTHING]');
    expect(existsSync(output)).toBe(false);
  } finally {
    clocks.remove();
  }
});
