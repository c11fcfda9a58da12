import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parse as parseToml } from 'smol-toml';
import { afterEach, describe, expect, it } from 'vitest';
import { parse as parseYaml } from 'yaml';
import { type Config, loadConfig } from '../../src/config/load.js';
import { freePort, run } from '../helpers/cluster.js';
import { alone, signTheBook, stage } from '../helpers/image.js';

/** What deploy/ and fly.toml say, as far as it can be tried without the platforms. */
const ROOT = process.cwd();
const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8');

/** What a Machine has in its environment, with Consul attached, a bucket made and the secret set. */
const FLY = {
  FLY_MACHINE_ID: '148e21ea7e4d89',
  FLY_REGION: 'ams',
  PRIMARY_REGION: 'ams',
  FLY_APP_NAME: 'shop',
  FLY_CONSUL_URL: 'https://:token@consul.example/shop-1/',
  KITEFS_PEER_SECRET: 'f'.repeat(64),
  BUCKET_NAME: 'shop-backups',
  AWS_ENDPOINT_URL_S3: 'https://fly.storage.tigris.dev',
  AWS_REGION: 'auto',
  AWS_ACCESS_KEY_ID: 'key',
  AWS_SECRET_ACCESS_KEY: 'secret',
};
const load = (
  path: string,
  environment: Record<string, string>,
): { config: Config; notes: readonly unknown[] } => loadConfig({ file: join(ROOT, path), environment });

