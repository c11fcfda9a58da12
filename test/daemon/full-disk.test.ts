import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestCluster, waitFor, type TestNode } from '../helpers/cluster.js';

/** A data directory on a disk of its own that fills up: nothing that was acknowledged may go. */

let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;

beforeAll(async () => {
  cluster = await TestCluster.start({ nodes: 0 });
  for (const node of [await cluster.prepare(), await cluster.prepare()]) {
    mkdirSync(node.dataDir);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', node.dataDir]);
    await node.start();
  }
  [primary, replica] = [cluster.node(1), cluster.node(2)];
});
afterAll(async () => {
  for (const node of cluster.nodes) {
    await node.stop();
    execFileSync('umount', ['-l', node.dataDir]);
  }
  await cluster.stop();
});

/** Takes the room of a node's disk, and gives it back. */
const fill = (node: TestNode): void => {
  const file = join(node.dataDir, 'fill');
  try {
    for (let i = 0; ; i += 1) writeFileSync(`${file}${i}`, Buffer.alloc(1 << 20));
  } catch {
    // ENOSPC: it is full.
  }
};
const free = (node: TestNode): void => {
  for (let i = 0; i < 32; i += 1) rmSync(join(node.dataDir, `fill${i}`), { force: true });
};

/** Inserts rows until one is refused; returns how many COMMITs have returned, and the error. */
async function writeUntilRefused(node: TestNode, name: string): Promise<{ count: number; error: string }> {
  for (let count = 0; ; count += 1) {
    try {
      await node.sql(name, 'INSERT INTO t (body) VALUES (randomblob(200000))');
    } catch (error) {
      return { count, error: String(error) };
    }
  }
}

describe.each(['WAL', 'DELETE'])('a disk that is full, with journal_mode=%s', (mode) => {
  const name = `${mode.toLowerCase()}.db`;

  it('gives writers an error of SQLite on the primary, loses nothing, and goes on when there is room', async () => {
    await primary.sql(name, `PRAGMA journal_mode=${mode}`, 'CREATE TABLE t (id INTEGER PRIMARY KEY, body)');
    await cluster.caughtUp(name);
    fill(primary);
    const { count, error } = await writeUntilRefused(primary, name);
    expect(error).toMatch(/full|I\/O/);
    expect(await primary.sql(name, 'SELECT count(*) FROM t')).toBe(String(count));
    expect((await primary.status()).role).toBe('primary');

    free(primary);
    await waitFor('writes to be taken again', async () =>
      primary.sql(name, "INSERT INTO t (body) VALUES ('after')").then(
        () => true,
        () => false,
      ),
    );
    expect(await primary.sql(name, 'SELECT count(*) FROM t')).toBe(String(count + 1));
    await cluster.assertSame(name);
  });

  it('holds the replica up until it has room, and the primary not at all', async () => {
    fill(replica);
    for (let i = 0; i < 3; i += 1)
      await primary.sql(name, 'INSERT INTO t (body) VALUES (randomblob(300000))');
    await waitFor('the replica to say so', () => /ERR_STORE_FULL|ERR_APPLIER_IO/.test(replica.log()));
    await replica.sql(name, 'SELECT count(*) FROM t');
    free(replica);
    await cluster.assertSame(name);
    for (const node of cluster.nodes) expect(node.log()).not.toMatch(/ERR_INTERNAL|this is a bug/);
  });
});
