import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { hostname } from 'node:os';
import { TestCluster, type TestNode, run, waitFor } from '../helpers/cluster.js';
import { Shell } from '../helpers/shell.js';

/**
 * What applications send when they open and close a database, on replicas: they read, each write gets a
 * clean error, and replication goes on. node2 may become primary, node3 never (`candidate: false`).
 */
const ON_OPEN: Readonly<Record<string, readonly string[]>> = {
  Rails: [
    'PRAGMA busy_timeout=5000',
    'PRAGMA foreign_keys=ON',
    'PRAGMA journal_mode=WAL',
    'PRAGMA synchronous=NORMAL',
    'PRAGMA mmap_size=134217728',
    'PRAGMA journal_size_limit=67108864',
    'PRAGMA cache_size=2000',
  ],
  Django: [
    'PRAGMA foreign_keys=ON',
    'PRAGMA legacy_alter_table=OFF',
    'PRAGMA journal_mode=WAL',
    'PRAGMA synchronous=NORMAL',
    'PRAGMA temp_store=2',
    'PRAGMA mmap_size=134217728',
  ],
  Laravel: [
    'PRAGMA foreign_keys=ON',
    'PRAGMA busy_timeout=5000',
    "PRAGMA journal_mode='wal'",
    'PRAGMA synchronous=normal',
  ],
  'EF Core': ['PRAGMA foreign_keys=1', 'PRAGMA recursive_triggers=1', "PRAGMA journal_mode='wal'"],
  'Go, mattn': [
    'PRAGMA busy_timeout=5000',
    'PRAGMA auto_vacuum=0',
    'PRAGMA case_sensitive_like=0',
    'PRAGMA foreign_keys=1',
    'PRAGMA locking_mode=NORMAL',
    'PRAGMA journal_mode=WAL',
    'PRAGMA synchronous=NORMAL',
    'PRAGMA secure_delete=DEFAULT',
  ],
  'Node, better-sqlite3': [
    'PRAGMA journal_mode=WAL',
    'PRAGMA wal_autocheckpoint=100',
    'PRAGMA cache_size=-32000',
    'PRAGMA page_size=8192',
    'PRAGMA encoding',
  ],
  'somebody with rollback journals': ['PRAGMA journal_mode=DELETE', 'PRAGMA synchronous=FULL'],
};

const ON_CLOSE = [
  'PRAGMA optimize',
  'PRAGMA analysis_limit=400',
  'ANALYZE',
  'PRAGMA wal_checkpoint(TRUNCATE)',
  'PRAGMA incremental_vacuum',
  'VACUUM',
];

const READ = "SELECT count(*) = max(id) AND min(body = 'x') FROM t";
const WRITES = [
  "INSERT INTO t(body) VALUES ('lost')",
  "BEGIN; UPDATE t SET body = 'lost'; COMMIT; ROLLBACK",
  'CREATE TABLE lost(x)',
  'DROP TABLE t',
  'PRAGMA user_version=13',
];

/** Reads JSON again and again, as a program that watches it does. */
const READ_STATUS = `
const { readFileSync } = require('node:fs');
for (let i = 0; i < 150; i += 1) JSON.parse(readFileSync(process.argv[1], 'utf8'));
console.log('whole');
`;

