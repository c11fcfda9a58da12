import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { TestCluster, type TestNode, run, sqlite, waitFor } from '../helpers/cluster.js';
import { Shell } from '../helpers/shell.js';

/** What cp, mv, dd, ls and programs that are not SQLite do to files in the mount. */
const FILL = [
  'CREATE TABLE t(id INTEGER PRIMARY KEY, b)',
  'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) INSERT INTO t(b) SELECT randomblob(400) FROM n',
];

/** Makes the same writes and truncations, of any size at any offset, to both files; they are compared. */
const SCRIBBLE = `
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
const files = process.argv.slice(1).map((path) => openSync(path, 'w+'));
let state = 7;
const next = (below) => (state = (state * 1103515245 + 12345) % 2147483648) % below;
for (let i = 0; i < 300; i += 1) {
  const bytes = Buffer.alloc(1 + next(i % 20 === 0 ? 300_000 : 9000), next(256));
  const at = next(500_000);
  for (const fd of files) {
    if (i % 15 === 14) ftruncateSync(fd, at);
    else if (writeSync(fd, bytes, 0, bytes.length, at) !== bytes.length) throw new Error('short write');
  }
}
files.forEach((fd) => closeSync(fd));
const [a, b] = process.argv.slice(1).map((path) => readFileSync(path));
console.log(a.equals(b) ? 'equal' : 'different', a.length > 0);
`;

