import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from 'vitest';

import { MountState } from '../../src/fuse/control-block.js';
import { PlainMount } from '../helpers/plain-mount.js';

describe.each(['kernel', 'fuse-native'] as const)('plain files through the %s driver', (driver) => {
  let mount: PlainMount;

  beforeAll(async () => {
    mount = await PlainMount.start({ driver });
  });
  afterAll(() => mount.stop());

  for (const journal of ['delete', 'truncate', 'persist', 'wal']) {
    it.each([512, 4096, 65536])(`runs transactions in ${journal} mode with pages of %i bytes`, (pageSize) => {
      const name = `${journal}-${pageSize}.db`;
      const made = mount.sql(
        name,
        `PRAGMA page_size=${pageSize}; PRAGMA journal_mode=${journal};
         CREATE TABLE t(a, b); INSERT INTO t SELECT value, randomblob(500) FROM generate_series(1, 400);
         UPDATE t SET b = randomblob(700) WHERE a % 3 = 0; DELETE FROM t WHERE a % 4 = 0; VACUUM;
         BEGIN; DELETE FROM t; ROLLBACK; PRAGMA wal_checkpoint(TRUNCATE);`,
      );
      expect(made).toMatchObject({ code: 0, err: '' });
      const read = mount.sql(name, 'PRAGMA integrity_check; PRAGMA journal_mode; SELECT count(*) FROM t;');
      // PERSIST and TRUNCATE are of a connection, not of the file.
      expect(read.out.split('\n')).toEqual(['ok', journal === 'wal' ? 'wal' : 'delete', '300']);
      const stored = path.join(mount.dataDir, 'dbs', name, 'database');
      expect(mount.run('cmp', name, stored)).toMatchObject({ code: 0 });
    });
  }

  it('adopts a copy, and refuses to write over a database in use', async () => {
    mount.sql('from.db', 'CREATE TABLE t(a); INSERT INTO t VALUES (1);');
    expect(mount.run('cp', 'from.db', 'to.db').code).toBe(0);
    expect(mount.sql('to.db', 'INSERT INTO t VALUES (2); SELECT count(*) FROM t;').out).toBe('2');
    const over = mount.run('cp', 'from.db', 'to.db');
    expect(over.code).toBe(1);
    expect(over.err).toContain('Device or resource busy');
    expect(mount.sql('to.db', 'SELECT count(*) FROM t;').out).toBe('2');
    await expect.poll(() => mount.refusals(), { timeout: 30_000 }).toContain('truncate-live');
  });

  it('takes VACUUM INTO, .backup and copies in odd pieces', () => {
    mount.sql(
      'source.db',
      'CREATE TABLE t(a); INSERT INTO t SELECT randomblob(900) FROM generate_series(1, 90);',
    );
    expect(mount.sql('source.db', "VACUUM INTO 'vacuumed.db';")).toMatchObject({ code: 0, err: '' });
    expect(mount.sql('source.db', '.backup backup.db')).toMatchObject({ code: 0, err: '' });
    expect(mount.run('dd', 'if=source.db', 'of=pieces.db', 'bs=777').code).toBe(0);
    for (const name of ['vacuumed.db', 'backup.db', 'pieces.db']) {
      expect(mount.sql(name, 'PRAGMA integrity_check; SELECT count(*) FROM t;').out).toBe('ok\n90');
    }
  });

  it('commits over attached databases', () => {
    mount.sql('one.db', 'CREATE TABLE t(a);');
    mount.sql('two.db', 'CREATE TABLE t(a);');
    const both = mount.sql(
      'one.db',
      "ATTACH 'two.db' AS two; BEGIN; INSERT INTO t VALUES (1); INSERT INTO two.t VALUES (1); COMMIT;",
    );
    expect(both).toMatchObject({ code: 0, err: '' });
    expect(mount.sql('two.db', 'SELECT count(*) FROM t;').out).toBe('1');
    expect(mount.run('ls').out).not.toContain('-mj');
  });

  it('drops databases, empty ones too, and makes them again at once', () => {
    expect(mount.shell('touch empty.db && rm empty.db && touch empty.db && rm empty.db')).toMatchObject({
      code: 0,
    });
    for (let i = 0; i < 3; i += 1) {
      expect(mount.sql('again.db', 'CREATE TABLE t(a); SELECT count(*) FROM t;')).toMatchObject({
        code: 0,
        out: '0',
      });
      expect(mount.run('rm', 'again.db').code).toBe(0);
    }
    expect(mount.run('ls').out).not.toContain('again.db');
  });

  it('keeps folders, and databases in them', () => {
    expect(mount.run('mkdir', '-p', 'tenants/eu').code).toBe(0);
    expect(mount.sql('tenants/eu/42.db', 'CREATE TABLE t(a);').code).toBe(0);
    expect(mount.run('ls', 'tenants/eu').out).toBe('42.db');
    expect(mount.run('rmdir', 'tenants/eu').err).toContain('Directory not empty');
    expect(fs.readdirSync(path.join(mount.dataDir, 'dbs'))).toContain('tenants%2Feu%2F42.db');
    expect(mount.run('mv', 'tenants', 'moved')).toMatchObject({ code: 0, err: '' });
    expect(mount.sql('moved/eu/42.db', 'INSERT INTO t VALUES (1); SELECT count(*) FROM t;').out).toBe('1');
    expect(mount.shell('rm moved/eu/42.db && rmdir -p moved/eu').code).toBe(0);
  });

  it('renames a database', () => {
    mount.sql('old-name.db', 'CREATE TABLE t(a); INSERT INTO t VALUES (5);');
    expect(mount.run('mv', 'old-name.db', 'new-name.db')).toMatchObject({ code: 0, err: '' });
    expect(mount.sql('new-name.db', 'SELECT a FROM t;').out).toBe('5');
    expect(mount.run('ls').out.split('\n')).not.toContain('old-name.db');
  });

  it('keeps mode bits and times', () => {
    mount.sql('bits.db', 'CREATE TABLE t(a);');
    expect(mount.shell('chmod 640 bits.db && touch -d 2020-02-03T04:05:06Z bits.db').code).toBe(0);
    expect(mount.run('stat', '-c', '%a %Y %s', 'bits.db').out).toBe('640 1580702706 8192');
  });

  it('refuses links, devices and other files with an errno that says so', async () => {
    mount.sql('linked.db', 'CREATE TABLE t(a);');
    for (const refused of [
      'ln -s linked.db soft',
      'ln linked.db hard',
      'mkfifo pipe',
      'echo hi > notes.txt',
    ]) {
      const ran = mount.shell(refused);
      expect(ran.code).not.toBe(0);
      expect(`${ran.out}${ran.err}`).toMatch(/not permitted|I\/O error/);
    }
    await expect.poll(() => mount.refusals(), { timeout: 30_000 }).toContain('other-file');
  });

  it('refuses to write a replicated database without a journal', async () => {
    mount.sql('nojournal.db', 'CREATE TABLE t(a);');
    const written = mount.sql('nojournal.db', 'PRAGMA journal_mode=MEMORY; INSERT INTO t VALUES (1);');
    expect(written.code).not.toBe(0);
    expect(written.err).toContain('disk I/O error');
    await expect.poll(() => mount.refusals(), { timeout: 30_000 }).toContain('no-journal');
    expect(mount.sql('nojournal.db', 'SELECT count(*) FROM t;').out).toBe('0');
  });

  it('shows its own files, which nobody can write', () => {
    mount.sql('shown.db', 'CREATE TABLE t(a);');
    expect(mount.run('cat', '.lag').out).toBe('content of .lag');
    expect(mount.run('cat', 'shown.db-pos').out).toBe('content of shown.db-pos');
    expect(mount.run('cat', '.kitefs/status.json').out).toBe('content of .kitefs/status.json');
    expect(mount.run('cat', '.primary').err).toContain('No such file');
    expect(mount.run('df', '--output=avail', '.').code).toBe(0);
  });

  it('honours locks between processes', async () => {
    mount.sql('locked.db', 'CREATE TABLE t(a);');
    const holder = spawn('sqlite3', ['-batch', 'locked.db'], {
      cwd: mount.dir,
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    try {
      holder.stdin.write("BEGIN EXCLUSIVE; SELECT 'held';\n");
      await once(holder.stdout, 'data');
      expect(mount.sql('locked.db', 'INSERT INTO t VALUES (1);').err).toContain('locked');
    } finally {
      holder.stdin.end();
      await once(holder, 'exit');
    }
    expect(mount.sql('locked.db', 'INSERT INTO t VALUES (1); SELECT count(*) FROM t;').out).toBe('1');
  });
});

describe.each(['kernel', 'fuse-native'] as const)('roles through the %s driver', (driver) => {
  it('lets applications of a replica read, and refuses what they write', async () => {
    const mount = await PlainMount.start({ driver });
    try {
      mount.sql('app.db', 'PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1);');
      mount.sql('rollback.db', 'CREATE TABLE t(a); INSERT INTO t VALUES (1);');
      await mount.tell({ state: MountState.replica });
      for (const name of ['app.db', 'rollback.db']) {
        expect(mount.sql(name, 'SELECT count(*) FROM t;').out).toBe('1');
        expect(mount.sql(name, 'INSERT INTO t VALUES (2);').code).not.toBe(0);
        expect(mount.sql(name, 'SELECT count(*) FROM t;').out).toBe('1');
      }
      expect(mount.sql('rollback.db', 'INSERT INTO t VALUES (2);').err).toContain('readonly');
      expect(mount.run('rm', 'app.db').err).toContain('Read-only file system');
      expect(mount.run('touch', 'other.db').err).toContain('Read-only file system');
      await mount.tell({ state: MountState.primary });
      expect(mount.sql('app.db', 'INSERT INTO t VALUES (2); SELECT count(*) FROM t;').out).toBe('2');
    } finally {
      await mount.stop();
    }
  });

  it('refuses commits once the lease has ended', async () => {
    const mount = await PlainMount.start({ driver });
    try {
      mount.sql('app.db', 'PRAGMA journal_mode=WAL; CREATE TABLE t(a);');
      mount.sql('rollback.db', 'CREATE TABLE t(a);');
      await mount.tell({ state: MountState.primary, lease: false });
      for (const name of ['app.db', 'rollback.db']) {
        expect(mount.sql(name, 'INSERT INTO t VALUES (1);').code).not.toBe(0);
        expect(mount.sql(name, 'SELECT count(*) FROM t;').out).toBe('0');
      }
      await expect.poll(() => mount.refusals(), { timeout: 30_000 }).toContain('fenced');
    } finally {
      await mount.stop();
    }
  });

  it('clears the mount of a killed daemon, and serves its data', async () => {
    const killed = await PlainMount.start({ driver });
    try {
      killed.sql('app.db', 'PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1);');
      await killed.kill();
      const next = await PlainMount.start({ driver, dataDir: killed.dataDir, mountDir: killed.dir });
      try {
        expect(next.sql('app.db', 'INSERT INTO t VALUES (2); SELECT count(*) FROM t;').out).toBe('2');
      } finally {
        await next.stop();
      }
    } finally {
      await killed.stop();
    }
  });

  it('lets the applier recover while applications wait', async () => {
    const mount = await PlainMount.start({ driver });
    try {
      mount.sql('app.db', 'CREATE TABLE t(a); INSERT INTO t VALUES (7);');
      await mount.tell({ state: MountState.closed });
      // The shell stands in for the applier: a pid for the kernel driver, a name for the other one.
      await mount.tell({ names: ['app.db'] });
      const applier = spawn(
        'sh',
        ['-c', 'read go; exec sqlite3 app.db "INSERT INTO t VALUES (8); SELECT count(*) FROM t;"'],
        {
          cwd: mount.dir,
        },
      );
      await mount.tell({ applier: applier.pid });
      const said = once(applier.stdout, 'data') as Promise<[Buffer]>;
      applier.stdin.write('go\n');
      expect((await said)[0].toString()).toBe('2\n');
    } finally {
      await mount.stop();
    }
  });

  it('keeps applications waiting until the node is open', async () => {
    const mount = await PlainMount.start({ driver });
    try {
      mount.sql('app.db', 'CREATE TABLE t(a); INSERT INTO t VALUES (7);');
      await mount.tell({ state: MountState.closed });
      const reader = spawn('sqlite3', ['app.db', 'SELECT a FROM t;'], { cwd: mount.dir });
      const exited = once(reader, 'exit');
      const said = once(reader.stdout, 'data') as Promise<[Buffer]>;
      // It is in the open by now, or will be: in both cases it must not have read before the role changes.
      await mount.tell({ state: MountState.closed });
      expect(reader.exitCode).toBe(null);
      await mount.tell({ state: MountState.primary });
      expect((await said)[0].toString()).toBe('7\n');
      await exited;
    } finally {
      await mount.stop();
    }
  });
});

it('is gone after a stop, with the data where the stock sqlite3 opens it', async () => {
  const mount = await PlainMount.start({ driver: 'kernel' });
  const other = fs.mkdtempSync('/tmp/kitefs-plain-data-');
  try {
    mount.sql('app.db', 'PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1);');
    fs.cpSync(mount.dataDir, other, { recursive: true });
  } finally {
    await mount.stop();
  }
  try {
    expect(fs.readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(mount.dir);
    const again = await PlainMount.start({ driver: 'kernel', dataDir: other });
    try {
      expect(again.sql('app.db', 'SELECT count(*) FROM t;').out).toBe('1');
    } finally {
      await again.stop();
    }
  } finally {
    fs.rmSync(other, { recursive: true, force: true });
  }
});