describe.each(['kernel', 'fuse-native'] as const)('with the %s driver', (driver) => {
  let cluster: TestCluster;
  let primary: TestNode;
  let shells: Shell[] = [];
  let writer: ChildProcess | undefined;

  const open = (path: string): Shell => {
    const shell = new Shell(path);
    shells.push(shell);
    return shell;
  };

  beforeAll(async () => {
    cluster = await TestCluster.start({ driver });
    await cluster.add({ driver, candidate: false });
    primary = cluster.node(1);
    for (const mode of ['wal', 'delete']) {
      await primary.sql(
        `${mode}.db`,
        `PRAGMA journal_mode=${mode}`,
        'CREATE TABLE t(id INTEGER PRIMARY KEY, body)',
        "INSERT INTO t(body) VALUES ('x'), ('x')",
      );
      await cluster.caughtUp(`${mode}.db`);
    }
  });

  afterEach(async () => {
    for (const shell of shells) await shell.kill();
    shells = [];
    writer?.kill('SIGKILL');
  });

  afterAll(async () => {
    await cluster.stop();
  });

  // The second driver shares all but the way into the kernel: the first, and the one that is unlike the others.
  const clients = Object.keys(ON_OPEN);
  const some = driver === 'kernel' ? clients : [clients[0]!, clients.at(-1)!];
  it.each(some)('serves what %s sends to replicas', async (who) => {
    for (const name of ['wal.db', 'delete.db']) {
      for (const number of [2, 3]) {
        const path = cluster.node(number).path(name);
        const [reader, shell] = [open(path), open(path)];
        expect(await reader.ask(READ)).toBe('1');
        // Leaving WAL mode is refused (a file open for reading gives SQLite's I/O error), nothing else is.
        const said = await shell.ask('.timeout 100', ...(ON_OPEN[who] ?? []));
        expect(said.replace(/Runtime error.*(database is locked|disk I\/O error).*/, '')).not.toContain(
          'rror',
        );
        expect(await shell.ask(READ)).toBe('1');
        for (const write of WRITES) {
          expect(await shell.ask(write), `${write} on node${number}`).toMatch(
            // Only the kernel driver knows who opens a file, and so can refuse applications that.
            number === 3 && driver === 'kernel'
              ? /attempt to write a readonly database/
              : /attempt to write a readonly database|disk I\/O error/,
          );
          expect(await shell.ask(READ)).toBe('1');
        }
        await primary.sql(name, "INSERT INTO t(body) VALUES ('x')");
        await cluster.caughtUp(name);
        await shell.ask(...ON_CLOSE);
        await shell.close();
        await primary.sql(name, "INSERT INTO t(body) VALUES ('x')");
        await cluster.caughtUp(name);
        expect(await reader.ask(READ)).toBe('1');
        expect(await reader.ask('SELECT count(*) FROM t')).toBe(
          await primary.sql(name, 'SELECT count(*) FROM t'),
        );
      }
      await cluster.assertSame(name);
    }
  });

  it.each(['IMMEDIATE', 'EXCLUSIVE'])(
    'goes on after applications held BEGIN %s on a replica',
    async (kind) => {
      for (const end of ['ROLLBACK', 'kill'] as const) {
        const shell = open(cluster.node(2).path('wal.db'));
        await waitFor(`BEGIN ${kind}`, async () => (await shell.ask(`BEGIN ${kind}`)) === '');
        await primary.sql('wal.db', "INSERT INTO t(body) VALUES ('x')", "INSERT INTO t(body) VALUES ('x')");
        expect(await shell.ask(READ)).toBe('1');
        if (end === 'kill') await shell.kill();
        else await shell.ask(end);
        await cluster.assertSame('wal.db');
        expect(await cluster.node(2).sql('wal.db', READ)).toBe('1');
      }
    },
  );

  it('is read without an error while the primary writes without a pause', async () => {
    const name = 'busy.db';
    await primary.sql(
      name,
      'PRAGMA journal_mode=wal',
      'CREATE TABLE t(id INTEGER PRIMARY KEY, body)',
      "INSERT INTO t(body) VALUES ('x')",
    );
    await cluster.caughtUp(name);
    writer = spawn(
      'sh',
      ['-c', 'yes "INSERT INTO t(body) VALUES (\'x\');" | sqlite3 -bail "$0"', primary.path(name)],
      { stdio: 'ignore', detached: true },
    );
    const ended = once(writer, 'exit');
    try {
      const before = await cluster.node(2).sql(name, 'SELECT max(id) FROM t');
      const readers = [2, 3].map((number) => open(cluster.node(number).path(name)));
      for (let round = 0; round < 40; round += 1) {
        for (const reader of readers) expect(await reader.ask(READ, 'PRAGMA quick_check')).toBe('1\nok');
        expect(await cluster.node(3).sql(name, READ)).toBe('1');
      }
      await waitFor(
        'more rows',
        async () => Number(await cluster.node(2).sql(name, 'SELECT max(id) FROM t')) > Number(before),
      );
    } finally {
      // The whole pipe, by its group.
      if (writer.pid) process.kill(-writer.pid, 'SIGKILL');
      await ended;
    }
    await cluster.assertSame(name);
  });

  it("shows .primary, .lag, -pos and .kitefs/status.json in LiteFS's formats", async () => {
    const cat = async (node: TestNode, name: string): Promise<string> =>
      await run('sh', ['-c', 'cat "$0"; echo .', node.path(name)]);
    await cluster.caughtUp('wal.db');
    const position = await cat(primary, 'wal.db-pos');
    expect(position).toMatch(/^[0-9a-f]{16}\/[0-9a-f]{16}\n\.$/);
    expect(await cat(primary, '.lag')).toBe('+000000000\n.');
    await expect(run('cat', [primary.path('.primary')])).rejects.toThrow('No such file');
    expect(await run('ls', ['-A', primary.mountDir])).toContain('.lag');
    for (const number of [2, 3]) {
      const node = cluster.node(number);
      expect(await cat(node, 'wal.db-pos')).toBe(position);
      expect(await cat(node, '.primary')).toBe(`${hostname()}\n.`);
      expect(await cat(node, '.lag')).toMatch(/^\+\d{9,10}\n\.$/);
      const status = JSON.parse(await run('cat', [node.path('.kitefs/status.json')])) as Awaited<
        ReturnType<TestNode['status']>
      >;
      expect(status).toMatchObject({
        nodeId: node.id,
        role: 'replica',
        candidate: number === 2,
        primary: { nodeId: 'node1' },
      });
      expect(`${status.databases.find(({ name }) => name === 'wal.db')?.appliedPosition}\n.`).toBe(position);
      for (const file of ['.primary', '.lag', 'wal.db-pos', '.kitefs/status.json']) {
        await expect(run('sh', ['-c', 'echo x > "$0"', node.path(file)])).rejects.toThrow(
          /denied|Read-only|not permitted/,
        );
      }
    }
    // A commit is in `-pos` as soon as it is answered: applications make their tokens from it.
    for (let round = 0; round < 20; round += 1) {
      const before = await cat(primary, 'wal.db-pos');
      await primary.sql('wal.db', "INSERT INTO t(body) VALUES ('x')");
      expect((await cat(primary, 'wal.db-pos')) > before).toBe(true);
    }
    // Each reader gets one content, whole, however many read it while it changes.
    const readers = [1, 2, 3].map((number) =>
      run(process.execPath, [
        '-e',
        READ_STATUS,
        cluster.node(number % 2 === 0 ? 2 : 1).path('.kitefs/status.json'),
      ]),
    );
    expect(await Promise.all(readers)).toEqual(['whole', 'whole', 'whole']);
  });

  it('refuses to make, remove, move or write over anything on a replica', async () => {
    for (const number of [2, 3]) {
      const node = cluster.node(number);
      const shell = open(node.path('new.db'));
      expect(await shell.ask('CREATE TABLE t(x)')).toMatch(
        /readonly database|unable to open|disk I\/O error/,
      );
      for (const command of [
        'cp wal.db copy.db',
        'rm -f wal.db',
        'mv wal.db other.db',
        'mv wal.db-wal w',
        ': > wal.db',
        'dd if=/dev/zero of=wal.db bs=100 count=1 conv=notrunc',
        'dd if=/dev/zero of=wal.db-wal bs=100 count=1 conv=notrunc',
        'truncate -s 5 wal.db',
        'truncate -s 0 wal.db-wal',
        'echo hello > file.txt',
      ]) {
        await expect(run('sh', ['-c', command], { cwd: node.mountDir }), command).rejects.toThrow(
          /Read-only|denied|not permitted|Input\/output|busy/,
        );
      }
      expect(await node.sql('wal.db', READ)).toBe('1');
    }
    await primary.sql('wal.db', "INSERT INTO t(body) VALUES ('x')");
    await cluster.assertSame('wal.db');
    expect(await run('ls', [cluster.node(2).mountDir])).not.toMatch(/copy|other|file/);
  });
});
