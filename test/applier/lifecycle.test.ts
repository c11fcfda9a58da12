import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import Database from 'better-sqlite3';
import { afterEach, expect, test } from 'vitest';

import { sqlite } from '../helpers/cluster.js';
import { Helper } from './processes.js';
import { Rig } from './rig.js';

const rigs: Rig[] = [];
const start = async (options: Parameters<typeof Rig.start>[0] = {}): Promise<Rig> => {
  const rig = await Rig.start(options);
  rigs.push(rig);
  return rig;
};

afterEach(async () => {
  for (const rig of rigs.splice(0)) await rig.stop();
});

const TABLE = `CREATE TABLE t(id INTEGER PRIMARY KEY, x);
  WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) INSERT INTO t SELECT i, randomblob(500) FROM n`;

test('A snapshot replaces everything, also with pages of another size, beside connections that stay open', async () => {
  const rig = await start();
  const { applier, name, source } = rig;
  await applier.apply(name, [source.run(TABLE)]);
  const reader = new Database(rig.path, { readonly: true, timeout: 10_000 });
  const count = (): unknown => reader.prepare('SELECT count(*) FROM t').pluck().get();
  expect(count()).toBe(300);
  source.database.exec(
    'PRAGMA journal_mode = DELETE; PRAGMA page_size = 1024; DELETE FROM t WHERE id > 100; VACUUM; PRAGMA journal_mode = WAL',
  );
  const file = source.commit();
  expect(file).toMatchObject({ minTxid: 1n, pageSize: 1024 });
  expect(await applier.apply(name, [file])).toMatchObject({ pageSize: 1024, pageCount: file.commitPages });
  expect(count()).toBe(100);
  await applier.apply(name, [source.run('DELETE FROM t WHERE id > 50')]);
  expect(count()).toBe(50);
  reader.close();
  await rig.assertSame();
  await applier.apply(name, [source.commit({ snapshot: true })]);
  await rig.assertSame();
});

test('A database that was let go is written by others; its late end changes nothing, and takes no lock away', async () => {
  const rig = await start();
  const { applier, name, source } = rig;
  await applier.apply(name, [source.run(TABLE)]);
  await applier.letGoAll();
  await sqlite(rig.path, 'CREATE TABLE other(x)');
  expect(await applier.lockForHandOff([name], 1000)).toEqual([]);
  await applier.closeLetGo();
  await expect(sqlite(rig.path, 'PRAGMA busy_timeout=50', 'CREATE TABLE late(x)')).rejects.toThrow(/locked/);
  await applier.unlock();
  await sqlite(rig.path, 'PRAGMA journal_mode = DELETE', 'DROP TABLE other');
  expect(await sqlite(rig.path, 'SELECT count(*) FROM t')).toBe('300');

  // Let go and taken back with nothing written in between: where it was.
  const { position } = await applier.apply(name, [source.commit({ snapshot: true })]);
  await applier.letGoAll();
  expect(await applier.open(name)).toMatchObject({ position });
  await applier.apply(name, [source.run('DELETE FROM t WHERE id > 50')]);
  await rig.assertSame();
});

test('Readers of a dropped database see it empty, and a new one of that name is another', async () => {
  const rig = await start();
  const { applier, name, source } = rig;
  await applier.apply(name, [source.run(TABLE)]);
  const reader = new Database(rig.path, { readonly: true, timeout: 10_000 });
  expect(reader.prepare('SELECT count(*) FROM t').pluck().get()).toBe(300);
  const deletion = source.drop();
  const { position } = await applier.apply(name, [deletion]);
  expect(position).toMatchObject({ txid: deletion.maxTxid, checksum: 1n << 63n });
  expect(existsSync(rig.path)).toBe(false);
  expect(reader.prepare('SELECT count(*) FROM sqlite_schema').pluck().get()).toBe(0);
  reader.close();
  await applier.close(name);
  expect(await applier.open(name)).toMatchObject({ position, pageCount: 0 });
  await applier.apply(name, [source.commit({ snapshot: true })]);
  await rig.assertSame();
});

test('A file that is damaged, or does not follow, changes nothing that readers see', async () => {
  const rig = await start();
  const { applier, name, source } = rig;
  await applier.apply(name, [source.run(TABLE)]);
  const before = source.bytes();
  const next = source.run('DELETE FROM t WHERE id < 100');
  const after = source.run('DELETE FROM t WHERE id < 200');
  await expect(applier.apply(name, [after])).rejects.toMatchObject({ code: 'ERR_APPLIER_DIVERGED' });
  const good = readFileSync(next.path);
  const flipped = Buffer.from(good);
  flipped[good.length >> 1]! ^= 1;
  writeFileSync(next.path, flipped);
  await expect(applier.apply(name, [next])).rejects.toMatchObject({ code: 'ERR_LTX_DAMAGED' });
  expect((await rig.bytes()).equals(before)).toBe(true);
  writeFileSync(next.path, good);
  await applier.apply(name, [next, after]);
  await rig.assertSame();
});

