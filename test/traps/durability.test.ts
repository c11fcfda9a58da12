import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { Connection } from './scene.js';

/** Durability by choice: a COMMIT that waits for replicas, in each journal mode (traps 3, 12, 13). */
let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;

const FRESH = { lease: { 'election-wait': '200ms' } };

/** Whether a promise is settled within a moment. */
async function isSettled(promise: Promise<unknown>, momentMs = 600): Promise<boolean> {
  const pending = Symbol('pending');
  const late = new Promise((resolve) => setTimeout(resolve, momentMs, pending));
  return (await Promise.race([promise.catch(() => 0), late])) !== pending;
}

describe('a primary that waits for one replica', () => {
  beforeAll(async () => {
    const config = { ...FRESH, durability: { commit: 'replicas: 1', timeout: '1s' } };
    cluster = await TestCluster.start({ ttl: '2s', config });
    [primary, replica] = [cluster.node(1), cluster.node(2)];
  });

  afterAll(async () => {
    await cluster.stop();
  });

  it.each(['wal', 'delete', 'truncate', 'persist'])('holds a COMMIT until it has it (%s)', async (mode) => {
    const name = `${mode}.db`;
    await primary.sql(name, `PRAGMA journal_mode=${mode}`, 'CREATE TABLE t(n)', 'INSERT INTO t VALUES (1)');
    const writer = await Connection.open(primary.path(name), `PRAGMA journal_mode=${mode}`);
    const doomed = await Connection.open(primary.path(name), `PRAGMA journal_mode=${mode}`);
    const reader = await Connection.open(primary.path(name), 'SELECT count(*) FROM t');
    await cluster.caughtUp(name);

    process.kill(replica.pid, 'SIGSTOP');
    let commit: Promise<string>;
    try {
      const lost = doomed.run('INSERT INTO t VALUES (2)');
      expect(await isSettled(lost)).toBe(false);
      if (mode === 'wal') {
        // Readers, new connections and checkpoints go on, and do not see it.
        expect(await reader.run('SELECT group_concat(n) FROM t')).toBe('1');
        expect(await primary.sql(name, 'SELECT group_concat(n) FROM t')).toBe('1');
        await reader.run('PRAGMA wal_checkpoint(PASSIVE)');
      }
      await doomed.kill();
      await expect(lost).rejects.toThrow('has ended');
      expect(await reader.run('SELECT group_concat(n) FROM t')).toBe('1');

      commit = writer.run('INSERT INTO t VALUES (3)');
      expect(await isSettled(commit, 1500)).toBe(false);
      expect((await primary.status()).durability).toMatchObject({ waiting: 1, syncSet: ['node1', 'node2'] });
    } finally {
      process.kill(replica.pid, 'SIGCONT');
    }
    await commit;
    expect(primary.log()).toMatch(/a commit in .* has waited .* it goes on waiting/);
    expect(await reader.run('SELECT group_concat(n) FROM t')).toBe('1,3');
    await cluster.assertSame(name);
    expect(await replica.sql(name, 'SELECT group_concat(n) FROM t')).toBe('1,3');
    for (const one of [writer, reader]) await one.close();
  });
});

it('has every acknowledged commit after the primary was killed, time and again', async () => {
  const config = { ...FRESH, durability: { commit: 'quorum' } };
  cluster = await TestCluster.start({ ttl: '1s', config });
  try {
    for (const [name, mode] of [
      ['wal.db', 'wal'],
      ['delete.db', 'delete'],
    ] as const) {
      await cluster.node(1).sql(name, `PRAGMA journal_mode=${mode}`, 'CREATE TABLE t(n)');
    }
    for (let round = 1; round <= 4; round += 1) {
      const [from, to] = [cluster.node(2 - (round % 2)), cluster.node(1 + (round % 2))];
      await waitFor(`${from.id} to be primary`, async () => (await from.status()).role === 'primary');
      const name = round <= 2 ? 'wal.db' : 'delete.db';
      const writer = await Connection.open(from.path(name));
      for (let i = 1; i <= 20; i += 1) await writer.run(`INSERT INTO t VALUES (${round * 100 + i})`);
      await from.kill();
      await writer.kill();
      await waitFor(`${to.id} to be primary`, async () => (await to.status()).role === 'primary');
      expect(await to.sql(name, 'SELECT max(n), count(*) FROM t')).toBe(
        `${round * 100 + 20}|${round % 2 === 0 ? 40 : 20}`,
      );
      await from.clear();
      await from.start();
    }
    for (const name of ['wal.db', 'delete.db']) await cluster.assertSame(name);
  } finally {
    await cluster.stop();
  }
});

