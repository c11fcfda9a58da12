import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { stringify } from 'yaml';
import { CLI, runCli, type CliRun } from '../cli/run-cli.js';
import { freePort, run, TestCluster, type TestNode } from '../helpers/cluster.js';

/** Starts that a person's mistake makes impossible: each ends at once, with one line that says what to do. */

type Settings = Record<string, Record<string, unknown>>;

let dir: string;
let httpPort: number;
let peerPort: number;

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-bad-start-'));
  mkdirSync(join(dir, 'mnt'));
  httpPort = await freePort();
  peerPort = await freePort();
});
afterEach(() => {
  expect(mountedBelow(dir), 'a refused start leaves nothing mounted').toEqual([]);
  rmSync(dir, { recursive: true, force: true });
});

function configFile(settings: Settings = {}): string {
  const config: Settings = {
    fuse: { dir: join(dir, 'mnt') },
    data: { dir: join(dir, 'data') },
    http: { addr: `127.0.0.1:${httpPort}` },
    peer: { addr: `127.0.0.1:${peerPort}` },
    lease: { type: 'local', path: join(dir, 'lease.db') },
  };
  for (const [section, keys] of Object.entries(settings)) config[section] = { ...config[section], ...keys };
  const path = join(dir, 'kitefs.yml');
  writeFileSync(path, stringify(config));
  return path;
}

const mountedBelow = (path: string): string[] =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => line.includes(` ${path}/`));

const mount = async (settings?: Settings): Promise<CliRun> =>
  await runCli(['mount', '-config', configFile(settings)]);

/** One error for a person: its text, what to do and its code; no trace of the program's inside. */
function expectRefused(run: CliRun, exitCode: 1 | 2, errorCode: string, ...texts: string[]): void {
  const said = run.stderr.split('\n').filter((line) => !line.startsWith('{'));
  const errors = said.filter((line) => line.startsWith('kitefs: ')).length;
  const codes = said.flatMap((line) => /\[(ERR_\w+)\]$/.exec(line)?.[1] ?? []);
  expect({ ...run, errors, codes }).toMatchObject({ code: exitCode, errors: 1, codes: [errorCode] });
  for (const text of texts) expect(said.join('\n')).toContain(text);
  expect(run.stdout + run.stderr).not.toMatch(/^\s+at |ERR_INTERNAL|unhandled|a bug in KiteFS/im);
}

async function listening(port: number): Promise<Server> {
  const server = createServer().listen(port, '127.0.0.1');
  await once(server, 'listening');
  return server;
}

describe('a start is refused with one clear error', () => {
  it('for an unknown key: its line and the nearest key; for a bad value: what is expected', async () => {
    const path = configFile();
    writeFileSync(path, `${readFileSync(path, 'utf8')}  tll: 5s\n`);
    const unknown = await runCli(['mount', '-config', path]);
    const line = readFileSync(path, 'utf8').split('\n').indexOf('  tll: 5s') + 1;
    expectRefused(unknown, 2, 'ERR_CONFIG_INVALID', `${path}:${line}: unknown key`, 'lease.ttl');
    expectRefused(await mount({ lease: { ttl: 'soon' } }), 2, 'ERR_CONFIG_INVALID', 'lease.ttl', 'soon');
    expect(existsSync(join(dir, 'data'))).toBe(false);
  });

  it('for a mount folder that is missing, not empty, no folder, or a mount of somebody else', async () => {
    rmSync(join(dir, 'mnt'), { recursive: true });
    expectRefused(await mount(), 2, 'ERR_MOUNT_DIRECTORY', join(dir, 'mnt'));
    writeFileSync(join(dir, 'mnt'), '');
    expectRefused(await mount(), 2, 'ERR_MOUNT_DIRECTORY', join(dir, 'mnt'));
    rmSync(join(dir, 'mnt'));
    mkdirSync(join(dir, 'mnt'));
    writeFileSync(join(dir, 'mnt', 'mine'), 'kept');
    expectRefused(await mount(), 2, 'ERR_MOUNT_DIRECTORY', 'is not empty (mine');
    expect(readFileSync(join(dir, 'mnt', 'mine'), 'utf8')).toBe('kept');
    rmSync(join(dir, 'mnt', 'mine'));
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', join(dir, 'mnt')]);
    try {
      expectRefused(await mount(), 2, 'ERR_MOUNT_BUSY', join(dir, 'mnt'));
    } finally {
      execFileSync('umount', [join(dir, 'mnt')]);
    }
  });

  it('for a port that is in use, and gives up what it had begun', async () => {
    const http = await listening(httpPort);
    expectRefused(await mount(), 2, 'ERR_DAEMON_PORT', `127.0.0.1:${httpPort}`);
    http.close();
    const peer = await listening(peerPort);
    expectRefused(await mount(), 2, 'ERR_REPLICATION_LISTEN', `127.0.0.1:${peerPort}`);
    peer.close();
  });

  it('for a peer address that others reach without a secret, and for a weak secret', async () => {
    const open = { addr: `0.0.0.0:${peerPort}` };
    expectRefused(await mount({ peer: open }), 2, 'ERR_CONFIG_INVALID', 'peer.secret');
    const weak = await mount({ peer: { ...open, secret: 'short' } });
    expectRefused(weak, 2, 'ERR_CONFIG_INVALID', 'peer.secret');
    expect(weak.stderr + weak.stdout).not.toContain('short');
  });

  it('for a data directory of another cluster', async () => {
    mkdirSync(join(dir, 'data'));
    writeFileSync(join(dir, 'data', 'clusterid'), 'the-old-one\n');
    const settings = { cluster: { id: 'the-new-one' } };
    expectRefused(await mount(settings), 2, 'ERR_STORE_OTHER_CLUSTER', 'the-old-one', 'the-new-one');
    expect(readFileSync(join(dir, 'data', 'clusterid'), 'utf8')).toBe('the-old-one\n');
  });

  it('for a node.json that says nothing usable', async () => {
    mkdirSync(join(dir, 'data'));
    writeFileSync(join(dir, 'data', 'node.json'), '{');
    expectRefused(await mount(), 1, 'ERR_STORE_DAMAGED', 'node.json');
    expect(readFileSync(join(dir, 'data', 'node.json'), 'utf8')).toBe('{');
  });

  it('for a data directory that cannot be made, or lies on a disk that is full', async () => {
    writeFileSync(join(dir, 'file'), '');
    expectRefused(await mount({ data: { dir: join(dir, 'file', 'data') } }), 2, 'ERR_STORE_DIRECTORY');
    mkdirSync(join(dir, 'full'));
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', join(dir, 'full')]);
    try {
      writeFileSync(join(dir, 'full', 'fill'), Buffer.alloc(60 << 10));
      expectRefused(await mount({ data: { dir: join(dir, 'full', 'data') } }), 1, 'ERR_STORE_FULL');
    } finally {
      execFileSync('umount', ['-l', join(dir, 'full')]);
    }
  });

  it('for a lease file that holds something else', async () => {
    writeFileSync(join(dir, 'lease.db'), 'no database at all, only text that is long enough to be read');
    expectRefused(await mount(), 2, 'ERR_LEASE_RECORD', 'lease.db');
  });

  it('without /dev/fuse', async () => {
    const without = await inNamespace('rm /dev/fuse');
    expectRefused(without, 1, 'ERR_MOUNT_DEVICE', '/dev/fuse', 'modprobe fuse');
  });

  it('without the permission to mount', async () => {
    // A user without rights on the device, and one with the device but without CAP_SYS_ADMIN.
    execFileSync('chmod', ['-R', 'a+rwX', dir]);
    expectRefused(await inNamespace('chmod 600 /dev/fuse', AS_NOBODY), 1, 'ERR_MOUNT_PERMISSION', 'root');
    expectRefused(await inNamespace('chmod 666 /dev/fuse', AS_NOBODY), 1, 'ERR_MOUNT_PERMISSION', 'root');
  });
});

