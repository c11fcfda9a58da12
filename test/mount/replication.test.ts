import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { TestCluster, run, sqlite } from '../helpers/cluster.js';

/** What an application writes on one node is read on the other, byte for byte, whatever its journal. */
const DRIVERS = ['kernel', 'fuse-native'] as const;
const JOURNAL_MODES = ['wal', 'delete', 'truncate', 'persist'] as const;
const PAGE_SIZES = [512, 4096, 65_536] as const;

const WRITERS = 2;
const ROWS_EACH = 40;

/** Inserts rows one transaction each from its own process, as an application would. */
async function writer(path: string, number: number): Promise<void> {
  const statements = Array.from(
    { length: ROWS_EACH },
    (_, i) => `INSERT INTO t(writer, n, body) VALUES (${number}, ${i}, randomblob(${100 + i * 37}));`,
  );
  const child = spawn('sqlite3', ['-bail', '-cmd', '.timeout 60000', path], {
    stdio: ['pipe', 'ignore', 'pipe'],
  });
  let errors = '';
  child.stderr.on('data', (text: Buffer) => (errors += text.toString()));
  child.stdin.end(statements.join('\n'));
  const [code] = await once(child, 'exit');
  expect({ code, errors }).toEqual({ code: 0, errors: '' });
}

describe.each(DRIVERS)('with the %s driver', (driver) => {
  let cluster: TestCluster;

  beforeAll(async () => {
    cluster = await TestCluster.start({ driver });
  });

  afterAll(async () => {
    await cluster.stop();
  });

  const cases = JOURNAL_MODES.flatMap((mode) => PAGE_SIZES.map((pageSize) => ({ mode, pageSize })));

  it.each(cases)('replicates $mode with pages of $pageSize bytes', async ({ mode, pageSize }) => {
    const [primary, replica] = [cluster.node(1), cluster.node(2)];
    const name = `${mode}-${pageSize}.db`;
    await primary.sql(
      name,
      `PRAGMA page_size=${pageSize}`,
      `PRAGMA journal_mode=${mode}`,
      'CREATE TABLE t(id INTEGER PRIMARY KEY, writer, n, body)',
      'CREATE INDEX t_writer ON t(writer, n)',
    );
    await cluster.caughtUp(name);

    const writers = Array.from({ length: WRITERS }, (_, i) => writer(primary.path(name), i));
    const writing = { now: WRITERS };
    for (const ended of writers) ended.finally(() => (writing.now -= 1)).catch(() => undefined);
    // A reader of the replica sees each writer's rows without holes at any moment.
    while (writing.now > 0) {
      const answer = await replica.sql(
        name,
        'SELECT count(*) FROM (SELECT writer, count(*) c, max(n) m FROM t GROUP BY writer) WHERE c <> m + 1',
      );
      expect(answer).toBe('0');
    }
    await Promise.all(writers);

    await cluster.assertSame(name);
    expect(await replica.sql(name, 'SELECT count(*) FROM t')).toBe(String(WRITERS * ROWS_EACH));
  });

  it('leaves data that the stock sqlite3 opens when a node is stopped', async () => {
    await cluster.node(2).stop();
    await cluster.node(1).stop();
    for (const node of cluster.nodes) {
      for (const { mode, pageSize } of cases) {
        const name = `${mode}-${pageSize}.db`;
        const folder = join(node.dataDir, 'dbs', encodeURIComponent(name));
        const source = join(folder, 'database');
        // Without them the next start would read every page.
        expect(existsSync(join(folder, 'checksums')), `${node.id} ${name}`).toBe(true);
        expect(await sqlite(source, 'PRAGMA integrity_check', 'SELECT count(*) FROM t')).toBe(
          `ok\n${WRITERS * ROWS_EACH}`,
        );
      }
    }
  });
});

it('keeps every database of several folders apart', async () => {
  const cluster = await TestCluster.start();
  try {
    const primary = cluster.node(1);
    await run('mkdir', ['-p', primary.path('tenants/a')]);
    for (const name of ['tenants/1.db', 'tenants/a/1.db', '1.db']) {
      await primary.sql(
        name,
        'PRAGMA journal_mode=wal',
        'CREATE TABLE t(x)',
        `INSERT INTO t VALUES ('${name}')`,
      );
    }
    for (const name of ['tenants/1.db', 'tenants/a/1.db', '1.db']) {
      await cluster.assertSame(name);
      expect(await cluster.node(2).sql(name, 'SELECT x FROM t')).toBe(name);
    }
  } finally {
    await cluster.stop();
  }
});