/** Copies what the image's stages copy, from this checkout's build, into a folder that stands for its root. */
function assemble(root: string, ...stages: string[]): void {
  for (const { instruction, rest } of stages.flatMap(stage)) {
    if (instruction !== 'COPY') continue;
    const [from = '', to = ''] = rest.replace(/^--from=build /, '').split(' ');
    const source = join(ROOT, from.replace(/^\/opt\/kitefs\//, ''));
    expect(existsSync(source), `${source}, which the image copies`).toBe(true);
    mkdirSync(dirname(join(root, to)), { recursive: true });
    // Not copied: 200 MB of packages. Development's are there too, which npm prune takes away.
    if (from.endsWith('node_modules')) symlinkSync(source, join(root, to));
    else cpSync(source, join(root, to), { recursive: true });
  }
}

describe('fly.toml', () => {
  const fly = parseToml(read('fly.toml')) as {
    app: string;
    primary_region: string;
    kill_signal: string;
    kill_timeout: string;
    build: { dockerfile: string; 'build-target': string };
    env: Record<string, string>;
    files: { guest_path: string; local_path: string }[];
    mounts: { source: string; destination: string }[];
    http_service: Record<string, unknown>;
    checks: Record<string, { port: number; path: string; type: string }>;
    vm: Record<string, unknown>[];
  };
  const { config, notes } = load(fly.files[0]!.local_path, { ...FLY, ...fly.env });

  it('has only keys that Fly.io knows, of the right kind', () => {
    expect(Object.keys(fly).toSorted()).toEqual([
      'app',
      'build',
      'checks',
      'env',
      'files',
      'http_service',
      'kill_signal',
      'kill_timeout',
      'mounts',
      'primary_region',
      'vm',
    ]);
    expect(fly.kill_signal).toBe('SIGTERM');
    expect(fly.http_service).toMatchObject({ auto_stop_machines: 'off', force_https: true });
    // A quorum of one may not be stopped by the platform.
    expect(fly.http_service['min_machines_running']).toBeGreaterThan(0);
  });

  it('fits the configuration that it puts into the Machine', () => {
    expect(notes).toEqual([]);
    expect(fly.files[0]!.guest_path).toBe('/etc/kitefs.yml');
    expect(fly.mounts).toEqual([{ source: 'kitefs', destination: config.data.dir }]);
    expect(fly.http_service['internal_port']).toBe(config.proxy.addr?.port);
    expect(fly.checks['ready']).toMatchObject({ type: 'http', port: config.http.addr.port, path: '/ready' });
    expect(fly.env['PRIMARY_REGION']).toBe(fly.primary_region);
    expect(Number.parseInt(fly.kill_timeout, 10) * 1000).toBeGreaterThan(config.proxy.drainMs);
    expect(config.proxy).toMatchObject({
      replay: 'instance',
      instance: FLY.FLY_MACHINE_ID,
      db: ['guestbook.db'],
    });
    expect(config.lease).toMatchObject({
      type: 'consul',
      candidate: true,
      consul: { url: FLY.FLY_CONSUL_URL },
    });
    expect(config.backups).toMatchObject([{ destination: { bucket: 'shop-backups', path: 'shop' } }]);
    expect(load(fly.files[0]!.local_path, { ...FLY, FLY_REGION: 'syd' }).config.lease.candidate).toBe(false);
  });

  it('names a stage of the Dockerfile that has the application it starts', () => {
    const copies = stage(fly.build['build-target']).filter(({ instruction }) => instruction === 'COPY');
    expect(copies.map(({ rest }) => rest)).toEqual(['deploy/example /opt/kitefs/example']);
    expect(config.exec.map(({ cmd }) => cmd)).toEqual(['node /opt/kitefs/example/server.mjs']);
  });
});

describe('compose.yml', () => {
  const compose = parseYaml(read('deploy/compose/compose.yml'), { merge: true }) as {
    services: Record<
      string,
      Record<string, unknown> & { ports?: string[]; volumes?: string[]; depends_on?: object }
    >;
    configs: Record<string, { file: string }>;
    volumes: Record<string, unknown>;
  };
  const node = compose.services['node1']!;

  it('names only what it has', () => {
    for (const [name, { volumes = [], depends_on = {} }] of Object.entries(compose.services)) {
      for (const volume of volumes) expect(compose.volumes, name).toHaveProperty(volume.split(':')[0]!);
      const needed = Array.isArray(depends_on) ? (depends_on as string[]) : Object.keys(depends_on);
      for (const other of needed) expect(compose.services, name).toHaveProperty(other);
    }
    const { context, dockerfile, target } = node['build'] as Record<string, string>;
    expect(existsSync(join(ROOT, 'deploy/compose', context!, dockerfile!))).toBe(true);
    stage(target!);
    expect(node).toMatchObject({ devices: ['/dev/fuse'], cap_add: ['SYS_ADMIN'] });
  });

  it('gives every node a configuration that is right, and publishes its proxy', () => {
    const file = join('deploy/compose', compose.configs['kitefs']!.file);
    for (const name of ['node1', 'node2', 'node3']) {
      const { config } = load(file, { HOSTNAME: name });
      expect(config.node.id).toBe(name);
      expect(config.peer.advertise).toBe(`${name}:20203`);
      const service = compose.services[name]!;
      expect(service['hostname']).toBe(name);
      expect(service.ports![0]!.split(':').at(-1)).toBe(String(config.proxy.addr?.port));
      expect(service.volumes![0]!.split(':')[1]).toBe(config.data.dir);
      const port = Number(new URL(config.lease.consul.url!).port);
      expect(port).toBe(8500);
    }
  });
});

describe('the image', () => {
  let root = '';
  let daemon: ChildProcess | undefined;
  afterEach(async () => {
    if (daemon?.exitCode === null) {
      daemon.kill('SIGTERM');
      await once(daemon, 'exit');
    }
    await run('umount', ['-l', join(root, 'litefs')]).catch(() => undefined);
    rmSync(root, { recursive: true, force: true });
  });

  it('starts by its entry command, with nothing but what its stages copy, and serves the example through the proxy', async () => {
    root = mkdtempSync(join(tmpdir(), 'kitefs-test-image-'));
    assemble(root, 'kitefs', 'example');
    const entry = stage('kitefs').find(({ instruction }) => instruction === 'ENTRYPOINT');
    const command = stage('kitefs').find(({ instruction }) => instruction === 'CMD');
    expect(JSON.parse(entry!.rest)).toEqual(['kitefs']);
    expect(JSON.parse(command!.rest)).toEqual(['mount', '-config', '/etc/kitefs.yml']);

    const [proxy, app, http, peer] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
    mkdirSync(join(root, 'litefs'));
    // The nodes' own configuration, except for where it would leave this folder and this machine.
    daemon = spawn(
      process.execPath,
      [
        join(root, 'opt/kitefs/dist/cli/main.js'),
        'mount',
        '-config',
        join(ROOT, 'deploy/compose/kitefs.yml'),
      ],
      {
        cwd: root,
        stdio: ['ignore', 'ignore', 'pipe'],
        env: { PATH: process.env['PATH'], ...alone({ root, proxy, app, http, peer }) },
      },
    );
    await signTheBook(daemon, proxy);
  });
});
