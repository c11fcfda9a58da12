import { afterEach, expect, test } from 'vitest';

import type { LogFile } from '../../src/store/types.js';
import type { KiteError } from '../../src/errors.js';
import { sqlite } from '../helpers/cluster.js';
import { Helper } from './processes.js';
import { Rig } from './rig.js';

const rigs: Rig[] = [];
const start = async (options: Parameters<typeof Rig.start>[0] = {}): Promise<Rig> => {
  const rig = await Rig.start(options);
  rigs.push(rig);
  rig.source.database.exec(`
    CREATE TABLE a(id INTEGER PRIMARY KEY, v, version, filler);
    CREATE TABLE b(id INTEGER PRIMARY KEY, v, filler);
    CREATE INDEX a_v ON a(v)`);
  await rig.applier.apply(rig.name, [rig.source.commit()]);
  return rig;
};

afterEach(async () => {
  for (const rig of rigs.splice(0)) await rig.stop();
});

/** Changes both tables alike: rows come, change and go. */
function changeBoth(rig: Rig, version: number): LogFile {
  const id = (version * 7) % 200;
  return rig.source.run(`BEGIN;
    INSERT OR REPLACE INTO a VALUES (${id}, ${version}, ${version}, randomblob(${(version * 37) % 3000}));
    INSERT OR REPLACE INTO b VALUES (${id}, ${version}, randomblob(${(version * 53) % 3000}));
    DELETE FROM a WHERE id = ${(version * 13) % 200} AND id != ${id};
    DELETE FROM b WHERE id = ${(version * 13) % 200} AND id != ${id};
    COMMIT;`);
}

/** Gives the applier everything it has not applied yet, as the daemon does after ERR_APPLIER_RESTARTED. */
async function catchUp(rig: Rig): Promise<void> {
  for (;;) {
    try {
      const { position } = await rig.applier.open(rig.name);
      await rig.applier.apply(rig.name, rig.source.log.filesAfter(position) ?? []);
      return;
    } catch (error) {
      if (!(error instanceof Error) || (error as KiteError).code !== 'ERR_APPLIER_RESTARTED') throw error;
    }
  }
}

test('Readers beside the applier see whole transactions only, also while applications restart the WAL', async () => {
  const rig = await start();
  const readers = [await Helper.start('reader.mjs', rig.path), await Helper.start('reader.mjs', rig.path)];
  const applied: Promise<unknown>[] = [];
  for (let version = 1; version <= 400; version += 1) {
    applied.push(rig.applier.apply(rig.name, [changeBoth(rig, version)]));
    if (version % 10 === 0) await Promise.all(applied.splice(0));
    if (version % 100 === 0) await sqlite(rig.path, 'PRAGMA wal_checkpoint(TRUNCATE)');
  }
  for (const reader of readers) expect(Number(await reader.stop())).toBeGreaterThan(10);
  await rig.assertSame();
});

test('Killed at any moment, the applier goes on with the right bytes, and readers notice nothing', async () => {
  const rig = await start();
  const reader = await Helper.start('reader.mjs', rig.path);
  let killed = 0;
  for (let version = 1; version <= 150; version += 10) {
    const files = Array.from({ length: 10 }, (_, i) => changeBoth(rig, version + i));
    const applying = rig.applier.apply(rig.name, files);
    // Somewhere within the work, which takes some milliseconds.
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 4));
    const { pid } = rig.applier;
    if (pid !== undefined) {
      process.kill(pid, 'SIGKILL');
      killed += 1;
    }
    await applying.catch((error: KiteError) => expect(error.code).toBe('ERR_APPLIER_RESTARTED'));
    await catchUp(rig);
  }
  expect(killed).toBe(15);
  expect(Number(await reader.stop())).toBeGreaterThan(10);
  await rig.assertSame();
});

test('An application that idles in BEGIN IMMEDIATE is named, and holds up no other database', async () => {
  const rig = await start();
  const locker = await Helper.start('write-locker.mjs', rig.path);
  const waiting = rig.applier.apply(rig.name, [changeBoth(rig, 1)]);
  await expect
    .poll(() => rig.events.find((event) => event.kind === 'blocked'), { timeout: 30_000 })
    .toMatchObject({
      name: rig.name,
      holder: { pid: locker.pid, command: expect.stringContaining('write-locker.mjs') },
    });
  const other = rig.other('other.db');
  await rig.applier.apply('other.db', [other.run('CREATE TABLE t(x)')]);
  await locker.stop();
  await waiting;
  await rig.assertSame();
});

test('Closing ends a wait for a lock', async () => {
  const rig = await start();
  const locker = await Helper.start('write-locker.mjs', rig.path);
  const waiting = rig.applier.apply(rig.name, [changeBoth(rig, 1)]);
  const refused = expect(waiting).rejects.toMatchObject({ code: 'ERR_APPLIER_LOCKED' });
  await rig.applier.close(rig.name);
  await refused;
  await locker.stop();
  await catchUp(rig);
  await rig.assertSame();
});

test('A process that no longer answers is killed, and another one serves', async () => {
  const rig = await start({ wedgedAfterMs: 10_000 });
  const { pid } = rig.applier;
  process.kill(pid!, 'SIGSTOP');
  const waiting = rig.applier.apply(rig.name, [changeBoth(rig, 1)]);
  await expect(waiting).rejects.toMatchObject({ code: 'ERR_APPLIER_RESTARTED' });
  await catchUp(rig);
  expect(rig.applier.pid).not.toBe(pid);
  await rig.assertSame();
});
