import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { TestCluster, type TestNode, run, sqlite, waitFor } from '../helpers/cluster.js';
import { Shell } from '../helpers/shell.js';

/**
 * What SQLite itself and its shell do to a database on the primary's mount works as on any disk, and the
 * replica ends with the same bytes.
 */
const ROWS = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
  INSERT INTO t(a, b) SELECT 'row ' || i, zeroblob(i * 7) FROM n`;
const TABLE = 'CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b BLOB)';

describe.each(['kernel', 'fuse-native'] as const)('with the %s driver', (driver) => {
  /** Variants of one thing: all with the first driver; with the second, which shares all but the way into the kernel, the first two. */
  const variants = <T>(...all: readonly T[]): readonly T[] => (driver === 'kernel' ? all : all.slice(0, 2));
  let cluster: TestCluster;
  let primary: TestNode;
  let replica: TestNode;
  let outside: string;
  let shells: Shell[] = [];
  let name = '';
  let count = 0;

  /** A connection that stays open until the test ends. */
  const open = (path = primary.path(name)): Shell => {
    const shell = new Shell(path);
    shells.push(shell);
    return shell;
  };

  beforeAll(async () => {
    cluster = await TestCluster.start({ driver });
    [primary, replica] = [cluster.node(1), cluster.node(2)];
    outside = join(cluster.dir, 'outside');
    mkdirSync(outside);
  });

  beforeEach(() => {
    name = `db${++count}.db`;
  });

  afterEach(async () => {
    for (const shell of shells) await shell.kill();
    shells = [];
  });

  afterAll(async () => {
    await cluster.stop();
  });

  it.each(['wal', 'delete'])('vacuums, in place and into a copy, in %s mode', async (mode) => {
    await primary.sql(name, `PRAGMA journal_mode=${mode}`, TABLE, ROWS, ROWS, ROWS);
    await cluster.caughtUp(name);
    await primary.sql(name, 'DELETE FROM t WHERE id % 3 <> 0', 'VACUUM', 'PRAGMA wal_checkpoint(TRUNCATE)');
    await cluster.assertSame(name);
    await primary.sql(name, `VACUUM INTO '${primary.path(`copy-of-${name}`)}'`);
    await cluster.assertSame(`copy-of-${name}`);
    expect(await replica.sql(`copy-of-${name}`, 'SELECT count(*) FROM t')).toBe('200');
    await primary.sql(name, ROWS);
    await cluster.assertSame(name);
  });

  it('changes the page size, to and fro, also between two WAL sessions', async () => {
    await primary.sql(name, TABLE, ROWS);
    const reader = open(replica.path(name));
    await cluster.caughtUp(name);
    expect(await reader.ask('SELECT count(*) FROM t')).toBe('200');
    for (const size of [8192, 1024, 65_536, 512, 4096]) {
      expect(
        await primary.sql(
          name,
          'PRAGMA journal_mode=delete',
          `PRAGMA page_size=${size}`,
          'VACUUM',
          'PRAGMA page_size',
        ),
      ).toBe(`delete\n${size}`);
      await primary.sql(name, 'PRAGMA journal_mode=wal', ROWS);
      await cluster.assertSame(name);
      expect(await reader.ask('SELECT count(*) > 200, count(DISTINCT a) FROM t')).toBe('1|200');
    }
  });

  it.each([
    ['full', 'wal'],
    ['incremental', 'truncate'],
  ])('shrinks with auto_vacuum=%s in %s mode, and grows again', async (vacuum, mode) => {
    await primary.sql(name, `PRAGMA auto_vacuum=${vacuum}`, `PRAGMA journal_mode=${mode}`, TABLE);
    for (let round = 0; round < 2; round += 1) {
      await primary.sql(name, ROWS, ROWS, ROWS);
      await primary.sql(name, 'DELETE FROM t WHERE id % 5 <> 1');
      await primary.sql(name, 'PRAGMA incremental_vacuum(20)');
      await cluster.assertSame(name);
      await primary.sql(name, 'DELETE FROM t', 'PRAGMA incremental_vacuum');
      await cluster.assertSame(name);
    }
  });

  it.each(variants('wal', 'delete', 'truncate', 'persist'))(
    'commits and rolls back over several attached databases in %s mode',
    async (mode) => {
      const names = ['a', 'b', 'c'].map((letter) => `${letter}-${name}`);
      for (const each of names) await primary.sql(each, `PRAGMA journal_mode=${mode}`, TABLE);
      const [first = '', second = '', third = ''] = names;
      const attach = [
        `ATTACH '${primary.path(second)}' AS b`,
        `ATTACH '${primary.path(third)}' AS c`,
        'PRAGMA b.journal_mode',
      ];
      const insert = ['', 'b.', 'c.'].map((schema) => `INSERT INTO ${schema}t(a) VALUES ('x')`);
      for (let round = 0; round < 3; round += 1) {
        await primary.sql(first, ...attach, 'BEGIN', ...insert, 'COMMIT', 'BEGIN', ...insert, 'ROLLBACK');
      }
      for (const each of names) {
        await cluster.assertSame(each);
        expect(await replica.sql(each, 'SELECT count(*) FROM t')).toBe('3');
      }
      expect(await run('sh', ['-c', 'ls -A | grep -e -mj || true'], { cwd: primary.mountDir })).toBe('');
    },
  );

  it.each(['wal', 'persist'])('takes every kind of DDL in %s mode', async (mode) => {
    const shell = open();
    const answer = await shell.ask(
      `PRAGMA journal_mode=${mode}`,
      TABLE,
      ROWS,
      'CREATE UNIQUE INDEX t_a ON t(a, id)',
      'CREATE VIEW v AS SELECT a FROM t',
      'CREATE TABLE log(x)',
      'CREATE TRIGGER tr AFTER DELETE ON t BEGIN INSERT INTO log VALUES (old.a); END',
      'ALTER TABLE t ADD COLUMN c DEFAULT 5',
      'ALTER TABLE t RENAME COLUMN c TO d',
      'ALTER TABLE t DROP COLUMN b',
      'ALTER TABLE t RENAME TO u',
      'CREATE VIRTUAL TABLE f USING fts5(body)',
      'INSERT INTO f SELECT a FROM u',
      'CREATE TABLE w(k PRIMARY KEY, v AS (k || 1) STORED) WITHOUT ROWID',
      "INSERT INTO w(k) VALUES ('x'), ('y')",
      'DELETE FROM u WHERE id < 5',
      'REINDEX',
      'ANALYZE',
      'DROP INDEX t_a',
      'PRAGMA user_version=7',
      'PRAGMA application_id=99',
      'SELECT count(*), sum(d) FROM u',
    );
    expect(answer).toBe(`${mode}\n196|980`);
    await cluster.assertSame(name);
    expect(await replica.sql(name, "SELECT count(*) FROM f WHERE f MATCH 'row'", 'PRAGMA user_version')).toBe(
      '200\n7',
    );
  });

  it('serves .backup, .restore, .clone, .dump and .recover', async () => {
    await primary.sql(name, 'PRAGMA journal_mode=wal', TABLE, ROWS);
    const shell = open();
    const [backup, clone, kept] = [`backup-${name}`, `clone-${name}`, join(outside, name)];
    expect(await shell.ask(`.backup ${primary.path(backup)}`, `.backup ${kept}`)).toBe('');
    await cluster.assertSame(backup);
    expect(await shell.ask(`.clone ${primary.path(clone)}`)).toContain('t... done');
    await cluster.assertSame(clone);
    expect(await replica.sql(clone, 'SELECT count(*) FROM t')).toBe('200');

    expect(await shell.ask('DELETE FROM t', ROWS, ROWS, `.restore ${kept}`, 'SELECT count(*) FROM t')).toBe(
      '200',
    );
    await cluster.assertSame(name);
    // A backup over a database that is in use is a transaction like any other.
    await sqlite(kept, ROWS, 'VACUUM');
    const reader = open(primary.path(backup));
    expect(await reader.ask('SELECT count(*) FROM t')).toBe('200');
    await run('sqlite3', [kept, `.backup ${primary.path(backup)}`]);
    expect(await reader.ask('SELECT count(*) FROM t')).toBe('400');
    await cluster.assertSame(backup);

    const dumped = `dump-${name}`;
    await run('sh', [
      '-c',
      'sqlite3 "$0" .dump | sqlite3 -bail "$1"',
      primary.path(name),
      primary.path(dumped),
    ]);
    await cluster.assertSame(dumped);
    expect(await replica.sql(dumped, 'SELECT count(*) FROM t')).toBe('200');
    // Debian's 3.40 cannot recover anything, so what counts is that it says the same as on any disk.
    const recover = async (path: string): Promise<string> =>
      await run('sh', ['-c', 'sqlite3 "$0" .recover 2>&1 || true', path]);
    await shell.close();
    await run('cp', [primary.path(dumped), kept]);
    expect(await recover(primary.path(dumped))).toBe(await recover(kept));
  });

  it('switches between all journal modes, also beside open connections', async () => {
    await primary.sql(name, TABLE);
    const modes = [
      'delete',
      'wal',
      'truncate',
      'wal',
      'persist',
      'wal',
      'delete',
      'truncate',
      'persist',
      'delete',
    ];
    const shell = open();
    const replicaReader = open(replica.path(name));
    await cluster.caughtUp(name);
    for (const mode of modes) {
      expect(await shell.ask(`PRAGMA journal_mode=${mode}`, "INSERT INTO t(a) VALUES ('x')")).toBe(mode);
      await cluster.caughtUp(name);
      expect(await replicaReader.ask('SELECT count(*) > 0 FROM t')).toBe('1');
    }
    await cluster.assertSame(name);

    // Beside another connection, as SQLite has it: into WAL at once, out of it only when that one is gone.
    const other = open();
    expect(await other.ask('SELECT count(*) FROM t')).toBe(String(modes.length));
    expect(await shell.ask('PRAGMA journal_mode=wal', "INSERT INTO t(a) VALUES ('y')")).toBe('wal');
    expect(await other.ask("INSERT INTO t(a) VALUES ('z')", 'SELECT count(*) FROM t')).toBe(
      String(modes.length + 2),
    );
    expect(await other.ask('PRAGMA journal_mode=delete')).toContain('database is locked');
    await cluster.assertSame(name);
    await shell.close();
    expect(await other.ask('PRAGMA journal_mode=delete', "INSERT INTO t(a) VALUES ('w')")).toBe('delete');
    await cluster.assertSame(name);
    expect(await replica.sql(name, 'SELECT count(*) FROM t')).toBe(
      await primary.sql(name, 'SELECT count(*) FROM t'),
    );
  });

  it.each(['off', 'memory'])(
    'refuses journal_mode=%s, which nobody can replicate, and keeps the data',
    async (mode) => {
      await primary.sql(name, TABLE, ROWS);
      const shell = open();
      expect(await shell.ask(`PRAGMA journal_mode=${mode}`)).toBe(mode);
      expect(await shell.ask("UPDATE t SET a = 'lost'")).toContain('disk I/O error');
      await shell.close();
      await primary.sql(name, "INSERT INTO t(a) VALUES ('kept')");
      await cluster.assertSame(name);
      expect(await replica.sql(name, "SELECT count(*), sum(a = 'lost') FROM t")).toBe('201|0');
      expect(primary.log()).toContain('journal_mode=OFF or MEMORY');
    },
  );

  it.each(variants('wal', 'delete', 'truncate', 'persist'))(
    'serves locking_mode=EXCLUSIVE in %s mode',
    async (mode) => {
      const shell = open();
      await shell.ask('PRAGMA locking_mode=EXCLUSIVE', `PRAGMA journal_mode=${mode}`, TABLE);
      for (let round = 0; round < 3; round += 1) {
        expect(await shell.ask('BEGIN', ROWS, 'ROLLBACK', ROWS, 'DELETE FROM t WHERE id % 2', 'VACUUM')).toBe(
          '',
        );
      }
      await shell.ask('PRAGMA wal_checkpoint(TRUNCATE)', ROWS);
      await cluster.caughtUp(name);
      expect(await replica.sql(name, 'SELECT count(*) > 200 FROM t')).toBe('1');
      // SQLite stays exclusive when a WAL was opened so.
      const sharing = mode === 'wal' ? 'exclusive' : 'normal';
      expect(await shell.ask('PRAGMA locking_mode=NORMAL', 'SELECT count(*) > 200 FROM t')).toBe(
        `${sharing}\n1`,
      );
      if (mode === 'wal') await shell.close();
      await primary.sql(name, ROWS);
      await cluster.assertSame(name);
      await shell.close();
      const second = open();
      expect(await second.ask('PRAGMA locking_mode=EXCLUSIVE', ROWS)).toBe('exclusive');
      await second.kill();
      await cluster.assertSame(name);
    },
  );

  it.each(variants('truncate', 'passive', 'full', 'restart'))('checkpoints: %s', async (kind) => {
    await primary.sql(name, 'PRAGMA journal_mode=wal', TABLE, ROWS);
    const shells = [open(), open()] as const;
    const reader = open();
    for (let round = 0; round < 4; round += 1) {
      for (const shell of shells) {
        expect(await shell.ask("INSERT INTO t(a, b) VALUES ('c', randomblob(20000))")).toBe('');
        expect(await shell.ask(`PRAGMA wal_checkpoint(${kind})`)).toMatch(/^[01]\|/);
      }
      // Every other round with a reader in its snapshot.
      await reader.ask(round % 2 === 0 ? 'BEGIN; SELECT count(*) FROM t' : 'COMMIT');
    }
    await cluster.assertSame(name);
  });

  it('keeps to wal_autocheckpoint and journal_size_limit', async () => {
    const shell = open();
    await shell.ask(
      'PRAGMA journal_mode=wal',
      'PRAGMA wal_autocheckpoint=5',
      'PRAGMA journal_size_limit=20000',
      TABLE,
    );
    for (let round = 0; round < 10; round += 1)
      await shell.ask(`BEGIN; ${ROWS}; COMMIT; DELETE FROM t WHERE id % 2`);
    expect(await shell.ask('.filectrl persist_wal 1')).toContain('1');
    await shell.close();
    await cluster.assertSame(name);
    await primary.sql(name, ROWS);
    await cluster.assertSame(name);
  });

  it.each(['wal', 'delete'])('reads through mmap_size while others write, in %s mode', async (mode) => {
    await primary.sql(name, `PRAGMA journal_mode=${mode}`, TABLE, ROWS);
    await cluster.caughtUp(name);
    const readers = [open(), open(replica.path(name))];
    for (const reader of readers)
      await reader.ask('PRAGMA mmap_size=268435456', 'SELECT sum(length(b)) FROM t');
    for (let round = 1; round <= 4; round += 1) {
      await primary.sql(
        name,
        'PRAGMA mmap_size=268435456',
        `UPDATE t SET a = '${round}'`,
        ROWS,
        'DELETE FROM t WHERE id > 400',
      );
      await cluster.caughtUp(name);
      for (const reader of readers) {
        expect(await reader.ask(`SELECT count(*), sum(a = '${round}') FROM t`)).toMatch(
          /^(400\|200|400\|400)$/,
        );
        expect(await reader.ask('PRAGMA quick_check')).toBe('ok');
      }
    }
    await cluster.assertSame(name);
  });

  it('grows in chunks, as SQLITE_FCNTL_CHUNK_SIZE asks', async () => {
    for (const mode of ['delete', 'wal']) {
      const shell = open();
      await shell.ask(
        '.filectrl chunk_size 262144',
        `PRAGMA journal_mode=${mode}`,
        'CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a, b)',
      );
      for (let round = 0; round < 4; round += 1) {
        expect(await shell.ask(ROWS, 'DELETE FROM t WHERE id % 3 = 0')).toBe('');
        await shell.ask('PRAGMA wal_checkpoint');
        await cluster.caughtUp(name);
      }
      expect(await shell.ask('DELETE FROM t', 'VACUUM', ROWS)).toBe('');
      await shell.close();
      await cluster.assertSame(name);
    }
  });

  it('keeps temporary tables and every synchronous setting out of the way', async () => {
    const shell = open();
    await shell.ask('PRAGMA journal_mode=delete', TABLE);
    for (const synchronous of ['off', 'normal', 'full', 'extra']) {
      expect(
        await shell.ask(
          `PRAGMA synchronous=${synchronous}`,
          'PRAGMA temp_store=file',
          `CREATE TEMP TABLE temp_${synchronous} AS SELECT * FROM t`,
          ROWS,
          `INSERT INTO temp_${synchronous} SELECT * FROM t`,
          `UPDATE t SET a = (SELECT max(id) FROM temp_${synchronous})`,
        ),
      ).toBe('');
      await cluster.caughtUp(name);
    }
    await cluster.assertSame(name);
    expect(await replica.sql(name, 'SELECT count(*) FROM sqlite_schema')).toBe('1');
  });

  it.each(['wal', 'delete'])(
    'drops a database by rm in %s mode, and makes it again at once',
    async (mode) => {
      const path = primary.path(name);
      for (let round = 1; round <= 3; round += 1) {
        await primary.sql(
          name,
          `PRAGMA page_size=${512 << round}`,
          `PRAGMA journal_mode=${mode}`,
          TABLE,
          ROWS,
        );
        if (round > 1) await cluster.caughtUp(name);
        await primary.sql(name, `INSERT INTO t(a) VALUES ('round ${round}')`);
        if (round === 3) break;
        await run('rm', ['-f', path, `${path}-wal`, `${path}-shm`, `${path}-journal`]);
      }
      await cluster.assertSame(name);
      expect(await replica.sql(name, 'SELECT max(id), max(a) FROM t')).toBe('201|row 99');
      expect(await replica.sql(name, "SELECT count(*) FROM t WHERE a = 'round 3'")).toBe('1');

      const reader = open(replica.path(name));
      expect(await reader.ask('SELECT count(*) FROM t')).toBe('201');
      await run('rm', [path]);
      await waitFor(`${name} to be gone from the replica`, async () => {
        return (await run('ls', ['-A', replica.mountDir]))
          .split('\n')
          .every((file) => !file.startsWith(name));
      });
      // Who has it open there sees an empty database, never the old rows for ever (trap 25). Through libfuse a file that
      // was removed cannot be read any more, so there it meets an error.
      const seen = await reader.ask('SELECT count(*) FROM t');
      expect(seen).toMatch(driver === 'kernel' ? /no such table/ : /no such table|disk I\/O error/);
    },
  );

  it('removes an empty database, and one that never got a table', async () => {
    const path = primary.path(name);
    await run('touch', [path]);
    expect(await run('stat', ['-c', '%s', path])).toBe('0');
    await run('rm', [path]);
    await primary.sql(name, 'SELECT 1');
    await primary.sql(name, 'PRAGMA journal_mode=delete', 'BEGIN IMMEDIATE', 'ROLLBACK');
    await run('rm', ['-f', path]);
    await primary.sql(name, 'PRAGMA journal_mode=wal', TABLE, 'DROP TABLE t', 'VACUUM');
    await run('rm', [path]);
    await primary.sql(name, TABLE, ROWS);
    await cluster.assertSame(name);
  });

  it('opens databases by relative names with the mount as working folder', async () => {
    await run('mkdir', ['-p', primary.path('folder/below')]);
    const at = { cwd: primary.path('folder') };
    const two = `${TABLE}; INSERT INTO t(a) VALUES ('x');`;
    await run('sqlite3', [`../${name}`, `PRAGMA journal_mode=wal; ${two}`], at);
    await run(
      'sqlite3',
      [`below/${name}`, `${two} ATTACH '../${name}' AS o; INSERT INTO o.t SELECT 9, a, b FROM t;`],
      at,
    );
    await run('sqlite3', [`./${name}`, two], at);
    await run('sqlite3', [`file:${name}?mode=rw`, "INSERT INTO t(a) VALUES ('uri')"], at);
    for (const each of [name, `folder/below/${name}`, `folder/${name}`]) await cluster.assertSame(each);
    expect(
      await run('sqlite3', [`folder/${name}`, 'SELECT count(*) FROM t'], { cwd: replica.mountDir }),
    ).toBe('2');
  });

  it('writes UTF-16 databases, big values and databases by URI without locks', async () => {
    await primary.sql(name, "PRAGMA encoding='UTF-16le'", 'PRAGMA journal_mode=wal', TABLE);
    await primary.sql(
      name,
      "INSERT INTO t(a, b) VALUES ('ü€𝄞', randomblob(3000000))",
      'PRAGMA wal_checkpoint(TRUNCATE)',
    );
    await cluster.assertSame(name);
    await cluster.caughtUp(name);
    expect(await run('sqlite3', [`file:${replica.path(name)}?mode=ro`, 'SELECT a, length(b) FROM t'])).toBe(
      'ü€𝄞|3000000',
    );
    expect(await run('sqlite3', [`file:${primary.path(name)}?nolock=1&mode=ro`, 'SELECT 1'])).toBe('1');
  });
});
