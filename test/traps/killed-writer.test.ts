import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { Connection, StoppedWriter } from './scene.js';

/**
 * Trap 1: a real writer, killed between its commit frame and the wal-index. The WAL holds its row, the
 * replica has got it, but no reader of the primary ever sees it; whatever then happens to those frames, the
 * replica must end with what the primary's readers see.
 */
let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;
let application: Connection | undefined;

beforeAll(async () => {
  cluster = await TestCluster.start();
  [primary, replica] = [cluster.node(1), cluster.node(2)];
});

afterAll(async () => {
  await application?.kill();
  await cluster.stop();
});

const COUNT = 'SELECT count(*) FROM u';

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

/** The commit of a writer that dies; resolves when the replica has it. */
async function deadCommit(name: string, sql: string): Promise<void> {
  const before = await primary.database(name);
  await StoppedWriter.killed(primary.path(name), ['PRAGMA wal_autocheckpoint=0', sql], {
    at: 'commit-frame',
    file: '-wal',
  });
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
