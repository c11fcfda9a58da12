import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  closeSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { TestCluster, type TestNode, run, waitFor } from '../helpers/cluster.js';

/** Databases and transactions that are too large to be held in memory, kept cheap by holes and big pages. */
const PAGE_BYTES = 65_536;
/** SQLite never uses the page that holds byte 2^30, and LTX leaves it out. */
const LOCK_PGNO = 2 ** 30 / PAGE_BYTES + 1;

let cluster: TestCluster;
let primary: TestNode;
let replica: TestNode;

beforeAll(async () => {
  cluster = await TestCluster.start();
  [primary, replica] = [cluster.node(1), cluster.node(2)];
});

afterAll(async () => {
  await cluster.stop();
});

/**
 * A sound database with the lock page inside, of which only a few pages take space on the disk: all others
 * are on the free list (sqlite.org/fileformat2.html §1.5), whose leaves may hold anything.
 */
function makeSparseDatabase(path: string, pages: number): void {
  const database = new Database(path);
  database.pragma(`page_size = ${PAGE_BYTES}`);
  database.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, body); INSERT INTO t(body) VALUES ('first')");
  database.close();
  const fd = openSync(path, 'r+');
  const header = Buffer.alloc(100);
  readSync(fd, header, 0, 100, 0);
  const used = header.readUInt32BE(28);
  const leavesMax = PAGE_BYTES / 4 - 2;
  const free: number[] = [];
  for (let pgno = used + 1; pgno <= pages; pgno += 1) if (pgno !== LOCK_PGNO) free.push(pgno);
  ftruncateSync(fd, pages * PAGE_BYTES);
  header.writeUInt32BE(pages, 28);
  header.writeUInt32BE(free[0] ?? 0, 32);
  header.writeUInt32BE(free.length, 36);
  for (let rest = free; rest.length > 0;) {
    const [trunk = 0, ...others] = rest;
    const leaves = others.slice(0, leavesMax);
    rest = others.slice(leavesMax);
    const page = Buffer.alloc(8 + leaves.length * 4);
    page.writeUInt32BE(rest[0] ?? 0, 0);
    page.writeUInt32BE(leaves.length, 4);
    leaves.forEach((pgno, i) => page.writeUInt32BE(pgno, 8 + i * 4));
    writeSync(fd, page, 0, page.length, (trunk - 1) * PAGE_BYTES);
  }
  writeSync(fd, header, 0, 100, 0);
  closeSync(fd);
}

/** Both nodes' files hold the same bytes, the WALs being emptied; reads nothing into memory. */
async function assertSameFiles(name: string): Promise<void> {
  await cluster.caughtUp(name);
  for (const node of cluster.nodes) {
    await waitFor(`${node.id} to empty the WAL of ${name}`, async () => {
      return (await node.sql(name, 'PRAGMA wal_checkpoint(TRUNCATE)')) === '0|0|0';
    });
  }
  await run('cmp', [primary.path(name), replica.path(name)]);
}

it('replicates a database beyond 1 GiB, around the page that SQLite leaves out', async () => {
  const name = 'sparse.db';
  const source = join(cluster.dir, name);
  makeSparseDatabase(source, LOCK_PGNO + 40);
  expect(statSync(source).size).toBeGreaterThan(2 ** 30);
  await run('cp', ['--sparse=always', source, primary.path(name)]);
  await primary.sql(name, 'PRAGMA journal_mode=wal');
  await cluster.caughtUp(name);

  // Pages on both sides of the lock page are taken from the free list, last ones first, then the file grows.
  const insert = (rows: number): string =>
    `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${rows}) INSERT INTO t(body) SELECT randomblob(60000) FROM n`;
  await primary.sql(name, insert(60));
  await cluster.caughtUp(name);
  await primary.sql(
    name,
    'PRAGMA journal_mode=delete',
    insert(5),
    'DELETE FROM t WHERE id % 2',
    'PRAGMA journal_mode=wal',
  );
  await primary.sql(name, insert(5));
  await assertSameFiles(name);
  expect(await replica.sql(name, 'PRAGMA integrity_check', 'SELECT count(*) FROM t')).toBe('ok\n38');
});

it('takes a transaction of 96 MB in bounded memory', async () => {
  const name = 'big.db';
  await primary.sql(name, 'PRAGMA journal_mode=wal', 'CREATE TABLE t(id INTEGER PRIMARY KEY, body)');
  await cluster.caughtUp(name);
  const processes = [primary, replica].flatMap((node) => [node.pid, ...childrenOf(node.pid)]);
  const before = processes.map((pid) => residentMiB(pid, 'VmRSS'));
  for (const pid of processes) writeFileSync(`/proc/${pid}/clear_refs`, '5'); // starts the peak anew
  const rows = 'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 96)';
  await primary.sql(name, `${rows} INSERT INTO t(body) SELECT randomblob(1000000) FROM n`);
  await assertSameFiles(name);
  const growth = processes.map((pid, i) => residentMiB(pid, 'VmHWM') - (before[i] ?? 0));
  console.log(`before ${before.join(' ')} MiB, growth ${growth.join(' ')} MiB`);
  expect(Math.max(...growth)).toBeLessThan(85);
  expect(await replica.sql(name, 'SELECT count(*), sum(length(body)) FROM t')).toBe('96|96000000');
});

/** The daemon's applier and guard. */
function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
}

function residentMiB(pid: number, field: 'VmRSS' | 'VmHWM'): number {
  const line = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Math.round(Number(line?.[1]) / 1024);
}
