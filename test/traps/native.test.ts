import { expect, it } from 'vitest';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readlinkSync } from 'node:fs';
import { TestCluster, run } from '../helpers/cluster.js';
import { Connection } from './scene.js';

it('captures a rollback-journal commit while somebody has the journal open, with fuse-native (trap 23)', async () => {
  const cluster = await TestCluster.start({ driver: 'fuse-native' });
  try {
    const [primary, replica] = [cluster.node(1), cluster.node(2)];
    const open = await Connection.open(
      primary.path('a.db'),
      'PRAGMA journal_mode=delete',
      'CREATE TABLE t(n)',
    );
    await open.run('BEGIN');
    await open.run('INSERT INTO t VALUES (1)');
    const reader = spawn('sh', [
      '-c',
      'exec 3<"$1" && echo open && read end; wc -c <&3',
      'sh',
      primary.path('a.db-journal'),
    ]);
    await once(reader.stdout, 'data');
    await open.run('COMMIT');
    expect(await run('ls', ['-a', primary.mountDir])).not.toMatch(/fuse_hidden|journal/);
    await cluster.assertSame('a.db');
    expect(await replica.sql('a.db', 'SELECT n FROM t')).toBe('1');
    // What was removed is read on by who has it open.
    reader.stdin.end();
    const [size] = (await once(reader.stdout, 'data')) as [Buffer];
    expect(Number(size.toString())).toBeGreaterThan(512);
    await open.run('INSERT INTO t VALUES (2)');
    await open.close();
    await cluster.assertSame('a.db');
  } finally {
    await cluster.stop();
  }
});

it('lets no child inherit /dev/fuse, so that a killed daemon leaves nothing that hangs (DESIGN §1.4)', async () => {
  const cluster = await TestCluster.start({ nodes: 1, driver: 'fuse-native' });
  try {
    const node = cluster.node(1);
    await node.sql('a.db', 'CREATE TABLE t(n)');
    const children = (await run('pgrep', ['-P', String(node.pid)])).split('\n');
    const holders = children.filter((pid) => opened(pid).includes('/dev/fuse'));
    expect(opened(String(node.pid))).toContain('/dev/fuse');
    expect(holders).toEqual([]);
    await node.kill();
    await expect(run('ls', [node.mountDir], { limitMs: 10_000 })).rejects.toThrow(/not connected/);
    await node.start();
    expect(await node.sql('a.db', 'SELECT count(*) FROM t')).toBe('0');
  } finally {
    await cluster.stop();
  }
});

/** What a process has open. */
function opened(pid: string): string[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return []; // closed meanwhile
    }
  });
}
