import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { readObject, type Destination } from '../../src/backup/destination.js';
import { openDestination, type DestinationSettings } from '../../src/backup/open.js';
import { fetchPart } from '../../src/restore/fetch.js';
import { BadLink } from '../helpers/bad-link.js';
import { TestAzure, TestGcs } from '../helpers/cloud.js';
import { TestMinio } from '../helpers/minio.js';
import { TestSshd } from '../helpers/sshd.js';

/** What each kind of destination promises (src/backup/destination.ts), shown with a real server of its kind. */

interface Place {
  /** Settings of a path, by way of a port of this machine where the server is reached by TCP. */
  settings(path: string, port?: number): DestinationSettings;
  readonly port?: number;
  stop(): Promise<void> | void;
}

/** A test of something that this kind has not. */
const NOT_FOR_IT = (): void => undefined;

const KINDS: Readonly<Record<DestinationSettings['type'], () => Promise<Place>>> = {
  async s3() {
    const minio = await TestMinio.start(['backups']);
    return {
      port: minio.port,
      settings: (path, port = minio.port) => ({
        type: 's3',
        bucket: 'backups',
        path,
        region: 'us-east-1',
        endpoint: `http://127.0.0.1:${port}`,
        accessKeyId: minio.env.AWS_ACCESS_KEY_ID,
        secretAccessKey: minio.env.AWS_SECRET_ACCESS_KEY,
      }),
      stop: () => minio.stop(),
    };
  },
  async gs() {
    const gcs = await TestGcs.start('backups');
    return {
      port: gcs.port,
      settings: (path, port = gcs.port) => {
        // This is how it is told that nobody asks for credentials.
        process.env['STORAGE_EMULATOR_HOST'] = `127.0.0.1:${port}`;
        return { type: 'gs', bucket: 'backups', path };
      },
      stop: () => {
        delete process.env['STORAGE_EMULATOR_HOST'];
        gcs.stop();
      },
    };
  },
  async abs() {
    const azure = await TestAzure.start('backups');
    return {
      port: azure.port,
      settings: (path, port = azure.port) => ({
        type: 'abs',
        bucket: 'backups',
        path,
        accountName: azure.account,
        accountKey: azure.key,
        endpoint: azure.accountEndpoint.replace(String(azure.port), String(port)),
      }),
      stop: () => azure.stop(),
    };
  },
  async sftp() {
    const { user, hostKey, keyPath, ...sshd } = await startSshd();
    return {
      port: sshd.port,
      settings: (path, port = sshd.port) => ({
        type: 'sftp',
        host: `127.0.0.1:${port}`,
        user,
        path,
        keyPath,
        hostKey,
      }),
      stop: sshd.stop,
    };
  },
  file() {
    const root = mkdtempSync(join(tmpdir(), 'kitefs-folder-'));
    return Promise.resolve({
      settings: (path) => ({ type: 'file', path: join(root, path) }),
      stop: () => rmSync(root, { recursive: true, force: true }),
    });
  },
};

async function startSshd() {
  const sshd = await TestSshd.start();
  const { user, hostKey, keyPath, port } = sshd;
  return { user, hostKey, keyPath, port, stop: () => sshd.stop() };
}

