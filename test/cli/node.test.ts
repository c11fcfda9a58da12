import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, sqlite, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { CLI, runCli } from './run-cli.js';

let cluster: TestCluster;
let node: TestNode;
let url: string;

beforeAll(async () => {
  cluster = await TestCluster.start({ nodes: 1 });
  node = cluster.node(1);
  url = `http://127.0.0.1:${node.httpPort}`;
});
afterAll(async () => {
  await cluster.stop();
});

describe('the command line with a running node', () => {
  it('imports a file, shows it in the status, and exports the same rows', async () => {
    const source = join(cluster.dir, 'source.db');
    await sqlite(source, 'CREATE TABLE t (x)', "INSERT INTO t VALUES ('one'), ('two')");
    const imported = await runCli(['import', '-url', url, '-name', 'app.db', source]);
    expect(imported).toMatchObject({ code: 0, stderr: '' });
    expect(await node.sql('app.db', 'SELECT group_concat(x) FROM t')).toBe('one,two');

    const status = await runCli(['status', '-url', url]);
    expect(status.stdout).toMatch(/^role +primary, epoch \d+$/m);
    expect(status.stdout).toMatch(/^app\.db +[0-9a-f]{16}\/[0-9a-f]{16} +0 +0 ms /m);
    const json = JSON.parse((await runCli(['status', '--json', '-url', url])).stdout) as {
      databases: { name: string }[];
    };
    expect(json.databases.map(({ name }) => name)).toEqual(['app.db']);

    const copy = join(cluster.dir, 'copy.db');
    writeFileSync(`${copy}-wal`, 'left by another database');
    expect(await runCli(['export', '-url', url, '-name', 'app.db', copy])).toMatchObject({
      code: 0,
      stderr: '',
    });
    expect(await sqlite(copy, 'PRAGMA integrity_check', 'SELECT group_concat(x) FROM t')).toBe('ok\none,two');
  });

  it('refuses what is no database, and a database that is not there, changing nothing', async () => {
    const noDatabase = join(cluster.dir, 'no-database');
    writeFileSync(noDatabase, 'just text');
    const refused = await runCli(['import', '-url', url, '-name', 'bad.db', noDatabase]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/\[ERR_\w+\]/);
    expect(refused.stderr).not.toMatch(/^\s+at |ERR_INTERNAL/m);
    // The path in the mount is the name: one that leads out of the mount, or to other files than databases, is none.
    const whole = join(cluster.dir, 'whole.db');
    await sqlite(whole, 'CREATE TABLE t (x)');
    for (const name of ['../outside.db', 'a/../../outside.db', '/outside.db', 'app.db-wal', '.lag']) {
      const outside = await runCli(['import', '-url', url, '-name', name, whole]);
      expect(outside, name).toMatchObject({ code: 1, stderr: expect.stringContaining('[ERR_STORE_NAME]') });
    }
    expect(existsSync(join(node.dir, 'outside.db'))).toBe(false);
    const missing = await runCli(['export', '-url', url, '-name', 'bad.db', join(cluster.dir, 'x')]);
    expect(missing).toMatchObject({ code: 1, stderr: expect.stringContaining('bad.db') });
    expect((await node.status()).databases.some(({ name }) => name === 'bad.db')).toBe(false);
  });

  it('says that a second node cannot use what a running one owns', async () => {
    const second = await runCli(['mount', '-config', node.configPath]);
    expect(second.code).not.toBe(0);
    expect(second.stderr).toMatch(/\[ERR_\w+\]/);
    expect(second.stderr).not.toMatch(/^\s+at |ERR_INTERNAL/m);
    expect((await node.status()).role).toBe('primary');
  });
});

describe('kitefs mount whose log cannot be written', () => {
  it('serves on, and stops, when nobody reads it any more', async () => {
    const other = await cluster.prepare();
    const child = other.spawn();
    // The first line that is written comes back with EPIPE.
    child.stdout?.destroy();
    child.stderr?.destroy();
    await other.ready();
    await node.sql('log.db', 'CREATE TABLE t (x)', 'INSERT INTO t VALUES (7)');
    await cluster.caughtUp('log.db');
    expect(await other.sql('log.db', 'SELECT x FROM t')).toBe('7');
    expect(await other.stop()).toBe(0);
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(` ${other.mountDir} `);
  });

  it('serves on when the disk of its log is full, and writes on when there is room again', async () => {
    const disk = join(cluster.dir, 'full');
    mkdirSync(disk);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk]);
    const [ballast, log] = [join(disk, 'ballast'), join(disk, 'log')];
    writeFileSync(log, '');
    expect(() => writeFileSync(ballast, Buffer.alloc(1 << 20))).toThrow('ENOSPC');
    const other = await cluster.prepare();
    const fd = openSync(log, 'a');
    const child = spawn(process.execPath, [CLI, 'mount', '-config', other.configPath], {
      stdio: ['ignore', fd, fd],
    });
    closeSync(fd);
    try {
      const up = async (): Promise<boolean> =>
        (await fetch(`http://127.0.0.1:${other.httpPort}/ready`).catch(() => undefined))?.status === 200;
      await waitFor('the node to be ready', up);
      expect(statSync(log).size).toBe(0);
      rmSync(ballast);
      child.kill('SIGTERM');
      expect(await once(child, 'exit')).toEqual([0, null]);
      expect(readFileSync(log, 'utf8')).toContain('SIGTERM: stopping');
    } finally {
      child.kill('SIGKILL');
      await other.clear();
      await run('umount', ['-l', disk]);
    }
  });
});

describe('commands whose output nobody reads to its end', () => {
  it('end without an error', async () => {
    const words = ['config', 'print', '-config', node.configPath];
    const child = spawn(process.execPath, [CLI, ...words], { stdio: ['ignore', 'pipe', 'pipe'] });
    child.stdout.destroy();
    let said = '';
    child.stderr.on('data', (text: Buffer) => (said += text.toString()));
    expect(await once(child, 'close')).toEqual([0, null]);
    expect(said).toBe('');
  });
});

describe('kitefs mount with an application', () => {
  it('starts it when the mount is ready, gives its exit code and unmounts', async () => {
    const other = await cluster.prepare();
    const script = `ls '${other.mountDir}' && cat /proc/self/mountinfo > '${other.dir}/seen' && ls -l /proc/self/fd > '${other.dir}/fds' && exit 7`;
    const child = other.spawn('sh', '-c', script);
    const [code] = (await once(child, 'exit')) as [number | null];
    expect(code).toBe(7);
    expect(readFileSync(join(other.dir, 'seen'), 'utf8')).toContain(` ${other.mountDir} `);
    expect(readFileSync(join(other.dir, 'fds'), 'utf8')).not.toContain('/dev/fuse');
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(` ${other.mountDir} `);
  });
});