test('A database whose bytes are of no position of the log is diverged, and a snapshot mends it', async () => {
  const rig = await start();
  const { applier, name, source } = rig;
  await applier.apply(name, [source.run(TABLE)]);
  await applier.apply(name, [source.run('DELETE FROM t WHERE id > 10')]);
  await applier.close(name);
  await sqlite(rig.path, 'UPDATE t SET x = zeroblob(10)', 'PRAGMA wal_checkpoint(TRUNCATE)');
  writeFileSync(join(rig.dataDir, 'dbs', 'app.db', 'checksums'), 'damaged');
  await expect(applier.open(name)).rejects.toMatchObject({ code: 'ERR_APPLIER_DIVERGED' });
  await applier.apply(name, [source.commit({ snapshot: true })]);
  await rig.assertSame();
  await applier.close(name);
  truncateSync(rig.path, 100);
  writeFileSync(rig.path, 'no database at all '.repeat(100));
  await expect(applier.open(name)).rejects.toMatchObject({ code: 'ERR_APPLIER_DIVERGED' });
  await applier.apply(name, [source.commit({ snapshot: true })]);
  await rig.assertSame();
});

test('A former primary in DELETE mode becomes a replica in WAL mode with the same content', async () => {
  const rig = await start({ journalMode: 'delete' });
  const { applier, name, source } = rig;
  const file = source.run(TABLE);
  writeFileSync(rig.path, source.database.serialize());
  expect(await applier.open(name)).toMatchObject({
    position: { txid: file.maxTxid, checksum: file.postApplyChecksum },
  });
  await rig.assertSame();
  expect(await sqlite(rig.path, 'PRAGMA journal_mode')).toBe('wal');
  await applier.apply(name, [source.run('DELETE FROM t WHERE id < 50')]);
  await rig.assertSame();
});

test('COMMIT of a turn does not vacuum a database that auto_vacuum has left free pages in', async () => {
  const rig = await start();
  const { applier, name, source } = rig;
  source.database.exec(
    'PRAGMA journal_mode = DELETE; PRAGMA auto_vacuum = INCREMENTAL; VACUUM; PRAGMA journal_mode = WAL',
  );
  source.database.exec(`${TABLE}; DELETE FROM t WHERE id > 100`);
  source.database.exec('PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = DELETE');
  const path = source.database.name;
  for (let i = 1; i <= 3; i += 1) {
    const bytes = readFileSync(path);
    expect(bytes.readUInt32BE(36)).toBeGreaterThan(0);
    // FULL with free pages, which sqlite3_autovacuum_pages() of an application can leave. SQLite itself may
    // write nothing here, its own COMMIT would vacuum: so a user version, and the change counter for its cache.
    bytes.writeUInt32BE(0, 64);
    bytes.writeUInt32BE(i, 60);
    for (const offset of [24, 92]) bytes.writeUInt32BE(bytes.readUInt32BE(offset) + 1, offset);
    writeFileSync(path, bytes);
    expect(source.database.pragma('user_version', { simple: true })).toBe(i);
    await applier.apply(name, [source.commit()]);
    await rig.assertSame();
  }
});

test('Recovery rolls a hot journal back', async () => {
  const rig = await start();
  await sqlite(rig.path, TABLE);
  const before = await rig.bytes();
  const writer = await Helper.start('hot-journal.mjs', rig.path);
  await writer.kill();
  expect(statSync(`${rig.path}-journal`).size).toBeGreaterThan(0);
  await rig.applier.recover(rig.name);
  expect(existsSync(`${rig.path}-journal`)).toBe(false);
  expect((await rig.bytes()).equals(before)).toBe(true);
});

test('Recovery of a WAL leaves it where it is', async () => {
  const rig = await start();
  const writer = new Database(rig.path);
  writer.exec(`PRAGMA journal_mode = WAL; ${TABLE}`);
  const files = ['', '-wal'].map((suffix) => [suffix, readFileSync(rig.path + suffix)] as const);
  writer.close();
  // As a kill leaves them.
  for (const [suffix, bytes] of files) writeFileSync(rig.path + suffix, bytes);
  await rig.applier.recover(rig.name);
  expect(readFileSync(`${rig.path}-wal`).equals(files[1]![1])).toBe(true);
  expect(await sqlite(rig.path, 'SELECT count(*) FROM t')).toBe('300');
});