const dir = mkdtempSync(join(tmpdir(), 'kitefs-destinations-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe.each(Object.entries(KINDS))('%s', (type, start) => {
  let place: Place;
  let opened: Destination[] = [];
  let paths = 0;

  beforeAll(async () => {
    place = await start();
  });
  afterEach(() => {
    for (const destination of opened) destination.close();
    opened = [];
  });
  afterAll(async () => await place.stop());

  const open = async (path: string, port?: number): Promise<Destination> => {
    const destination = await openDestination(place.settings(path, port));
    opened.push(destination);
    return destination;
  };
  /** A path that nobody has used. */
  const fresh = (): string => `some/path-${(paths += 1)}`;

  async function keys(at: Destination, prefix: string, after?: string): Promise<string[]> {
    const found: string[] = [];
    for await (const { key } of at.list(prefix, after === undefined ? {} : { after })) found.push(key);
    return found;
  }
  const text = async (at: Destination, key: string): Promise<string> =>
    (await readObject(at, key)).toString();

  it('makes an object once, whoever is asked, and gives ranges of it', async () => {
    const path = fresh();
    const [one, two] = [await open(path), await open(path)];
    expect(one.type).toBe(type);
    expect(await keys(one, '')).toEqual([]);
    expect(await one.create('a/1.ltx', Buffer.from('0123456789'), 1_700_000_000_000)).toBe('created');
    expect(await two.create('a/1.ltx', Buffer.from('other'), 5)).toBe('exists');
    expect(await one.create('a/1.ltx', Buffer.from('other'), 5)).toBe('exists');
    expect(await text(two, 'a/1.ltx')).toBe('0123456789');
    expect((await readObject(one, 'a/1.ltx', { start: 7 })).toString()).toBe('789');
    expect((await readObject(one, 'a/1.ltx', { start: 2, end: 4 })).toString()).toBe('23');
    expect((await readObject(one, 'a/1.ltx', { start: 4, end: 4 })).length).toBe(0);
    await expect(readObject(one, 'a/2.ltx')).rejects.toMatchObject({ code: 'ERR_BACKUP_MISSING' });
    await expect(readObject(one, 'b/2.ltx')).rejects.toMatchObject({ code: 'ERR_BACKUP_MISSING' });
    for await (const { sizeBytes, modifiedMs } of one.list('')) {
      expect(sizeBytes).toBe(10);
      if (type === 'file' || type === 'sftp') expect(modifiedMs).toBe(1_700_000_000_000);
      else expect(Math.abs(Date.now() - modifiedMs)).toBeLessThan(3_600_000);
    }
  });

  it('lets one of many writers make an object, with all of its bytes', async () => {
    const path = fresh();
    const writers = [await open(path), await open(path)] as const;
    // Larger than what goes in one request.
    const bodies = writers.map((_, i) => {
      const body = Buffer.concat([randomBytes(8), Buffer.alloc(17 << 20, i + 1), randomBytes(8)]);
      const file = join(dir, `body-${type}-${i}`);
      writeFileSync(file, body);
      return { body, file };
    });
    for (const key of ['large', 'small']) {
      const race = await Promise.allSettled(
        bodies.map(({ body, file }, i) =>
          writers[i]!.create(
            key,
            key === 'small' ? body.subarray(0, 999) : { path: file, sizeBytes: body.length },
            0,
          ),
        ),
      );
      const winners = bodies.filter((_, i) => {
        const ended = race[i]!;
        return ended.status === 'fulfilled' && ended.value === 'created';
      });
      expect(winners, JSON.stringify(race)).toHaveLength(1);
      const stored = await readObject(writers[0], key);
      const expected = key === 'small' ? winners[0]!.body.subarray(0, 999) : winners[0]!.body;
      expect(stored.equals(expected), key).toBe(true);
      const part = Buffer.alloc(70_000);
      if (key === 'large') {
        await fetchPart(writers[1], key, stored.length - part.length, part);
        expect(part.equals(stored.subarray(-part.length))).toBe(true);
      }
    }
    expect(await keys(writers[0], '')).toEqual(['large', 'small']);
  });

  it('lists in the order of the names, from after one, odd names too', async () => {
    const at = await open(fresh());
    const names = ['a', "b c+d%41&e#f?g='h", 'b.x', 'b/1', 'b/2', 'c/d/e', 'c/f', '~z'];
    for (const key of names.toReversed()) expect(await at.create(key, Buffer.from(key), 0)).toBe('created');
    expect(await keys(at, '')).toEqual(names);
    for (const key of names) expect(await text(at, key)).toBe(key);
    expect(await keys(at, 'b/', 'b/1')).toEqual(['b/2']);
    expect(await keys(at, '', 'b.x')).toEqual(['b/1', 'b/2', 'c/d/e', 'c/f', '~z']);
    expect(await keys(at, '', 'b/10')).toEqual(['b/2', 'c/d/e', 'c/f', '~z']);
    expect(await keys(at, 'nothing/')).toEqual([]);
    expect(await at.folders('')).toEqual(['b', 'c']);
    expect(await at.folders('c/')).toEqual(['d']);
    await at.remove(['a', 'c/d/e', 'was/never/there', names[1]!]);
    expect(await keys(at, '')).toEqual(['b.x', 'b/1', 'b/2', 'c/f', '~z']);
    expect(await at.create('a', Buffer.from('again'), 0)).toBe('created');
  });

  it('lists and removes more than fits in one answer', async () => {
    const at = await openDestination(place.settings(fresh()), 5);
    opened.push(at);
    const names = Array.from({ length: 23 }, (_, i) => `many/${String(i).padStart(5, '0')}/x`);
    for (const name of names) await at.create(name, Buffer.from('x'), 0);
    expect(await keys(at, 'many/')).toEqual(names);
    expect(await keys(at, '', 'many/00008/x')).toEqual(names.slice(9));
    expect(await at.folders('many/')).toEqual(names.map((name) => name.split('/')[1]));
    await at.remove(names);
    expect(await keys(at, '')).toEqual([]);
  });

  it('lets one of many writers exchange a version', async () => {
    const path = fresh();
    const writers = [await open(path), await open(path), await open(path), await open(path)] as const;
    expect(await writers[0].read('head')).toEqual({ bytes: Buffer.alloc(0), version: undefined });
    await Promise.all(
      writers.map(async (at) => {
        for (let done = 0; done < 5;) {
          const { bytes, version } = await at.read('head');
          const next = Buffer.from(String(Number(bytes.toString() || '0') + 1));
          // A store may answer two at once by an error that says: try again.
          const set = await at.compareAndSet('head', version, next).catch((error: unknown) => {
            expect(error).toMatchObject({ row: { retry: true } });
            return false;
          });
          if (set) done += 1;
        }
      }),
    );
    const { bytes, version } = await writers[0].read('head');
    expect(bytes.toString()).toBe('20');
    expect(await writers[0].compareAndSet('head', undefined, Buffer.from('late'))).toBe(false);
    expect(await writers[0].compareAndSet('head', version, Buffer.from('21'))).toBe(true);
    expect(await writers[1].compareAndSet('head', version, Buffer.from('late'))).toBe(false);
    expect((await writers[1].read('head')).bytes.toString()).toBe('21');
  });

  (type === 'file' ? NOT_FOR_IT : it)(
    'comes through a link that breaks, and leaves no half object',
    async () => {
      const path = fresh();
      const link = await BadLink.to(place.port!);
      try {
        const body = randomBytes(18 << 20);
        const [near, far] = [await open(path), await open(path, link.port)];
        expect(await near.create('whole', body, 0)).toBe('created');
        link.cuts = { afterBytes: 3 << 20, times: 2 };
        const into = Buffer.alloc(body.length);
        await fetchPart(far, 'whole', 0, into);
        expect(into.equals(body)).toBe(true);
        expect(link.spoilt).toBe(2);

        const making = far.create('late', body, 0);
        const cutting = setInterval(() => link.cut(), 15);
        const first = await making.catch((error: unknown) => {
          expect(error).toMatchObject({ code: 'ERR_BACKUP_UNREACHABLE', row: { retry: true } });
          return 'failed';
        });
        clearInterval(cutting);
        const there = await keys(near, 'late');
        if (there.length > 0) expect((await readObject(near, 'late')).equals(body)).toBe(true);
        const second = await far.create('late', body, 0);
        expect(second, first).toBe(there.length > 0 ? 'exists' : 'created');
        expect((await readObject(near, 'late')).equals(body)).toBe(true);
        expect(await keys(near, '')).toEqual(['late', 'whole']);
      } finally {
        link.stop();
      }
    },
  );
});
