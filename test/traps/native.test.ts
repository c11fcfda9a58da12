import { expect, it } from 'vitest';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
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
      'exec 3<"$1" && echo open && read end',
      'sh',
      primary.path('a.db-journal'),
    ]);
    await once(reader.stdout, 'data');
    await open.run('COMMIT');
    expect(await run('ls', ['-a', primary.mountDir])).not.toMatch(/fuse_hidden|journal/);
    await cluster.assertSame('a.db');
    expect(await replica.sql('a.db', 'SELECT n FROM t')).toBe('1');
    reader.stdin.end();
    await open.run('INSERT INTO t VALUES (2)');
    await open.close();
    await cluster.assertSame('a.db');
  } finally {
    await cluster.stop();
  }
});
