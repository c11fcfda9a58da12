import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { freePort, run } from '../helpers/cluster.js';
import { alone, signTheBook, stage } from '../helpers/image.js';

/**
 * `npm run image-steps`: carries out what deploy/docker/Dockerfile says, step by step, in folders that debootstrap has made of Debian, as
 * a machine without Docker can, and starts what comes out of it. Needs root, debootstrap, and what npm and apt fetch; takes minutes.
 * The base images are stood in for: Debian 12 with this machine's Node.js, and for the larger one a compiler.
 */
const work = mkdtempSync(join(tmpdir(), 'kitefs-test-image-'));
const base = join(work, 'debian');
const say = (text: string): void => console.log(`image-steps: ${text}`);
let daemon: ChildProcess | undefined;

afterAll(async () => {
  if (daemon?.exitCode === null) {
    daemon.kill('SIGTERM');
    await once(daemon, 'exit');
  }
  rmSync(work, { recursive: true, force: true });
});

/** A command whose root is `root`, with /proc and /dev, in a mount namespace that takes these with it. */
const inside = (root: string, cwd: string, command: string): string[] => [
  '--mount',
  '--propagation',
  'private',
  'sh',
  '-c',
  'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" /bin/sh -c "cd $1 && $2"',
  root,
  cwd,
  command,
];

/** Runs a program however long it takes; fails with the end of what it said. */
async function execute(what: string, program: string, words: readonly string[]): Promise<void> {
  say(what);
  const started = spawn(program, words, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      ...process.env,
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      DEBIAN_FRONTEND: 'noninteractive',
    },
  });
  let output = '';
  for (const stream of [started.stdout, started.stderr])
    stream.on('data', (chunk: Buffer) => (output = (output + chunk.toString()).slice(-4000)));
  const [code] = (await once(started, 'close')) as [number | null];
  expect(code, `${what}\n${output}`).toBe(0);
}

const runInside = (root: string, cwd: string, command: string): Promise<void> =>
  execute(`RUN ${command}`, 'unshare', inside(root, cwd, command));

/** What stands for the image of a FROM line. */
async function begin(from: string, built: ReadonlyMap<string, string>, root: string): Promise<void> {
  const earlier = built.get(from);
  await run('cp', ['-a', earlier ?? base, root]);
  if (earlier !== undefined) return;
  expect(from).toMatch(/^node:20-bookworm(-slim)?$/);
  expect(process.version).toMatch(/^v20\./);
  const local = join(root, 'usr/local');
  copyFileSync(process.execPath, join(local, 'bin/node'));
  const npm = join(dirname(process.execPath), '../lib/node_modules/npm');
  cpSync(npm, join(local, 'lib/node_modules/npm'), { recursive: true });
  for (const name of ['npm', 'npx'])
    symlinkSync(`../lib/node_modules/npm/bin/${name}-cli.js`, join(local, 'bin', name));
  // How this machine reaches registries.
  for (const path of [
    '/etc/ssl/certs/ca-certificates.crt',
    '/root/.npmrc',
    '/usr/include/node',
    '/etc/resolv.conf',
  ])
    if (existsSync(path)) cpSync(path, join(root, path), { recursive: true, dereference: true });
  if (from.endsWith('-slim')) return;
  await runInside(
    root,
    '/',
    'apt-get update && apt-get install -y --no-install-recommends build-essential python3',
  );
}

/** Carries a stage out; returns its root. */
async function build(name: string, built: Map<string, string>): Promise<string> {
  const root = join(work, name);
  let cwd = '/';
  for (const { instruction, rest } of stage(name)) {
    if (instruction === 'FROM') await begin(rest.replace(/ AS .*/, ''), built, root);
    else if (instruction === 'WORKDIR') mkdirSync(join(root, (cwd = rest)), { recursive: true });
    else if (instruction === 'RUN') await runInside(root, cwd, rest);
    else if (instruction === 'COPY') {
      const [, from, words] = /^(?:--from=(\S+) )?(.*)$/.exec(rest)!;
      const paths = words!.split(' ');
      const to = join(root, paths.at(-1)!.startsWith('/') ? '/' : cwd, paths.at(-1)!);
      mkdirSync(dirname(to), { recursive: true });
      say(`COPY ${rest}`);
      for (const path of paths.slice(0, -1)) {
        if (from !== undefined) await run('cp', ['-a', join(built.get(from)!, path), to]);
        // What Git has is what .dockerignore leaves, and what a fresh clone has.
        else if (path === '.')
          await run('sh', ['-c', 'git ls-files -z | tar --null --files-from=- -c | tar -x -C "$0"', to]);
        else await run('cp', ['-a', path, to]);
      }
    }
  }
  built.set(name, root);
  return root;
}

it('comes out of the Dockerfile’s steps in a clean root, and serves the example when its entry command is started', async () => {
  await execute('debootstrap', 'debootstrap', ['--variant=minbase', 'bookworm', base]);
  const built = new Map<string, string>();
  for (const name of ['build', 'kitefs', 'example']) await build(name, built);
  const root = built.get('example')!;
  copyFileSync('deploy/compose/kitefs.yml', join(root, 'etc/kitefs.yml'));
  const words = ['ENTRYPOINT', 'CMD'].flatMap(
    (wanted) =>
      JSON.parse(stage('kitefs').find(({ instruction }) => instruction === wanted)!.rest) as string[],
  );
  const [proxy, app, http, peer] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  say(words.join(' '));
  daemon = spawn('unshare', inside(root, '/', `exec ${words.join(' ')}`), {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: {
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      ...alone({ root: '', proxy, app, http, peer }),
    },
  });
  await signTheBook(daemon, proxy);
  // As `docker exec` would.
  await runInside(root, '/', `kitefs status -url http://127.0.0.1:${http}`);
  daemon.kill('SIGTERM');
  const [code] = (await once(daemon, 'exit')) as [number | null];
  // That of its application, which was asked to end.
  expect(code).toBe(128 + 15);
});
