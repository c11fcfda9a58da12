import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { BadValue, parseBackups } from './backups.js';
import { loadConfig } from './load.js';

const dir = mkdtempSync(join(tmpdir(), 'kitefs-config-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const S3 = { type: 's3', bucket: 'b', path: '/some/path/' };

test('Litestream’s keys and defaults', () => {
  expect(
    parseBackups([
      { ...S3, endpoint: 'http://127.0.0.1:9000', 'part-size': '8MB' },
      { type: 'file', path: '/x' },
    ]),
  ).toEqual([
    {
      destination: {
        type: 's3',
        bucket: 'b',
        path: 'some/path',
        endpoint: 'http://127.0.0.1:9000',
        partSizeBytes: 8 << 20,
      },
      syncIntervalMs: 1000,
      levelIntervalsMs: [30_000, 300_000, 3_600_000],
      snapshotIntervalMs: 86_400_000,
      retentionMs: 86_400_000,
      l0RetentionMs: 300_000,
      retentionEnabled: true,
    },
    expect.objectContaining({ destination: { type: 'file', path: '/x' } }),
  ]);
  expect(
    parseBackups('s3://b/p?endpoint=http://x:1,file:///y')?.map(({ destination }) => destination),
  ).toEqual([
    { type: 's3', bucket: 'b', path: 'p', endpoint: 'http://x:1' },
    { type: 'file', path: '/y' },
  ]);
  expect(parseBackups('')).toEqual([]);
});

test('every kind, by its keys and by a URL', () => {
  const host = 'backup.example:2222';
  const hostKey = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5K2BbE3bD6wB0tOq0m1mZfJm1r1kq0b1b4pGvWl3kI';
  const pairs: [object, string, object][] = [
    [{ type: 'gs', bucket: 'b', path: '/p/q/' }, 'gs://b/p/q', { type: 'gs', bucket: 'b', path: 'p/q' }],
    [
      { type: 'abs', 'account-name': 'me', bucket: 'c', path: 'p', endpoint: 'http://x:1/me' },
      'abs://me@c/p?endpoint=http://x:1/me',
      { type: 'abs', accountName: 'me', bucket: 'c', path: 'p', endpoint: 'http://x:1/me' },
    ],
    [
      { type: 'sftp', host, user: 'me', path: '/srv/x/', 'key-path': '/k', 'host-key': hostKey },
      `sftp://me@${host}/srv/x?key-path=/k&host-key=${encodeURIComponent(hostKey)}`,
      { type: 'sftp', host, user: 'me', path: '/srv/x', keyPath: '/k', hostKey },
    ],
    [
      { type: 'sftp', host: 'h', user: 'me', path: 'below/home' },
      'sftp://me@h/~/below/home',
      { type: 'sftp', host: 'h', user: 'me', path: 'below/home' },
    ],
    [{ type: 'file', path: '/a b' }, 'file:///a%20b', { type: 'file', path: '/a b' }],
  ];
  for (const [keys, url, settings] of pairs) {
    expect(parseBackups([keys])?.[0]?.destination).toEqual(settings);
    expect(parseBackups([{ url }])?.[0]?.destination).toEqual(settings);
  }
  const [one] = parseBackups([{ url: 'abs://me@c/p', 'account-key': 'secret' }]) ?? [];
  expect(one?.destination).toEqual({
    type: 'abs',
    accountName: 'me',
    accountKey: 'secret',
    bucket: 'c',
    path: 'p',
  });
});

test.each([
  [{ ...S3, secretkey: 'hidden' }, /unknown key secretkey/],
  [{ ...S3, 'secret-access-key': 'hidden' }, /need one another/],
  [{ type: 'gcs', bucket: 'b' }, /expected s3, gs, abs, sftp or file/],
  [{ type: 'nats', bucket: 'b' }, /type nats is not there/],
  [{ type: 'gs', bucket: 'b', region: 'x' }, /unknown key region/],
  [{ type: 'abs', bucket: 'b', 'account-key': 'hidden', 'sas-token': 'hidden' }, /give one of them/],
  [{ type: 'sftp', host: 'h' }, /needs host and user/],
  [{ type: 'sftp', host: 'h', user: 'u', 'host-key': 'ssh-rsa hidden' }, /host-key: expected a public key/],
  [{ type: 's3' }, /bucket/],
  [{ ...S3, 'sync-interval': 'hidden' }, /sync-interval: expected a duration/],
  [{ url: 'sftp://u:hidden@h/x' }, /credentials/],
  [{ url: 'gs://hidden@b/x' }, /credentials/],
  [{ url: 'gcs://b/x' }, /write gs/],
  [{ url: 'sftp://h/x' }, /no user/],
  [{ url: 's3://key:hidden@b/x' }, /credentials/],
  [{ ...S3, snapshot: { retention: '0' } }, /more than 0/],
])('%j is refused, with the reason and without the value', (entry, reason) => {
  let said = '';
  try {
    parseBackups([entry]);
  } catch (error) {
    expect(error).toBeInstanceOf(BadValue);
    said = (error as Error).message;
  }
  expect(said).toMatch(reason);
  expect(said).not.toContain('hidden');
});

test('In a file, where an entry may be written once and named again', () => {
  const file = join(dir, 'kitefs.yml');
  writeFileSync(
    file,
    'backups:\n  - { type: file, path: /x, levels: &levels [{ interval: 2s }] }\n  - { type: file, path: /y, levels: *levels }\n',
  );
  const { config } = loadConfig({ file, environment: {} });
  expect(config.backups.map(({ levelIntervalsMs }) => levelIntervalsMs)).toEqual([[2000], [2000]]);
  writeFileSync(file, 'backups:\n  - { type: s3, bucket: b, secret-acces-key: hidden }\n');
  expect(() => loadConfig({ file, environment: {} })).toThrow(
    /kitefs.yml:1: backups: entry 1: unknown key secret-acces-key; did you mean secret-access-key\?$/,
  );
});