test('A new primary leaves WAL mode when it can, and stays in it beside open connections', async () => {
  const rig = await start();
  await sqlite(rig.path, 'PRAGMA journal_mode = WAL', TABLE);
  expect(await rig.applier.makeJournalMode(rig.name, 'delete')).toBe('delete');
  expect(await sqlite(rig.path, 'PRAGMA journal_mode')).toBe('delete');
  expect(await rig.applier.makeJournalMode(rig.name, 'wal')).toBe('wal');
  const reader = new Database(rig.path, { readonly: true });
  expect(reader.prepare('SELECT count(*) FROM t').pluck().get()).toBe(300);
  expect(await rig.applier.makeJournalMode(rig.name, 'delete')).toBe('wal');
  // Page 1 was written all the same: replicas get the bytes that say WAL.
  expect(statSync(`${rig.path}-wal`).size).toBe(32 + 24 + 4096);
  reader.close();
});

test('The hand-off holds all writers off until it is done, and says whose lock it did not get', async () => {
  const rig = await start();
  await sqlite(rig.path, 'PRAGMA journal_mode = WAL', TABLE);
  await sqlite(join(rig.mountDir, 'b.db'), TABLE);
  expect(await rig.applier.lockForHandOff([rig.name, 'b.db'], 10_000)).toEqual([]);
  for (const name of [rig.name, 'b.db']) {
    const writer = new Database(join(rig.mountDir, name), { timeout: 0 });
    expect(() => writer.exec('DELETE FROM t')).toThrow(/locked/);
    expect(writer.prepare('SELECT count(*) FROM t').pluck().get()).toBe(300);
    writer.close();
  }
  await rig.applier.unlock();
  const locker = await Helper.start('write-locker.mjs', rig.path);
  expect(await rig.applier.lockForHandOff([rig.name, 'b.db'], 200)).toEqual([
    { name: rig.name, reason: expect.stringContaining('write-locker') },
  ]);
  const writer = new Database(join(rig.mountDir, 'b.db'), { timeout: 0 });
  expect(() => writer.exec('DELETE FROM t')).toThrow(/locked/);
  await rig.applier.unlock();
  writer.exec('DELETE FROM t');
  writer.close();
  await locker.stop();
});

test('An export is one snapshot while transactions go on, and says the journal mode of the primary', async () => {
  const rig = await start({ journalMode: 'delete' });
  const { applier, name, source } = rig;
  await applier.apply(name, [source.run(TABLE)]);
  const copy = join(rig.dir, 'copy.db');
  const exported = applier.export(name, copy);
  for (let i = 0; i < 20; i += 1) await applier.apply(name, [source.run(`UPDATE t SET x = ${i}`)]);
  await exported;
  const distinct = await sqlite(
    copy,
    'PRAGMA integrity_check',
    'SELECT count(*), count(DISTINCT x) IN (1, 300) FROM t',
  );
  expect(distinct).toBe('ok\n300|1');
  expect([...readFileSync(copy).subarray(18, 20)]).toEqual([1, 1]);
});

test('An import replaces a database that is in use, or makes a new one, and refuses what is none', async () => {
  const rig = await start();
  const { applier } = rig;
  const file = join(rig.dir, 'import.db');
  await sqlite(file, 'PRAGMA page_size = 1024', TABLE);
  await applier.import('new/one.db', file);
  expect(await sqlite(join(rig.mountDir, 'new/one.db'), 'SELECT count(*) FROM t')).toBe('300');
  await sqlite(rig.path, 'PRAGMA journal_mode = WAL', 'CREATE TABLE old(x)');
  const reader = new Database(rig.path, { readonly: true });
  await sqlite(file, 'DELETE FROM t WHERE id > 200', 'PRAGMA page_size = 4096', 'VACUUM');
  await applier.import(rig.name, file);
  expect(reader.prepare('SELECT count(*) FROM t').pluck().get()).toBe(200);
  reader.close();
  await sqlite(file, 'PRAGMA page_size = 8192', 'VACUUM');
  await applier.import(rig.name, file);
  expect(await sqlite(rig.path, 'PRAGMA page_size', 'SELECT count(*) FROM t')).toBe('8192\n200');
  writeFileSync(file, 'no database at all');
  await expect(applier.import(rig.name, file)).rejects.toMatchObject({ code: 'ERR_APPLIER_IMPORT' });
  expect(await sqlite(rig.path, 'SELECT count(*) FROM t')).toBe('200');
});

test('A WAL that has grown is checkpointed and starts again, and large transactions come in pieces', async () => {
  const rig = await start();
  const { applier, name, source } = rig;
  await applier.apply(name, [source.run(TABLE)]);
  const large = source.run('UPDATE t SET x = randomblob(50000)');
  expect(large.sizeBytes).toBeGreaterThan(10 << 20);
  await applier.apply(name, [large]);
  await expect
    .poll(() => rig.events.some((event) => event.kind === 'checkpoint' && event.complete), {
      timeout: 30_000,
    })
    .toBe(true);
  expect(statSync(`${rig.path}-wal`).size).toBe(0);
  await applier.apply(name, [source.run('DELETE FROM t WHERE id > 10')]);
  await rig.assertSame();
});
