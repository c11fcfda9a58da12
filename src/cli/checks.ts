import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import type { Config } from '../config/load.js';
import { formatAddress, type Address } from '../config/values.js';
import { openLease } from '../daemon/lease-kinds.js';
import { toKiteError } from '../errors.js';
import type { LeaseAdapter } from '../lease/types.js';

/** One thing that a node needs of the machine, looked at. */
export interface Check {
  readonly what: string;
  readonly ok: boolean;
  /** What was found. */
  readonly found: string;
  /** How to get what is missing; undefined when all is well. */
  readonly fix?: string;
}

const NODE_MAJOR_MIN = 20;

const good = (what: string, found: string): Check => ({ what, ok: true, found });
const bad = (what: string, found: string, fix: string): Check => ({ what, ok: false, found, fix });

/** What every mount with this driver needs. */
export function machineChecks(driver: Config['fuse']['driver']): Check[] {
  return [
    nodeVersion(),
    operatingSystem(),
    fuseDevice(),
    ...(driver === 'kernel' ? [mountRight(), mountCommand()] : [fusermount()]),
  ];
}

/** What a node with this configuration needs besides. */
export async function nodeChecks(config: Config): Promise<Check[]> {
  return [
    mountPoint(config.fuse.dir),
    writableFolder('data.dir', config.data.dir),
    ...(config.lease.type === 'local' ? [writableFolder('lease.path', dirname(config.lease.path))] : []),
    ...(config.lease.type === 'consul' ? [await consulAnswers(config)] : []),
    ...(config.fuse.driver === 'fuse-native' && config.fuse.allowOther ? [userAllowOther()] : []),
    await freePort('http.addr', config.http.addr),
    await freePort('peer.addr', config.peer.addr),
  ];
}

function nodeVersion(): Check {
  const what = 'Node';
  return Number.parseInt(process.versions.node, 10) >= NODE_MAJOR_MIN
    ? good(what, process.version)
    : bad(what, process.version, `install Node ${NODE_MAJOR_MIN} or newer (https://nodejs.org)`);
}

function operatingSystem(): Check {
  const what = 'operating system';
  return process.platform === 'linux'
    ? good(what, 'Linux')
    : bad(what, process.platform, 'KiteFS needs Linux: use a virtual machine or a container');
}

function fuseDevice(): Check {
  const what = '/dev/fuse';
  if (!existsSync('/dev/fuse')) {
    const inContainer = existsSync('/.dockerenv') || existsSync('/run/.containerenv');
    return bad(
      what,
      'is not there',
      inContainer
        ? 'start the container with --device /dev/fuse --cap-add SYS_ADMIN'
        : 'load the kernel module: sudo modprobe fuse',
    );
  }
  try {
    accessSync('/dev/fuse', constants.R_OK | constants.W_OK);
    return good(what, 'is there');
  } catch {
    return bad(what, 'may not be opened by this user', 'run as root (sudo), or: sudo chmod 666 /dev/fuse');
  }
}

/** CAP_SYS_ADMIN is bit 21 of the effective capabilities: what mount(2) asks for. */
function mountRight(): Check {
  const what = 'right to mount';
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return (BigInt(`0x${effective}`) & (1n << 21n)) !== 0n
    ? good(what, 'this process may mount')
    : bad(
        what,
        'this process may not mount (no CAP_SYS_ADMIN)',
        'run as root (sudo; in a container --cap-add SYS_ADMIN), or set fuse.driver: fuse-native',
      );
}

function mountCommand(): Check {
  return program('mount', 'sudo apt-get install mount');
}

function fusermount(): Check {
  const found = program('fusermount', 'sudo apt-get install fuse libfuse2');
  return found.ok
    ? found
    : { ...program('fusermount3', 'sudo apt-get install fuse3 libfuse2'), what: 'fusermount' };
}

function program(name: string, fix: string): Check {
  const path = (process.env['PATH'] ?? '')
    .split(':')
    .map((folder) => join(folder, name))
    .find((candidate) => existsSync(candidate));
  return path === undefined ? bad(name, 'is not on PATH', fix) : good(name, path);
}

/** Looks at mountinfo first: asking a dead or foreign mount could hang. */
function mountPoint(dir: string): Check {
  const what = `fuse.dir ${dir}`;
  const mounted = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[4]?.replaceAll('\\040', ' ') === dir);
  if (mounted)
    return bad(
      what,
      'has something mounted on it',
      `stop the node that serves it, or: sudo umount -l ${dir}`,
    );
  if (!existsSync(dir)) return writableFolder(what, dir);
  if (!statSync(dir).isDirectory()) return bad(what, 'is no folder', 'choose another fuse.dir');
  return readdirSync(dir).length === 0
    ? good(what, 'is empty')
    : bad(
        what,
        'is not empty',
        'move what is in it elsewhere (kitefs import takes databases), or choose another fuse.dir',
      );
}

/** A folder that can be written, or that can be made because the nearest one above it can. */
function writableFolder(what: string, dir: string): Check {
  let at = dir;
  while (!existsSync(at)) at = dirname(at);
  const probe = join(at, `.kitefs-doctor-${process.pid}`);
  try {
    mkdirSync(probe);
    rmSync(probe, { recursive: true });
    return good(what, at === dir ? `${dir} can be written` : `${dir} can be made`);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    return bad(
      what,
      `${at} cannot be written (${code})`,
      `run as a user who may, or: sudo chown $USER ${at}`,
    );
  }
}

/** Whether Consul answers, lets this node read the lease, and the key holds nothing else. */
async function consulAnswers(config: Config): Promise<Check> {
  const what = `lease.consul.key ${config.lease.consul.key}`;
  let adapter: LeaseAdapter | undefined;
  try {
    adapter = await openLease(config, 'doctor', 0n);
    const { record } = await adapter.read(5000);
    if (!record) return good(what, 'is empty');
    return good(what, `cluster ${record.clusterId}, primary ${record.holder?.nodeId ?? 'nobody'}`);
  } catch (thrown) {
    const { message, row } = toKiteError(thrown);
    return bad(what, message, row.action);
  } finally {
    await adapter?.close();
  }
}

function userAllowOther(): Check {
  const what = 'fuse.allow-other';
  const allowed =
    process.getuid?.() === 0 ||
    (existsSync('/etc/fuse.conf') &&
      /^\s*user_allow_other\s*$/m.test(readFileSync('/etc/fuse.conf', 'utf8')));
  return allowed
    ? good(what, 'is allowed')
    : bad(what, 'is not allowed to this user', 'echo user_allow_other | sudo tee -a /etc/fuse.conf');
}

/** Whether the address can be listened on, by listening on it for a moment. */
async function freePort(key: string, address: Address): Promise<Check> {
  const what = `${key} ${formatAddress(address)}`;
  const server = createServer();
  const code = await new Promise<string | undefined>((resolve) => {
    server.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen({ port: address.port, ...(address.host === '' ? {} : { host: address.host }) }, () =>
      resolve(undefined),
    );
  });
  if (code !== undefined) {
    const found = code === 'EADDRINUSE' ? 'is in use' : `cannot be listened on (${code})`;
    return bad(what, found, `choose another ${key}, or end what listens there (ss -ltnp)`);
  }
  await new Promise((resolve) => {
    server.close(resolve);
  });
  return good(what, 'is free');
}
