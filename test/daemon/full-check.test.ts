import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { databasePaths } from '../../src/store/data-directory.js';
import { run, TestCluster, waitFor, type TestNode } from '../helpers/cluster.js';

/**
 * After a clean stop a start compares page 1 and the size of a database only; the full check behind it must find the rest,
 * on a primary and on a replica, and must take nothing for damage that applications write meanwhile.
 */

let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;

const WRITER = fileURLToPath(new URL('busy-writer.mjs', import.meta.url));

async function start(checkRate: string): Promise<void> {
  cluster = await TestCluster.start({ config: { data: { 'check-rate': checkRate } } });
  [primary, replica] = [cluster.node(1), cluster.node(2)];
}

const rows = (count: number): string =>
  `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count}) INSERT INTO t(x) SELECT hex(randomblob(450)) FROM n`;

async function make(name: string, journalMode: string, count = 200): Promise<void> {
  await primary.sql(
    name,
    `PRAGMA journal_mode=${journalMode}`,
    'CREATE TABLE t(id INTEGER PRIMARY KEY, x)',
    rows(count),
  );
  await cluster.caughtUp(name);
}

/** Changes one byte of a page of a stopped node; all of the WAL is in the database file before. */
async function damage(node: TestNode, name: string, pgno: number): Promise<Buffer> {
  const path = databasePaths(node.dataDir, name).database;
  await run('sqlite3', [path, 'PRAGMA wal_checkpoint(TRUNCATE)']);
  const fd = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  const at = (pgno - 1) * 4096 + 2000;
  readSync(fd, byte, 0, 1, at);
  writeSync(fd, Buffer.from([(byte[0] ?? 0) ^ 0xff]), 0, 1, at);
  closeSync(fd);
  return readFileSync(path);
}

const isChecked = async (node: TestNode, name: string): Promise<boolean> => {
  const check = (await node.database(name))?.check;
  return check !== undefined && check.checkedPages === check.pages;
};

afterAll(async () => {
  await cluster.stop();
});

describe('a page that was damaged while its node was stopped', () => {
  beforeAll(async () => {
    await start('1GB');
    for (const name of ['good.db', 'bad.db']) await make(name, 'wal');
  });
  afterAll(async () => {
    await cluster.stop();
  });

  it('is found on a replica, which then gets the database anew', async () => {
    await replica.stop();
    await damage(replica, 'bad.db', 17);
    await replica.start();
    await waitFor('the event that names the page', async () =>
      (await replica.status()).events.some(
        ({ kind, message }) => kind === 'database-failed' && message.includes('bad.db: page 17 is not as'),
      ),
    );
    await primary.sql('bad.db', 'INSERT INTO t(x) VALUES (1)');
    await cluster.assertSame('bad.db');
    for (const name of ['good.db', 'bad.db']) {
      await waitFor(`${name} to be checked`, () => isChecked(replica, name));
    }
    expect((await replica.database('bad.db'))?.error).toBeUndefined();
    expect(replica.log()).not.toMatch(/ERR_INTERNAL|this is a bug/);
  });

  it('is found on a primary: the database is stopped with an error that names it, the others are served', async () => {
    await replica.stop();
    await primary.stop();
    const before = await damage(primary, 'bad.db', 17);
    await primary.start();
    const error = async (): Promise<string> => (await primary.database('bad.db'))?.error ?? '';
    await waitFor('the error that names the page', async () =>
      /bad\.db: page 17 is not as committed.*\[ERR_CAPTURE_DAMAGED\]/.test(await error()),
    );
    expect(await primary.metric('kitefs_db_error{db="bad.db"}')).toBe(1);
    await expect(primary.sql('bad.db', 'INSERT INTO t(x) VALUES (1)')).rejects.toThrow(/disk I\/O|readonly/);
    expect(readFileSync(databasePaths(primary.dataDir, 'bad.db').database).equals(before)).toBe(true);
    await waitFor('good.db to be checked', () => isChecked(primary, 'good.db'));
    await primary.sql('good.db', 'INSERT INTO t(x) VALUES (1)');
    // It does not forget: the next start compares every page before it serves.
    await primary.stop();
    await primary.start();
    expect(await error()).toMatch(/ERR_CAPTURE_DAMAGED/);
  });

  it('is got rid of by the steps of docs/runbooks/damaged-database.md, with a replica that has all of it', async () => {
    const { position } = (await primary.database('bad.db'))!;
    await replica.start();
    const url = `http://127.0.0.1:${replica.httpPort}`;
    const status = await runCli(['status', '--url', url]);
    expect(status.stdout).toContain(position);
    expect(status.stdout).not.toContain('DAMAGED');
    expect(await runCli(['promote', '--url', url])).toMatchObject({ code: 0 });
    await waitFor('the damaged node to say rebuild', async () =>
      (await primary.status()).events.some(
        (event) => event.kind === 'rebuild' && event.database === 'bad.db',
      ),
    );
    await replica.sql('bad.db', 'INSERT INTO t(x) VALUES (2)');
    await cluster.assertSame('bad.db');
    for (const node of [primary, replica]) {
      expect(await node.sql('bad.db', 'PRAGMA integrity_check')).toBe('ok');
    }
    expect((await primary.database('bad.db'))?.error).toBeUndefined();
  });
});

it('takes nothing for damage that busy applications write during the check, on either side', async () => {
  await start('2MB');
  const modes = ['wal', 'delete', 'persist'];
  for (const mode of modes) await make(`${mode}.db`, mode, 700);
  await replica.stop();
  await primary.stop();
  await primary.start();
  await replica.start();
  const writers: ChildProcess[] = modes.map((mode) =>
    spawn(process.execPath, [WRITER, primary.path(`${mode}.db`)], { stdio: ['pipe', 'inherit', 'inherit'] }),
  );
  for (const mode of modes) {
    for (const node of [primary, replica]) {
      await waitFor(
        () => `${mode}.db on ${node.id} to be checked; its log ends:\n${node.logTail(5)}`,
        () => isChecked(node, `${mode}.db`),
      );
    }
  }
  expect(writers.map(({ exitCode }) => exitCode)).toEqual(modes.map(() => null));
  for (const writer of writers) {
    writer.stdin?.end();
    await once(writer, 'exit');
    expect(writer.exitCode).toBe(0);
  }
  for (const mode of modes) await cluster.assertSame(`${mode}.db`);
  for (const node of [primary, replica]) {
    expect(node.log()).not.toMatch(/database-failed|DAMAGED|rebuild/);
  }
});
