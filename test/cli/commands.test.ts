import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { once } from 'node:events';
import { execFileSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { encodeLtx } from '../../src/ltx/encoder.js';
import { runCli } from './run-cli.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

let dir: string;

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-app-cli-'));
});
afterAll(() => rmSync(dir, { recursive: true }));

const write = (name: string, content: string | Buffer): string => {
  const path = join(dir, name);
  writeFileSync(path, content);
  return path;
};

describe('the kitefs command', () => {
  it('prints its version, and help for every command that exists', async () => {
    expect(await runCli(['--version'])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    });
    const help = await runCli(['-help']);
    expect(help.code).toBe(0);
    for (const command of ['mount', 'demo', 'status', 'import', 'export', 'ltx', 'config', 'doctor']) {
      expect(help.stdout).toContain(`  ${command} `);
    }
    const mount = await runCli(['mount', '--help']);
    expect(mount.stdout).toContain('[KITEFS_LEASE_TTL]');
  });

  it('ends with 2 and no stack trace for a mistake in the command line', async () => {
    for (const words of [
      [],
      ['moun'],
      ['mount', '-lease.tll', '5s'],
      ['status', 'what'],
      ['export', 'x'],
      ['demo', '-nodes', '0'],
    ]) {
      const { code, stderr } = await runCli(words);
      expect({ words, code }).toEqual({ words, code: 2 });
      expect(stderr).not.toMatch(/^\s+at /m);
    }
    expect((await runCli(['mount', '-lease.tll', '5s'])).stderr).toContain('Did you mean --lease.ttl?');
  });

  it('takes long flags with one dash or two, and a switch without a value', async () => {
    for (const words of [
      ['-lease.ttl=9s', '-fuse.allow-other'],
      ['--lease.ttl', '9s', '--fuse.allow-other=true'],
    ]) {
      const { stdout } = await runCli(['config', 'print', ...words], { cwd: dir });
      expect(stdout).toContain('  ttl: 9s # --lease.ttl\n');
      expect(stdout).toContain('  allow-other: true # --fuse.allow-other\n');
    }
  });

  it('finds ./kitefs.yml before ./litefs.yml and says where each value comes from', async () => {
    write('litefs.yml', 'data:\n  dir: /from-litefs\n');
    const litefs = await runCli(['config', 'print'], { cwd: dir });
    expect(litefs.stdout).toContain('  dir: /from-litefs # ./litefs.yml:2\n');
    write('kitefs.yml', 'data:\n  dir: /from-kitefs\npeer:\n  secret: 0123456789abcdef\n');
    const kitefs = await runCli(['config', 'print'], { cwd: dir, env: { KITEFS_NODE_REGION: 'fra' } });
    expect(kitefs.stdout).toContain('  dir: /from-kitefs # ./kitefs.yml:2\n');
    expect(kitefs.stdout).toContain('  region: fra # KITEFS_NODE_REGION\n');
    expect(kitefs.stdout).not.toContain('0123456789abcdef');
    rmSync(join(dir, 'litefs.yml'));
    rmSync(join(dir, 'kitefs.yml'));
  });

  it('checks a configuration: notes with their line, mistakes with exit code 2', async () => {
    const file = write('check.yml', 'data:\n  compress: true\n');
    const good = await runCli(['config', 'check', '-config', file]);
    expect(good).toMatchObject({
      code: 0,
      stdout: expect.stringContaining(`${file}:2: data.compress has no effect`),
    });
    const bad = await runCli(['mount', '-config', write('bad.yml', 'fuse:\n  dri: /x\n')]);
    expect(bad.code).toBe(2);
    expect(bad.stderr).toContain('bad.yml:2: unknown key fuse.dri; did you mean fuse.dir?');
    expect((await runCli(['config', 'check', '-config', join(dir, 'nothing.yml')])).code).toBe(2);
  });

  it('takes the configuration that deploy/ gives to Machines of Fly.io, with what those have in their environment', async () => {
    const result = await runCli(['config', 'check', '-config', join(ROOT, 'deploy/fly/kitefs.yml')], {
      env: {
        FLY_MACHINE_ID: '148e21ea7e4d89',
        FLY_REGION: 'ams',
        PRIMARY_REGION: 'ams',
        FLY_APP_NAME: 'shop',
        FLY_CONSUL_URL: 'https://:token@consul.example/shop-1/',
        KITEFS_PEER_SECRET: 'f'.repeat(64),
        BUCKET_NAME: 'shop-backups',
        AWS_ENDPOINT_URL_S3: 'https://objects.example',
        AWS_REGION: 'auto',
      },
    });
    expect(result).toMatchObject({ code: 0, stderr: '' });
    expect(result.stdout).toMatch(/kitefs\.yml: ok/);
  });

  it('verifies LTX files: a sound one, a damaged one, a foreign one and one that is not there', async () => {
    const page = Buffer.alloc(512, 7);
    const file = encodeLtx(LTX_HEADER, [{ pgno: 1, data: page }], LTX_CHECKSUM);
    const sound = write('0000000000000002-0000000000000002.ltx', file);
    const flipped = Buffer.from(file);
    flipped[120] = (flipped[120] ?? 0) ^ 1;
    const damaged = write('damaged.ltx', flipped);
    const foreign = write('foreign.ltx', 'SQLite format 3');
    const missing = join(dir, 'missing.ltx');

    const { code, stdout, stderr } = await runCli(['ltx', 'verify', sound, damaged, foreign, missing]);
    expect(code).toBe(1);
    expect(stdout).toContain(
      `${sound}: ok, 0000000000000002-0000000000000002.ltx, 1 pages, ${file.length} bytes\n`,
    );
    expect(stderr).toMatch(/^.*damaged\.ltx: .*\[ERR_LTX_DAMAGED\]$/m);
    expect(stderr).toMatch(/^.*foreign\.ltx: .*\[ERR_LTX_\w+\]$/m);
    expect(stderr).toMatch(/^.*missing\.ltx: .*\[ERR_CLI_FILE\]$/m);
    expect(stderr).not.toMatch(/^\s+at /m);

    expect((await runCli(['ltx', 'verify', sound])).code).toBe(0);
    const dump = await runCli(['ltx', 'dump', '--json', sound]);
    expect(JSON.parse(dump.stdout)).toMatchObject({ pageSize: 512, minTxid: '0000000000000002' });
    expect((await runCli(['ltx', 'dump', sound])).stdout).toContain('page size');
  });

  it('gives a copied data directory an id of its own', async () => {
    const data = join(dir, 'copied');
    const reset = async (...more: string[]): Promise<string> => {
      const done = await runCli([
        'node',
        'reset-id',
        '--data.dir',
        data,
        '--fuse.dir',
        join(dir, 'm'),
        ...more,
      ]);
      expect(done.code).toBe(0);
      return (JSON.parse(readFileSync(join(data, 'node.json'), 'utf8')) as { nodeId: string }).nodeId;
    };
    const first = await reset();
    const second = await reset();
    expect(second).not.toBe(first);
    expect(await reset('--node.id', 'fra-2')).toBe('fra-2');
  });

  it('says that a node cannot be reached, and what to look at', async () => {
    const port = await unusedPort();
    for (const words of [['status'], ['export', '-name', 'a', join(dir, 'a')]]) {
      const { code, stderr } = await runCli([...words, '-url', `http://127.0.0.1:${port}`]);
      expect(code).toBe(1);
      expect(stderr).toContain('ERR_CLI_UNREACHABLE');
    }
    expect((await runCli(['status', '-url', 'nonsense'])).code).toBe(2);
  });

  it('refuses to import a file that is missing, or whose WAL is not in it', async () => {
    const path = write('app.db', 'x');
    write('app.db-wal', 'frames');
    const withWal = await runCli(['import', '-name', 'app.db', path]);
    expect(withWal).toMatchObject({ code: 1, stderr: expect.stringContaining('app.db-wal is not empty') });
    const missing = await runCli(['import', '-name', 'app.db', join(dir, 'nothing.db')]);
    expect(missing).toMatchObject({ code: 1, stderr: expect.stringContaining('there is no file') });
  });

  it('lets doctor look at everything and say how to get what is missing', async () => {
    const mountDir = join(dir, 'mnt');
    execFileSync('mkdir', ['-p', mountDir]);
    const busy = createServer();
    busy.listen(0, '127.0.0.1');
    await once(busy, 'listening');
    const flags = [
      `-fuse.dir=${mountDir}`,
      `-data.dir=${join(dir, 'data')}`,
      `-peer.addr=127.0.0.1:${await unusedPort()}`,
    ];
    const free = await runCli(['doctor', ...flags, `-http.addr=127.0.0.1:${await unusedPort()}`]);
    expect(free).toMatchObject({ code: 0, stderr: '' });
    expect(free.stdout).not.toContain('FAIL');

    write('mnt/left-behind.db', 'x');
    const { code, stdout } = await runCli(['doctor', ...flags, `-http.addr=127.0.0.1:${portOf(busy)}`]);
    expect(code).toBe(1);
    expect(stdout).toMatch(/FAIL {2}fuse\.dir .*: is not empty\n {6}-> move what is in it/);
    expect(stdout).toMatch(/FAIL {2}http\.addr .*: is in use\n {6}-> /);
    busy.close();
  });

  it('has documentation that was made from what it is now', () => {
    execFileSync(process.execPath, ['test/tools/docs.mjs', '--check'], { cwd: ROOT, stdio: 'pipe' });
  });
});

const LTX_CHECKSUM = 0x8000000000000001n;
const LTX_HEADER = {
  pageSize: 512,
  commitPages: 1,
  minTxid: 2n,
  maxTxid: 2n,
  timestampMs: 0,
  preApplyChecksum: 0x8000000000000002n,
};

const portOf = (server: Server): number => {
  const address = server.address();
  return typeof address === 'object' && address ? address.port : 0;
};

/** A port that nobody listens on now. */
async function unusedPort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const port = portOf(server);
  server.close();
  await once(server, 'close');
  return port;
}
