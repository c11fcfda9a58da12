import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { DataDirectory, databasePaths } from './data-directory.js';

const root = mkdtempSync(join(tmpdir(), 'kitefs-data-test-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const coded = (code: string) => expect.objectContaining({ code });

test('a new directory gets its layout, and what is changed is there after a start', () => {
  const path = join(root, 'new', 'deep');
  const data = DataDirectory.open(path, { nodeId: 'n1' });
  expect(readdirSync(path).toSorted()).toEqual(['dbs', 'lock', 'lost+found', 'node.json', 'tree']);
  expect(data.node).toEqual({ nodeId: 'n1', epoch: 0n, wasPrimary: false });
  expect(data.clusterId).toBeUndefined();
  data.updateNode({ epoch: 9007199254740993n, wasPrimary: true });
  data.updateNode({ epoch: 3n });
  data.joinCluster('c1');
  data.joinCluster('c1');
  const paths = data.createDatabase('tenants/42.db');
  data.createDatabase('a.db');
  mkdirSync(join(path, 'dbs', 'not%2fours'));
  expect(paths).toEqual(databasePaths(path, 'tenants/42.db'));
  expect(existsSync(join(path, 'dbs', 'tenants%2F42.db', 'ltx'))).toBe(true);
  expect(data.names()).toEqual(['a.db', 'tenants/42.db']);
  data.close();

  const again = DataDirectory.open(path, { nodeId: 'other' });
  expect(again.node).toEqual({ nodeId: 'n1', epoch: 9007199254740993n, wasPrimary: true });
  expect(() => again.joinCluster('c2')).toThrow(coded('ERR_STORE_OTHER_CLUSTER'));
  expect(again.clusterId).toBe('c1');
  again.close();
});

test('two owners of one process cannot share a directory', () => {
  const path = join(root, 'twice');
  const first = DataDirectory.open(path, { nodeId: 'n1' });
  expect(() => DataDirectory.open(path, { nodeId: 'n1' })).toThrow(coded('ERR_STORE_LOCKED'));
  expect(() => DataDirectory.open(path, { nodeId: 'n1' })).toThrow(coded('ERR_STORE_LOCKED'));
  first.close();
  DataDirectory.open(path, { nodeId: 'n1' }).close();
});

test('the process that had it before is known, but not to a copy nor to another boot', () => {
  const path = join(root, 'succeeded');
  const first = DataDirectory.open(path, { nodeId: 'n1' });
  expect(first.replaceProcess('one')).toBeUndefined();
  first.close();
  const second = DataDirectory.open(path, { nodeId: 'n1' });
  expect(second.replaceProcess('two')).toBe('one');
  second.close();
  cpSync(path, join(root, 'copied'), { recursive: true });
  const copy = DataDirectory.open(join(root, 'copied'), { nodeId: 'n1' });
  expect(copy.replaceProcess('three')).toBeUndefined();
  copy.close();
  const noted = readFileSync(join(path, 'process'), 'utf8');
  for (const other of [noted.replace(/^\w+/, 'otherboot'), noted.slice(0, 20), noted.split('\n')[0]!, '']) {
    writeFileSync(join(path, 'process'), other);
    const later = DataDirectory.open(path, { nodeId: 'n1' });
    expect(later.replaceProcess('four')).toBeUndefined();
    later.close();
  }
});

test('an owner in another process is named, and its lock dies with it', async () => {
  const path = join(root, 'other-process');
  mkdirSync(path);
  const script = `
    const Database = require('better-sqlite3');
    const lock = new Database(process.argv[1], { timeout: 0 });
    lock.pragma('journal_mode = MEMORY');
    lock.exec('BEGIN EXCLUSIVE');
    console.log('locked');
    setInterval(() => lock.open, 1000);
  `;
  const owner = spawn(process.execPath, ['-e', script, join(path, 'lock')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    await once(owner.stdout, 'data');
    expect(() => DataDirectory.open(path, { nodeId: 'n1' })).toThrow(`in use by process ${owner.pid}`);
  } finally {
    owner.kill('SIGKILL');
    await once(owner, 'exit');
  }
  DataDirectory.open(path, { nodeId: 'n1' }).close();
});

test('a replacement of node.json that was cut off leaves the old one', () => {
  const path = join(root, 'torn');
  const data = DataDirectory.open(path, { nodeId: 'n1' });
  data.updateNode({ epoch: 7n });
  data.close();
  writeFileSync(join(path, 'node.json.tmp'), '{"nodeId');
  const again = DataDirectory.open(path, { nodeId: 'n2' });
  expect(again.node).toMatchObject({ nodeId: 'n1', epoch: 7n });
  again.close();
});

test('a node.json that says nothing usable is an error, and the lock is given up', () => {
  const path = join(root, 'damaged');
  DataDirectory.open(path, { nodeId: 'n1' }).close();
  for (const text of ['', '{}', '{"nodeId":"a","epoch":"x","wasPrimary":true}', '[1']) {
    writeFileSync(join(path, 'node.json'), text);
    expect(() => DataDirectory.open(path, { nodeId: 'n1' })).toThrow(coded('ERR_STORE_DAMAGED'));
    expect(readFileSync(join(path, 'node.json'), 'utf8')).toBe(text);
  }
});

function liteFsDirectory(name: string): string {
  const path = join(root, name);
  for (const db of ['app.db', 'my app', 'a%2Fb']) {
    const folder = join(path, 'dbs', db);
    mkdirSync(join(folder, 'ltx'), { recursive: true });
    for (const file of ['database', 'wal', 'journal', 'shm', 'ltx/0000000000000001-0000000000000001.ltx']) {
      writeFileSync(join(folder, file), `${db} ${file}`);
    }
  }
  writeFileSync(join(path, 'clusterid'), 'LFSC0123456789ABCDEF\n');
  return path;
}

function expectMigrated(path: string): void {
  const data = DataDirectory.open(path, { nodeId: 'n1' });
  expect(data.names()).toEqual(['a%2Fb', 'app.db', 'my app']);
  expect(data.clusterId).toBe('LFSC0123456789ABCDEF');
  for (const db of data.names()) {
    const paths = databasePaths(path, db);
    expect(readdirSync(paths.directory).toSorted()).toEqual([
      'database',
      'database-journal',
      'database-wal',
      'ltx',
    ]);
    expect(readFileSync(paths.wal, 'utf8')).toBe(`${db} wal`);
    expect(readFileSync(paths.journal, 'utf8')).toBe(`${db} journal`);
    expect(readdirSync(paths.ltx)).toEqual(['0000000000000001-0000000000000001.ltx']);
  }
  expect(readdirSync(path)).not.toContain('dbs.litefs');
  data.close();
}

test('a directory in the layout of LiteFS is migrated once', () => {
  const path = liteFsDirectory('litefs');
  expectMigrated(path);
  expectMigrated(path);
});

test('a migration that was cut off anywhere goes on at the next start', () => {
  const renamed = liteFsDirectory('litefs-renamed');
  renameSync(join(renamed, 'dbs'), join(renamed, 'dbs.litefs'));
  expectMigrated(renamed);

  const halfway = liteFsDirectory('litefs-halfway');
  renameSync(join(halfway, 'dbs'), join(halfway, 'dbs.litefs'));
  mkdirSync(join(halfway, 'dbs'));
  const old = join(halfway, 'dbs.litefs', 'a%2Fb');
  renameSync(join(old, 'wal'), join(old, 'database-wal'));
  renameSync(join(old, 'journal'), join(old, 'database-journal'));
  rmSync(join(old, 'shm'));
  renameSync(old, join(halfway, 'dbs', 'a%252Fb'));
  const second = join(halfway, 'dbs.litefs', 'my app');
  renameSync(join(second, 'wal'), join(second, 'database-wal'));
  expectMigrated(halfway);
});

test('a KiteFS directory that lost its node.json is not taken for one of LiteFS', () => {
  const path = join(root, 'no-node-json');
  const data = DataDirectory.open(path, { nodeId: 'n1' });
  writeFileSync(data.createDatabase('a/b').checksums, '');
  data.close();
  rmSync(join(path, 'node.json'));
  const again = DataDirectory.open(path, { nodeId: 'n2' });
  expect(again.names()).toEqual(['a/b']);
  again.close();
});