describe.each(['kernel', 'fuse-native'] as const)('with the %s driver', (driver) => {
  let cluster: TestCluster;
  let primary: TestNode;
  let replica: TestNode;
  let outside: string;
  const sh = async (command: string, cwd = primary.mountDir): Promise<string> =>
    await run('sh', ['-c', command], { cwd });
  const gone = async (name: string): Promise<void> =>
    await waitFor(`${name} to be gone from the replica`, async () => {
      const there = (await sh('ls -A', replica.mountDir)).split('\n');
      return there.every((file) => !file.startsWith(name));
    });

  beforeAll(async () => {
    cluster = await TestCluster.start({ driver });
    [primary, replica] = [cluster.node(1), cluster.node(2)];
    outside = join(cluster.dir, 'outside');
    mkdirSync(outside);
    await sqlite(join(outside, 'app.db'), ...FILL);
    await sqlite(join(outside, 'wal.db'), 'PRAGMA journal_mode=wal', ...FILL);
  });

  afterAll(async () => {
    await cluster.stop();
  });

  it('takes a database by cp, install, cat and dd in pieces of any size', async () => {
    const ways: Readonly<Record<string, string>> = {
      'cp.db': `cp "${outside}/app.db" cp.db`,
      'cp-p.db': `cp -p "${outside}/wal.db" cp-p.db`,
      'sparse.db': `cp --sparse=always "${outside}/app.db" sparse.db`,
      'install.db': `install -m 640 "${outside}/app.db" install.db`,
      'cat.db': `cat "${outside}/app.db" > cat.db`,
      'dd1.db': `dd if="${outside}/app.db" of=dd1.db bs=777 status=none`,
      'dd2.db': `dd if="${outside}/app.db" of=dd2.db bs=5M status=none`,
      'moved.db': `cp "${outside}/app.db" .moved.db.tmp && mv .moved.db.tmp moved.db`,
      // Its end first: until the header comes nobody can know what it is.
      'backwards.db': `for i in 3 2 1 0; do dd if="${outside}/app.db" of=backwards.db bs=40000 skip=$i seek=$i count=1 conv=notrunc status=none; done`,
    };
    for (const [name, command] of Object.entries(ways)) {
      await sh(command);
      const source = name === 'cp-p.db' ? 'wal.db' : 'app.db';
      expect(await sh(`cmp "${outside}/${source}" ${name} && echo same`)).toBe('same');
    }
    for (const name of Object.keys(ways)) {
      await cluster.assertSame(name);
      expect(await replica.sql(name, 'SELECT count(*) FROM t')).toBe('300');
      await primary.sql(name, "INSERT INTO t(b) VALUES ('mine')");
      await cluster.assertSame(name);
    }
    expect(await sh('stat -c %a install.db')).toBe('640');
  });

  it('refuses to write over a database in use, and it stays whole', async () => {
    await primary.sql('live.db', 'PRAGMA journal_mode=wal', ...FILL);
    const shell = new Shell(primary.path('live.db'));
    expect(await shell.ask('SELECT count(*) FROM t')).toBe('300');
    for (const command of [
      `cp "${outside}/app.db" live.db`,
      ': > live.db',
      `cat "${outside}/app.db" > live.db`,
      'truncate -s 4096 live.db',
    ]) {
      await expect(sh(command), command).rejects.toThrow(/busy/i);
    }
    expect(primary.log()).toContain('in use');
    expect(await shell.ask("INSERT INTO t(b) VALUES ('still here')", 'SELECT count(*) FROM t')).toBe('301');
    // With a commit that is in the WAL only, too, which an empty file beside it would make SQLite throw away.
    for (const command of [`cp "${outside}/app.db" live.db`, ': > live.db', 'truncate -s 0 live.db']) {
      await expect(sh(command), command).rejects.toThrow(/busy/i);
    }
    expect(await primary.sql('live.db', 'SELECT count(*) FROM t')).toBe('301');
    await shell.close();
    await cluster.assertSame('live.db');
    // Removed first, or another file moved over it.
    await sh(`rm live.db && cp "${outside}/app.db" live.db`);
    await cluster.assertSame('live.db');
    await sh(`cp "${outside}/wal.db" other.db && mv other.db live.db`);
    await cluster.assertSame('live.db');
    await gone('other.db');
    await sh(
      `mv "${outside}/app.db" "${outside}/app2.db"; cp "${outside}/app2.db" "${outside}/app.db"; mv "${outside}/app2.db" live.db`,
    );
    await cluster.assertSame('live.db');
    expect(await replica.sql('live.db', 'SELECT count(*) FROM t')).toBe('300');
  });

  it('moves databases in, out, inside and between folders', async () => {
    await sh(`cp "${outside}/app.db" "${outside}/in.db" && mv "${outside}/in.db" in.db`);
    await cluster.assertSame('in.db');
    await sh('mkdir -p a/b && mv in.db a/b/renamed.db');
    await cluster.assertSame('a/b/renamed.db');
    await gone('in.db');
    await primary.sql('a/b/renamed.db', 'PRAGMA journal_mode=wal', "INSERT INTO t(b) VALUES ('x')");
    // A folder with databases moves one by one, as replication can follow.
    await sh('mv a c');
    await cluster.assertSame('c/b/renamed.db');
    expect(await replica.sql('c/b/renamed.db', 'SELECT count(*) FROM t')).toBe('301');
    await sh(`mv c/b/renamed.db "${outside}/out.db"`);
    expect(await sqlite(join(outside, 'out.db'), 'PRAGMA integrity_check', 'SELECT count(*) FROM t')).toBe(
      'ok\n301',
    );
    await sh('rmdir c/b c && ! test -e a');
    await waitFor('no database in the folder', async () => {
      return (await sh('find . -name "*.db"', replica.mountDir))
        .split('\n')
        .every((file) => !file.includes('/b/'));
    });
  });

  it('keeps copies of -wal and -journal files under any name', async () => {
    const [wal, journal] = [new Shell(primary.path('w.db')), new Shell(primary.path('j.db'))];
    await wal.ask('PRAGMA journal_mode=wal', ...FILL);
    await journal.ask(...FILL, 'PRAGMA cache_size=5', 'BEGIN', 'UPDATE t SET b = randomblob(500)');
    for (const [from, to] of [
      ['w.db-wal', 'wal.copy'],
      ['w.db-wal', 'somewhere-wal'],
      ['w.db-wal', 'w.db-wal.bak'],
      ['j.db-journal', 'journal.copy'],
      ['j.db-journal', 'j.db-journal~'],
      ['j.db-journal', 'nobody.db-journal'],
    ]) {
      expect(await sh(`cp ${from} ${to} && cmp ${from} ${to} && echo same`)).toBe('same');
    }
    await journal.ask('COMMIT');
    // A pair that is copied is a database with its WAL.
    await wal.ask("INSERT INTO t(b) VALUES ('in the WAL')");
    await sh('cp w.db pair.db && cp w.db-wal pair.db-wal');
    expect(await primary.sql('pair.db', 'SELECT count(*) FROM t', 'PRAGMA integrity_check')).toBe('301\nok');
    await primary.sql('pair.db', "INSERT INTO t(b) VALUES ('x')");
    await Promise.all([wal.close(), journal.close()]);
    for (const name of ['w.db', 'j.db', 'pair.db']) await cluster.assertSame(name);
    expect(await replica.sql('pair.db', 'SELECT count(*) FROM t')).toBe('302');
    await sh('rm wal.copy somewhere-wal w.db-wal.bak journal.copy j.db-journal~ nobody.db-journal');
  });

  it('answers ls, stat, df, du, find, cat and cmp as a disk does', async () => {
    await sh(`cp "${outside}/app.db" shown.db`);
    const size = await run('stat', ['-c', '%s', join(outside, 'app.db')]);
    expect(await sh('stat -c "%s %F %h" shown.db')).toBe(`${size} regular file 1`);
    expect(await sh('ls -l shown.db')).toContain(size);
    expect(Number(await sh('df --output=size . | tail -1'))).toBeGreaterThan(1000);
    expect(Number((await sh('du -k shown.db')).split('\t')[0])).toBeGreaterThan(50);
    expect(await sh('find . -maxdepth 1 -name shown.db -type f')).toBe('./shown.db');
    expect(await sh(`cat shown.db | cmp - "${outside}/app.db" && tail -c 5 shown.db | wc -c`)).toBe('5');
    expect(await sh('test -e nothing.db || echo absent')).toBe('absent');
    await sh('chmod 600 shown.db && touch -d "2020-01-01 00:00:00 UTC" shown.db');
    expect(await sh('stat -c "%a %Y" shown.db')).toBe('600 1577836800');
    await primary.sql('shown.db', 'DELETE FROM t');
    expect(await sh('stat -c %a shown.db')).toBe('600');
    await cluster.assertSame('shown.db');
  });

  it('refuses links, devices and files that are no database, and says why', async () => {
    for (const command of ['ln -s shown.db link', 'ln shown.db hard', 'mknod device c 1 3', 'mkfifo pipe']) {
      await expect(sh(command), command).rejects.toThrow(/not permitted|not supported|denied/);
    }
    await expect(sh('echo "hello, this is no database" | tee notes.txt')).rejects.toThrow(/not permitted/);
    await expect(sh('cp /bin/ls tool')).rejects.toThrow(/not permitted/);
    await waitFor('the log line', () => primary.log().includes('not a SQLite database'));
    await sh('rm -f notes.txt tool');
  });

  it('makes and removes folders', async () => {
    await sh('mkdir -p x/y/z && rmdir x/y/z && mkdir x/y/z');
    await primary.sql('x/y/z/deep.db', ...FILL);
    await cluster.assertSame('x/y/z/deep.db');
    await expect(sh('rmdir x/y/z')).rejects.toThrow('not empty');
    await expect(sh('mkdir x')).rejects.toThrow('exists');
    await sh('mv x/y/z/deep.db x/ && rm -r x/y');
    await cluster.assertSame('x/deep.db');
    await sh('rm -r x');
    await expect(sh('stat x')).rejects.toThrow('No such file');
  });
});

