import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { join } from 'node:path';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { PlainMount } from '../helpers/plain-mount.js';
import { Connection, StoppedWriter } from './scene.js';

/**
 * Trap 1: a real writer, killed between its commit frame and the wal-index. The WAL holds its row, the
 * replica has got it, but no reader of the primary ever sees it; whatever then happens to those frames, the
 * replica must end with what the primary's readers see, also when nothing happens any more.
 */
let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;
let application: Connection | undefined;
let release = async (): Promise<void> => undefined;

beforeAll(async () => {
  cluster = await TestCluster.start();
  [primary, replica] = [cluster.node(1), cluster.node(2)];
});

afterEach(async () => {
  await release();
});

afterAll(async () => {
  await application?.kill();
  await cluster.stop();
});

const COMMIT_FRAME = { at: 'commit-frame', file: '-wal' } as const;

const COUNT = 'SELECT count(*) FROM u';

const txid = async (name: string): Promise<number> =>
  Number.parseInt((await primary.database(name))?.position?.split('/')[0] ?? '0', 16);

/** In other pages than what is written later, which would mend a difference by chance. */
const DEAD = {
  row: 'INSERT INTO u VALUES (-1)',
  shrinking: 'VACUUM',
} as const;

/** A database in WAL mode with rows in the WAL, and a connection that keeps the wal-index there. */
async function start(name: string): Promise<Connection> {
  await primary.sql(
    name,
    'PRAGMA journal_mode=wal',
    'CREATE TABLE t(x)',
    'CREATE TABLE u(x)',
    'INSERT INTO t VALUES (zeroblob(40000))',
    'INSERT INTO t VALUES (zeroblob(40000))',
  );
  application = await Connection.open(primary.path(name), 'PRAGMA wal_autocheckpoint=0');
  await application.run('DELETE FROM t WHERE rowid = 1');
  await application.run('INSERT INTO t VALUES (1)');
  await cluster.caughtUp(name);
  return application;
}

/**
 * The commit of a writer that dies; resolves when the replica has it. The writer's descriptors stay open: whatever
 * happens to the commit does not happen because they are closed, before `release` is called.
 */
async function deadCommit(name: string, sql: string): Promise<void> {
  const before = await primary.database(name);
  release = await StoppedWriter.killed(
    primary.path(name),
    ['PRAGMA wal_autocheckpoint=0', sql],
    COMMIT_FRAME,
  );
  await waitFor('the dead commit to be captured', async () => {
    return (await primary.database(name))?.position !== before?.position;
  });
  await cluster.caughtUp(name);
}

describe.each(Object.entries(DEAD))('the dead commit (%s)', (kind, sql) => {
  it('is taken back from replicas when another connection truncates the WAL', async () => {
    const name = `${kind}-truncate.db`;
    const open = await start(name);
    await deadCommit(name, sql);
    if (kind === 'row') expect(await replica.sql(name, COUNT)).toBe('1');
    expect(await open.run(COUNT)).toBe('0');
    expect(await open.run('PRAGMA wal_checkpoint(TRUNCATE)')).toMatch(/^0\|/);
    await cluster.assertSame(name);
    expect(await replica.sql(name, COUNT)).toBe('0');
    expect(await primary.metric(`kitefs_compensated_count{db="${name}"}`)).toBe(1);
    await open.run('INSERT INTO t VALUES (2)');
    await cluster.assertSame(name);
    await open.close();
  });

  it('is taken back when its writer had just restarted the WAL, and the next writer does so again', async () => {
    const name = `${kind}-restart.db`;
    const open = await start(name);
    await open.run('PRAGMA wal_checkpoint(PASSIVE)');
    await deadCommit(name, sql);
    expect(await open.run(COUNT)).toBe('0');
    await open.run('INSERT INTO t VALUES (2)');
    await cluster.assertSame(name);
    expect(await replica.sql(name, COUNT)).toBe('0');
    await open.close();
  });

  it('is taken back when the next writer overwrites its frames', async () => {
    const name = `${kind}-overwrite.db`;
    const open = await start(name);
    await deadCommit(name, sql);
    await open.run('INSERT INTO t VALUES (2)');
    await cluster.assertSame(name);
    expect(await replica.sql(name, COUNT)).toBe('0');
    await open.close();
  });

  it('is taken back when its descriptor is gone, though nobody writes any more', async () => {
    const name = `${kind}-release.db`;
    const open = await start(name);
    await deadCommit(name, sql);
    if (kind === 'row') expect(await replica.sql(name, COUNT)).toBe('1');
    const before = await txid(name);
    expect(await open.run(COUNT)).toBe('0');
    await release();
    // What gives the pages back, and the transaction that called for it.
    await waitFor('the dead commit to be taken back', async () => (await txid(name)) === before + 2);
    expect(await primary.metric(`kitefs_compensated_count{db="${name}"}`)).toBe(1);
    await cluster.assertSame(name);
    expect(await replica.sql(name, COUNT)).toBe('0');
    expect(await open.run(COUNT)).toBe('0');
    expect(await txid(name)).toBe(before + 2);
    await open.close();
  });

  it('is taken back when the last connection closes and removes the WAL', async () => {
    const name = `${kind}-close.db`;
    const open = await start(name);
    await deadCommit(name, sql);
    expect(await open.run(COUNT)).toBe('0');
    await open.close();
    await cluster.assertSame(name);
    expect(await replica.sql(name, COUNT)).toBe('0');
  });
});

it('stays on both sides when every connection dies and SQLite recovers it', async () => {
  const open = await start('recovered.db');
  await deadCommit('recovered.db', DEAD.row);
  await open.kill();
  await cluster.assertSame('recovered.db');
  expect(await replica.sql('recovered.db', COUNT)).toBe('1');
});

it('is not seen in a commit whose descriptor is closed in order, while -shm has not been written back', async () => {
  const mount = await PlainMount.start({ driver: 'kernel' });
  try {
    const path = (name: string): string => join(mount.dir, name);
    const connect = async (name: string): Promise<Connection> =>
      await Connection.open(path(name), 'PRAGMA journal_mode=wal', 'CREATE TABLE t(x)');
    // Two connections in one process share their mapping of -shm: closing one writes nothing of it back. The end of the
    // shell does: what the mount has then is a valid header from before the next commit.
    const pool = await connect('pool.db');
    expect(mount.sql('pool.db', 'SELECT count(*) FROM t').out).toBe('0');
    const rounds = 5;
    for (let i = 0; i < rounds; i += 1) {
      await pool.run(`ATTACH '${path('pool.db')}' AS second`);
      await pool.run('INSERT INTO second.t VALUES (1)');
      await pool.run('DETACH second');
    }
    // Nor in one that takes the place of the first frames of a dead one.
    const others = [await connect('other.db'), await connect('third.db')];
    const dead = (): string[] =>
      mount.events.flatMap((event) => (event.type === 'deadCommit' ? [event.name] : []));
    const kill = async (name: string): Promise<void> => {
      const sql = ['INSERT INTO t VALUES (zeroblob(40000))'];
      const gone = await StoppedWriter.killed(path(name), sql, COMMIT_FRAME);
      await gone();
      await waitFor('the dead commit to be seen', () => dead().includes(name));
    };
    await kill('other.db');
    expect(mount.sql('other.db', 'PRAGMA user_version = 1').code).toBe(0);
    await kill('third.db');
    expect(dead()).toEqual(['other.db', 'third.db']);
    expect(await pool.run('SELECT count(*) FROM t')).toBe(String(rounds));
    for (const other of others) await other.close();
    await pool.close();
  } finally {
    await mount.stop();
  }
});
