// Installs what KiteFS and its tests need and this machine lacks. Node's own modules only: it runs
// before `npm install`. Exports what start.mjs and run-all.mjs call; each step says what it does and,
// when it cannot, exactly what is missing and how to get it.
import { execFileSync, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const CACHE = join(ROOT, '.cache');
const BIN = join(CACHE, 'bin');

/** The Go implementation of LTX: the oracle of the format tests. */
const LTX_MODULE = 'github.com/superfly/ltx/cmd/ltx@v0.5.3';
/** What backups are tested against: object stores, and the program whose buckets are read and written. */
const MINIO_MODULE = 'github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c';
const LITESTREAM_MODULE = 'github.com/benbjohnson/litestream/cmd/litestream@v0.5.18';
const GCS_MODULE = 'github.com/fsouza/fake-gcs-server@v1.56.1';
/** A folder of its own and no entry of package.json: whoever only runs KiteFS need not fetch its 370 packages. */
const AZURITE = 'azurite@3.35.0';
/** The version of Django that the ORM test runs on. */
const DJANGO = 'django==4.2.16';

const has = (command) => spawnSync('sh', ['-c', `command -v ${command}`]).status === 0;
const hasLibrary = (name) =>
  ['/sbin/ldconfig', 'ldconfig'].some((command) =>
    (spawnSync(command, ['-p'], { encoding: 'utf8' }).stdout ?? '').includes(name),
  );

function run(command, args, options = {}) {
  const env = { ...process.env, ...options.env };
  const ran = spawnSync(command, args, {
    cwd: options.cwd ?? ROOT,
    stdio: options.quiet ? 'pipe' : 'inherit',
    env,
  });
  if (ran.status === 0) return;
  if (options.quiet)
    process.stderr.write(Buffer.concat([ran.stdout ?? Buffer.alloc(0), ran.stderr ?? Buffer.alloc(0)]));
  throw new Error(`${command} ${args.join(' ')} failed${ran.error ? `: ${ran.error.message}` : ''}`);
}

/** Debian packages of which something is missing: installed as root or by sudo, else named. */
export function installPackages(packages) {
  if (packages.length === 0) return;
  const command = `apt-get install -y ${packages.join(' ')}`;
  const sudo = process.getuid() === 0 ? [] : ['sudo', '-n'];
  if (!has('apt-get') || (sudo.length > 0 && spawnSync('sudo', ['-n', 'true']).status !== 0)) {
    throw new Error(`missing on this machine: ${packages.join(', ')}. Run as root: ${command}`);
  }
  console.log(`installing ${packages.join(', ')}`);
  const apt = (...args) => {
    const [first, ...rest] = [...sudo, 'apt-get', ...args];
    run(first, rest, { quiet: true, env: { DEBIAN_FRONTEND: 'noninteractive' } });
  };
  apt('update', '-qq');
  apt('install', '-y', '-qq', ...packages);
}

/** What running needs: a compiler for the native modules, sqlite3 for the person, FUSE's mount helper. */
export function missingRuntimePackages() {
  const packages = [];
  if (!has('cc') || !has('make') || !has('g++')) packages.push('build-essential');
  if (!has('python3')) packages.push('python3');
  if (!has('sqlite3')) packages.push('sqlite3');
  if (!has('mount') || !has('umount')) packages.push('mount');
  return packages;
}

/** What the tests need beside that: the second driver's library, git, Go for the format's oracle, Python for Django, a browser (CHROMIUM: another path of it). */
function missingTestPackages() {
  const packages = missingRuntimePackages();
  if (!has('fusermount3') && !has('fusermount')) packages.push('fuse3');
  if (!hasLibrary('libfuse.so.2')) packages.push('libfuse2');
  if (!has('ip')) packages.push('iproute2');
  if (!has('mkfs.ext4')) packages.push('e2fsprogs');
  if (!has('/usr/sbin/sshd')) packages.push('openssh-server');
  if (!has('openssl')) packages.push('openssl');
  if (!has('go')) packages.push('golang-go');
  if (!has('chromium') && !process.env.CHROMIUM) packages.push('chromium');
  if (spawnSync('python3', ['-c', 'import venv, ensurepip']).status !== 0) packages.push('python3-venv');
  return packages;
}

/** node_modules as the lock file says; nothing to do when they are. */
export function installModules() {
  const stamp = join(CACHE, 'modules.stamp');
  const lock = createHash('sha256')
    .update(readFileSync(join(ROOT, 'package-lock.json')))
    .digest('hex');
  const state = `${lock} ${process.version}`;
  if (existsSync(join(ROOT, 'node_modules')) && existsSync(stamp) && readFileSync(stamp, 'utf8') === state)
    return;
  console.log(
    'installing node modules (native ones are compiled: this takes a minute or two the first time)',
  );
  run('npm', ['ci', '--no-fund', '--no-audit', '--loglevel=error'], { quiet: true });
  mkdirSync(CACHE, { recursive: true });
  writeFileSync(stamp, state);
}

/** dist/ from src/. */
export function build() {
  run('npm', ['run', '-s', 'build'], { quiet: true });
}

/**
 * .cache/bin/consul: the machine's own, else unpacked from a package of the distribution's last suite that had one. That
 * suite is read from the mirror that apt is set to, into folders of ours: nothing of the system is changed, no service is
 * started, root is not needed, and apt still checks the signatures.
 */
function installConsul() {
  const bin = join(BIN, 'consul');
  const works = () => spawnSync(bin, ['version']).status === 0;
  if (works()) return;
  mkdirSync(BIN, { recursive: true });
  rmSync(bin, { force: true });
  const found = spawnSync('sh', ['-c', 'command -v consul'], { encoding: 'utf8' });
  if (found.status === 0) {
    symlinkSync(found.stdout.trim(), bin);
    if (works()) return;
    rmSync(bin, { force: true });
  }
  const byHand = `put a consul binary (1.8 or newer) into PATH or at ${bin}`;
  const os = readFileSync('/etc/os-release', 'utf8');
  const source = /^ID=ubuntu$/m.test(os)
    ? { suite: 'jammy', component: 'universe', keys: 'ubuntu-archive-keyring.gpg' }
    : { suite: 'bullseye', component: 'main', keys: 'debian-archive-keyring.gpg' };
  const codename = /^VERSION_CODENAME=(.*)$/m.exec(os)?.[1];
  const uris = spawnSync('apt-get', ['update', '--print-uris'], { encoding: 'utf8' }).stdout ?? '';
  const mirror = new RegExp(`^'(\\S+/)dists/${codename}/`, 'm').exec(uris)?.[1];
  if (mirror === undefined) {
    throw new Error(
      `the tests need Consul and apt names no mirror of ${codename ?? 'this system'}: ${byHand}`,
    );
  }

  console.log(`fetching Consul (the tests' lease store) from ${source.suite}`);
  const dir = join(CACHE, 'consul');
  rmSync(dir, { recursive: true, force: true });
  for (const folder of ['lists/partial', 'archives/partial', 'empty', 'root']) {
    mkdirSync(join(dir, folder), { recursive: true });
  }
  const keys = `/usr/share/keyrings/${source.keys}`;
  const signed = existsSync(keys) ? `[signed-by=${keys}] ` : '';
  writeFileSync(join(dir, 'sources.list'), `deb ${signed}${mirror} ${source.suite} ${source.component}\n`);
  const settings = {
    'Dir::Etc::SourceList': join(dir, 'sources.list'),
    'Dir::Etc::SourceParts': join(dir, 'empty'),
    'Dir::Etc::PreferencesParts': join(dir, 'empty'),
    'Dir::State::Lists': join(dir, 'lists'),
    'Dir::Cache': dir,
    'APT::Sandbox::User': 'root',
    'Acquire::Languages': 'none',
    'Acquire::Retries': '3',
  };
  const options = Object.entries(settings).flatMap(([key, value]) => ['-o', `${key}=${value}`]);
  try {
    run('apt-get', [...options, 'update', '-qq'], { quiet: true, cwd: dir });
    run('apt-get', [...options, 'download', '-qq', 'consul'], { quiet: true, cwd: dir });
    const archive = readdirSync(dir).find((name) => name.endsWith('.deb'));
    run('dpkg-deb', ['-x', join(dir, archive ?? 'consul.deb'), join(dir, 'root')], { quiet: true });
    // In one step, so that an interrupted run leaves no half of it.
    renameSync(join(dir, 'root/usr/bin/consul'), bin);
    if (!works()) throw new Error('it does not run');
  } catch (error) {
    rmSync(bin, { force: true });
    throw new Error(`the tests need Consul, which could not be had from ${source.suite}: ${byHand}`, {
      cause: error,
    });
  }
  rmSync(dir, { recursive: true, force: true });
}

/** .cache/bin/<name>, built from its sources. */
function installGoProgram(name, module, what) {
  if (existsSync(join(BIN, name))) return;
  console.log(`building ${name} (${what})`);
  const goVersion = execFileSync('go', ['version'], { encoding: 'utf8' });
  const minor = Number(/go1\.(\d+)/.exec(goVersion)?.[1] ?? 0);
  if (minor < 21)
    throw new Error(`Go 1.21 or newer is needed to build ${module}; found: ${goVersion.trim()}`);
  run('go', ['install', module], { quiet: true, env: { GOBIN: BIN } });
}

/** .cache/azurite/node_modules/azurite. */
function installAzurite() {
  const dir = join(CACHE, 'azurite');
  const stamp = join(dir, 'stamp');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === AZURITE) return;
  console.log('installing Azurite (for the tests of backups)');
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, 'package.json'), '{ "private": true }\n');
  run('npm', ['install', '--no-save', '--no-fund', '--no-audit', '--loglevel=error', AZURITE], {
    quiet: true,
    cwd: dir,
  });
  writeFileSync(stamp, AZURITE);
}

/** The tools that only tests use, each under .cache. */
export function installTestTools() {
  mkdirSync(BIN, { recursive: true });
  installGoProgram('ltx', LTX_MODULE, 'the oracle of the format tests');
  installGoProgram('litestream', LITESTREAM_MODULE, 'for the tests of backups: takes a few minutes');
  installGoProgram('minio', MINIO_MODULE, 'for the tests of backups: takes a few minutes');
  installGoProgram('fake-gcs-server', GCS_MODULE, 'for the tests of backups');
  installAzurite();
  installConsul();
  const python = join(CACHE, 'python');
  if (!existsSync(join(python, 'django.stamp'))) {
    console.log('installing Django into a virtual environment (the ORM test)');
    run('python3', ['-m', 'venv', python], { quiet: true });
    run(join(python, 'bin', 'pip'), ['install', '-q', '--disable-pip-version-check', DJANGO], {
      quiet: true,
    });
    writeFileSync(join(python, 'django.stamp'), DJANGO);
  }
}

export function installForRunning() {
  installPackages(missingRuntimePackages());
  installModules();
}

export function installForTests() {
  installPackages(missingTestPackages());
  installModules();
  installTestTools();
}
