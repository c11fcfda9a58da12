import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { sqlite, TestCluster, type TestNode } from '../helpers/cluster.js';
import { runCli } from './run-cli.js';

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