const AS_NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--'];

/** Runs `kitefs mount` in a mount namespace of its own with a /dev that `prepare` may change. */
async function inNamespace(prepare: string, as: readonly string[] = []): Promise<CliRun> {
  const words = [...as, process.execPath, CLI, 'mount', '-config', configFile()];
  const dev =
    'mount -t tmpfs tmpfs /mnt && cp -a /dev/fuse /dev/null /dev/urandom /mnt && mount --move /mnt /dev';
  const script = `${dev} && { ${prepare}; } && exec ${words.map((word) => `'${word}'`).join(' ')}`;
  const child = await run('unshare', ['-m', 'sh', '-c', `(${script}) 2>&1; echo "code $?"`]);
  const code = Number(/code (\d+)$/.exec(child)?.[1]);
  return { code, stdout: '', stderr: child };
}

describe('beside a running node', () => {
  let cluster: TestCluster;
  let node: TestNode;

  beforeAll(async () => {
    cluster = await TestCluster.start({ nodes: 1 });
    node = cluster.node(1);
    await node.sql('app.db', 'CREATE TABLE t (x)', 'INSERT INTO t VALUES (1)');
  });
  afterAll(async () => {
    await cluster.stop();
  });

  it('a second daemon cannot have its data directory or its mount, and disturbs nothing', async () => {
    const sameData = await mount({ data: { dir: node.dataDir } });
    expectRefused(sameData, 2, 'ERR_STORE_LOCKED', `process ${node.pid}`);
    expectRefused(await mount({ fuse: { dir: node.mountDir } }), 2, 'ERR_MOUNT_BUSY', node.mountDir);
    expect(await node.sql('app.db', 'INSERT INTO t VALUES (2)', 'SELECT count(*) FROM t')).toBe('2');
    expect((await node.status()).role).toBe('primary');
  });

  it('a node whose lease is of another cluster is refused', async () => {
    const settings = { cluster: { id: 'another' }, lease: { path: join(cluster.dir, 'lease.db') } };
    const refused = await mount(settings);
    expectRefused(refused, 2, 'ERR_LEASE_OTHER_CLUSTER', 'another');
    // Known from its data directory: that shows only when the lease is read.
    mkdirSync(join(dir, 'data'), { recursive: true });
    writeFileSync(join(dir, 'data', 'clusterid'), 'another\n');
    const known = await mount({ lease: settings.lease });
    expectRefused(known, 2, 'ERR_LEASE_OTHER_CLUSTER', 'another');
    expect((await node.status()).role).toBe('primary');
  });

  it('a node with an id that is in use is refused', async () => {
    const settings = { node: { id: node.id }, lease: { path: join(cluster.dir, 'lease.db') } };
    expectRefused(await mount(settings), 2, 'ERR_LEASE_DUPLICATE_NODE', node.id);
    expect((await node.status()).role).toBe('primary');
  });
});
