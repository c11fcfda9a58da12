import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import type { Destination } from './destination.js';
import { DirectoryDestination } from './directory.js';
import { checkConditions } from './head.js';

const root = mkdtempSync(join(tmpdir(), 'kitefs-head-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A folder that says it is an S3 compatible, and may take no notice of conditions. */
function store(ignores: boolean): Destination {
  const folder = new DirectoryDestination(root);
  return {
    type: 's3',
    url: 's3://b/p',
    list: (prefix) => folder.list(prefix),
    folders: (prefix) => folder.folders(prefix),
    get: (key) => folder.get(key),
    create: async (key, body, timestampMs) => {
      const outcome = await folder.create(key, body, timestampMs);
      return ignores ? 'created' : outcome;
    },
    read: (key) => folder.read(key),
    compareAndSet: (key, version, bytes) => folder.compareAndSet(key, version, bytes),
    remove: (keys) => folder.remove(keys),
    close: () => folder.close(),
  };
}

it('refuses a store that overwrites what it should only make', async () => {
  await checkConditions(store(false));
  await checkConditions(store(false));
  await expect(checkConditions(store(true))).rejects.toMatchObject({ code: 'ERR_BACKUP_UNSUPPORTED' });
});