it('keeps other files on their node with `fuse.other-files: local`, and lists them', async () => {
  const cluster = await TestCluster.start({
    config: { fuse: { 'other-files': 'local', 'allow-other': true } },
  });
  try {
    const [primary, replica] = [cluster.node(1), cluster.node(2)];
    const sh = async (command: string, node = primary): Promise<string> =>
      await run('sh', ['-c', command], { cwd: node.mountDir });
    await sh('mkdir logs && echo hello > notes.txt && cp /bin/ls logs/tool && cmp /bin/ls logs/tool');
    await sh('echo mine > notes.txt', replica);
    expect(await sh('cat notes.txt && mv notes.txt logs/n && echo more >> logs/n && cat logs/n')).toBe(
      'hello\nhello\nmore',
    );
    expect((await primary.status()).otherFiles).toEqual(['logs/n', 'logs/tool']);
    expect((await replica.status()).otherFiles).toEqual(['notes.txt']);
    expect(await sh('cat notes.txt', replica)).toBe('mine');

    const scribbled = join(cluster.dir, 'plain');
    expect(
      await run(process.execPath, [
        '--input-type=module',
        '-e',
        SCRIBBLE,
        primary.path('scribbled'),
        scribbled,
      ]),
    ).toBe('equal true');

    // Another user may do what the bits say, and no more.
    const as = (command: string): Promise<string> =>
      sh(`setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '${command}'`);
    await sh('chmod 644 logs/n && chmod 600 logs/tool');
    expect(await as('cat logs/n')).toBe('hello\nmore');
    await expect(as('cat logs/tool')).rejects.toThrow('denied');
    await expect(as('echo x >> logs/n')).rejects.toThrow('denied');
    await sh('chmod 666 logs/n');
    await as('echo x >> logs/n');
    await sh('rm -r logs scribbled');
    expect((await primary.status()).otherFiles).toEqual([]);
    await primary.sql('beside.db', ...FILL);
    await cluster.assertSame('beside.db');
  } finally {
    await cluster.stop();
  }
});