it('lets nobody open who may lack an acknowledged commit (trap 3)', async () => {
  const config = { ...FRESH, durability: { commit: 'replicas: 1', acknowledge: 'memory' } };
  cluster = await TestCluster.start({ ttl: '1s', nodes: 3, config });
  try {
    const [first, second, third] = [cluster.node(1), cluster.node(2), cluster.node(3)];
    await first.sql('app.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)');
    await cluster.caughtUp('app.db');
    const syncSet = (await first.status()).durability?.syncSet ?? [];
    const [member, other] = syncSet.includes('node2') ? [second, third] : [third, second];
    process.kill(other.pid, 'SIGSTOP');
    expect(syncSet).toEqual(['node1', member.id]);
    await first.sql('app.db', 'INSERT INTO t VALUES (1)');
    process.kill(member.pid, 'SIGSTOP');
    await first.kill();
    process.kill(other.pid, 'SIGCONT');
    const waits = 'only a member of the sync set may win';
    await waitFor(`${other.id} to hold back`, () => other.log().includes(waits));
    expect((await other.status()).role).toBe('replica');
    process.kill(member.pid, 'SIGCONT');
    await waitFor(`${member.id} to be primary`, async () => (await member.status()).role === 'primary');
    expect(await member.sql('app.db', 'SELECT n FROM t')).toBe('1');
    await member.sql('app.db', 'INSERT INTO t VALUES (2)');
    await cluster.assertSame('app.db');
  } finally {
    for (const node of cluster.nodes) if (node.running) process.kill(node.pid, 'SIGCONT');
    await cluster.stop();
  }
});

it('degrades loudly, with the sync set made smaller before, and waits again when the replica is back', async () => {
  const databases = [{ name: 'sure*', commit: 'replicas: 1' }];
  const config = {
    ...FRESH,
    durability: { commit: 'replicas: 1', 'on-timeout': 'degrade', timeout: '500ms', databases },
  };
  cluster = await TestCluster.start({ ttl: '2s', config });
  [primary, replica] = [cluster.node(1), cluster.node(2)];
  try {
    await primary.sql('app.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)');
    await cluster.caughtUp('app.db');
    expect((await primary.status()).durability).toMatchObject({ syncSet: ['node1', 'node2'], degraded: [] });
    process.kill(replica.pid, 'SIGSTOP');
    await primary.sql('app.db', 'INSERT INTO t VALUES (1)', 'INSERT INTO t VALUES (2)');
    expect((await primary.status()).durability).toEqual({
      syncSet: ['node1'],
      waiting: 0,
      degraded: ['app.db'],
    });
    expect(await primary.metric('kitefs_durability_degraded')).toBe(1);
    expect(primary.log()).toContain('commits do not wait any more');
    process.kill(replica.pid, 'SIGCONT');
    await waitFor('the replica to be in the set again', async () => {
      return (await primary.status()).durability?.degraded.length === 0;
    });
    expect((await primary.status()).durability?.syncSet).toEqual(['node1', 'node2']);
    await primary.sql('app.db', 'INSERT INTO t VALUES (3)');
    await cluster.assertSame('app.db');
  } finally {
    if (replica.running) process.kill(replica.pid, 'SIGCONT');
    await cluster.stop();
  }
});
