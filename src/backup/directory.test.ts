import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { readObject } from './destination.js';
import { DirectoryDestination } from './directory.js';

let root: string;
let folder: DirectoryDestination;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'kitefs-directory-'));
  folder = new DirectoryDestination(join(root, 'backups'));
});

afterEach(() => rmSync(root, { recursive: true, force: true }));

async function keys(prefix: string, after?: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { key } of folder.list(prefix, after === undefined ? {} : { after })) found.push(key);
  return found;
}

describe('DirectoryDestination', () => {
  it('makes an object once, with the time of its transaction', async () => {
    expect(await folder.create('a/ltx/0/1.ltx', Buffer.from('first'), 1_700_000_000_123)).toBe('created');
    expect(await folder.create('a/ltx/0/1.ltx', Buffer.from('second'), 5)).toBe('exists');
    expect((await readObject(folder, 'a/ltx/0/1.ltx')).toString()).toBe('first');
    expect(statSync(join(root, 'backups/a/ltx/0/1.ltx')).mtimeMs).toBeCloseTo(1_700_000_000_123, -1);
    expect((await readObject(folder, 'a/ltx/0/1.ltx', { start: 1, end: 3 })).toString()).toBe('ir');
    await expect(readObject(folder, 'a/ltx/0/2.ltx')).rejects.toMatchObject({ code: 'ERR_BACKUP_MISSING' });
  });

  it('lists in the order of the keys, from after one', async () => {
    for (const key of ['b/2', 'b.x', 'b/1', 'a', 'b/1/3']) {
      // 'b/1' cannot be a file and a folder: that is the one thing that S3 can and a folder cannot.
      if (key !== 'b/1/3') await folder.create(key, Buffer.from(key), 0);
    }
    expect(await keys('')).toEqual(['a', 'b.x', 'b/1', 'b/2']);
    expect(await keys('b/', 'b/1')).toEqual(['b/2']);
    expect(await keys('', 'b.x')).toEqual(['b/1', 'b/2']);
    expect(await keys('c/')).toEqual([]);
    expect(await folder.folders('')).toEqual(['b']);
  });

  it('removes what a killed process has left, but not what another one writes', async () => {
    await folder.create('b/1', Buffer.from('x'), 0);
    const left = join(root, 'backups/b/.kitefs-1-2');
    writeFileSync(left, 'half an object');
    await new DirectoryDestination(join(root, 'backups')).create('b/2', Buffer.from('x'), 0);
    expect(existsSync(left)).toBe(true);
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 2 * 3_600_000 });
    try {
      await new DirectoryDestination(join(root, 'backups')).create('b/3', Buffer.from('x'), 0);
    } finally {
      vi.useRealTimers();
    }
    expect(existsSync(left)).toBe(false);
  });

  it('lets one of two writers exchange a version', async () => {
    expect(await folder.read('head')).toEqual({ bytes: Buffer.alloc(0), version: undefined });
    const first = await Promise.all(
      ['x', 'y', 'z'].map((text) => folder.compareAndSet('head', undefined, Buffer.from(text))),
    );
    expect(first.filter(Boolean)).toHaveLength(1);
    for (let i = 0; i < 20; i++) {
      const { version } = await folder.read('head');
      expect(await folder.compareAndSet('head', version, Buffer.from(String(i)))).toBe(true);
      expect(await folder.compareAndSet('head', version, Buffer.from('late'))).toBe(false);
    }
    expect((await folder.read('head')).bytes.toString()).toBe('19');
    expect((await keys('head/')).length).toBeLessThan(12);
  });
});
