import { type ChildProcess, execFile, execFileSync, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ChangeMark } from '../src/util/change-mark.js';
import { freePort } from '../test/helpers/cluster.js';
import { hasLiteFs } from './litefs.js';

/**
 * The proxy beside what one would use instead: going to the application directly, nginx and LiteFS's proxy where they are on PATH. The
 * application answers from memory, so that what is measured is the way to it. Client and application share the machine with the
 * proxies: requests per second count what is left for them, so the proxy's own CPU time per request stands beside.
 */
const CLIENT = join(process.cwd(), 'bench/proxy-client.mjs');
const MAIN = join(process.cwd(), 'dist/proxy/main.js');
const CONNECTIONS = 64;
const SOCKETS = Number(process.env['SOCKETS'] ?? 10_000);

interface Load {
  readonly perSecond: number;
  readonly p50: number;
  readonly p99: number;
}

interface Way {
  readonly name: string;
  readonly port: number;
  /** Whose CPU time counts. */
  readonly pid: number | undefined;
}

/** Asynchronous: this process answers what the proxy asks its daemon. */
async function load(port: number, method: string, connections: number, seconds: number): Promise<Load> {
  const { stdout } = await promisify(execFile)(process.execPath, [
    CLIENT,
    String(port),
    method,
    String(connections),
    String(seconds),
  ]);
  return JSON.parse(stdout) as Load;
}

/** User and system time of a process, in ms. */
function cpuMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

const rssOf = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;

/** Our proxy by itself: its process, told what a daemon would tell it. */
async function startOurs(
  target: number,
  node: { readonly nodeId: string; readonly primary: number | undefined },
  mark?: ChangeMark,
): Promise<{ child: ChildProcess; port: number }> {
  const child = fork(MAIN, { serialization: 'advanced', stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  const port = await new Promise<number>((resolve) => {
    child.on('message', (message: { kind: string; port: number; id: number }) => {
      if (message.kind === 'listening') resolve(message.port);
      // The daemon's answer costs it more; what it costs the proxy is the same.
      if (message.kind === 'ask')
        child.send({
          kind: 'seen',
          id: message.id,
          positions: new Map([['app.db', { epoch: 1n, txid: 9n }]]),
        });
    });
    const address = { host: '127.0.0.1', port: 0 };
    const position = { epoch: 1n, txid: 9n };
    child.send({
      kind: 'start',
      mark: mark?.path,
      settings: {
        addr: address,
        targets: [{ host: '127.0.0.1', port: target }],
        databases: [],
        reads: [],
        passthrough: [],
        alwaysForward: [],
        routes: [],
        primaryWaitMs: 5000,
        withoutPrimary: 'serve',
        token: 'cookie',
        tokenSecret: undefined,
        readWaitMs: 5000,
        maxStalenessMs: undefined,
        staleReads: 'primary',
        responseHeaders: true,
        readTimeoutMs: 0,
        readHeaderTimeoutMs: 10_000,
        writeTimeoutMs: 0,
        idleTimeoutMs: 30_000,
        targetWaitMs: 30_000,
        bufferBytes: 1 << 20,
        maxHeaderBytes: 32 << 10,
        drainMs: 1000,
        replay: 'off',
        replayMaxBodyBytes: 1 << 20,
        maintenancePage: undefined,
        debug: false,
        secret: 'a secret of the cluster',
      },
      node: {
        nodeId: node.nodeId,
        clusterId: 'bench',
        region: '',
        role: node.primary === undefined ? 'primary' : 'replica',
        ready: true,
        epoch: 1n,
        writableUntilMs: node.primary === undefined ? Infinity : 0,
        primary:
          node.primary === undefined
            ? undefined
            : {
                nodeId: 'b',
                proxyAddress: `127.0.0.1:${node.primary}`,
                instance: undefined,
                region: '',
                hostname: 'b',
              },
      },
      databases: [['app.db', { position, ends: [], freshAtMs: Infinity }]],
    });
  });
  return { child, port };
}

async function listening(port: number): Promise<void> {
  for (let i = 0; i < 200; i++) {
    const socket = connect(port, '127.0.0.1');
    const isUp = await Promise.race([
      once(socket, 'connect').then(() => true),
      once(socket, 'error').then(() => false),
    ]).catch(() => false);
    socket.destroy();
    if (isUp) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`nobody listens on ${port}`);
}

const onPath = (program: string): boolean => {
  try {
    execFileSync('sh', ['-c', `command -v ${program}`], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};

async function startNginx(dir: string, target: number): Promise<{ child: ChildProcess; port: number }> {
  const port = await freePort();
  const conf = join(dir, 'nginx.conf');
  writeFileSync(
    conf,
    `daemon off; master_process off; pid ${dir}/nginx.pid; error_log ${dir}/error.log; events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000000; upstream app { server 127.0.0.1:${target}; keepalive 128; keepalive_requests 1000000000; }
server { listen 127.0.0.1:${port} backlog=4096; location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; } } }\n`,
  );
  const child = spawn('nginx', ['-p', dir, '-c', conf], { stdio: 'inherit' });
  await listening(port);
  return { child, port };
}

async function startLiteFs(dir: string, target: number): Promise<{ child: ChildProcess; port: number }> {
  const [port, http] = [await freePort(), await freePort()];
  const mount = join(dir, 'litefs');
  mkdirSync(mount, { recursive: true });
  const conf = join(dir, 'litefs.yml');
  writeFileSync(
    conf,
    `fuse: {dir: ${mount}}\ndata: {dir: ${join(dir, 'litefs-data')}}\nhttp: {addr: "127.0.0.1:${http}"}\nproxy: {addr: "127.0.0.1:${port}", target: "127.0.0.1:${target}", db: app.db}\nlease: {type: static, advertise-url: "http://127.0.0.1:${http}", candidate: true}\n`,
  );
  const child = spawn('litefs', ['mount', '-config', conf], { stdio: 'ignore' });
  await listening(port);
  return { child, port };
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;

/** Requests per second and what the proxy adds; forwarded writes; the memory of idle upgraded connections. */
export async function benchProxy(rounds: number, seconds: number): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), 'kitefs-bench-'));
  const children: ChildProcess[] = [];
  try {
    const target = await freePort();
    children.push(spawn(process.execPath, [CLIENT, 'serve', String(target)], { stdio: 'inherit' }));
    await listening(target);
    // One on whose node nothing is written while it is read, and one that has to ask for each answer (docs/decisions/036).
    const quiet = await startOurs(target, { nodeId: 'c', primary: undefined }, ChangeMark.create());
    const primary = await startOurs(target, { nodeId: 'b', primary: undefined });
    const replica = await startOurs(target, { nodeId: 'a', primary: primary.port });
    children.push(quiet.child, primary.child, replica.child);
    const ways: Way[] = [
      { name: 'directly', port: target, pid: undefined },
      { name: 'KiteFS', port: quiet.port, pid: quiet.child.pid },
      { name: 'KiteFS, always written', port: primary.port, pid: primary.child.pid },
    ];
    if (onPath('nginx')) {
      const nginx = await startNginx(dir, target);
      children.push(nginx.child);
      ways.push({ name: 'nginx', port: nginx.port, pid: nginx.child.pid });
    }
    if (hasLiteFs) {
      const litefs = await startLiteFs(dir, target);
      children.push(litefs.child);
      ways.push({ name: 'LiteFS', port: litefs.port, pid: litefs.child.pid });
    }
    const many = new Map<string, Load[]>();
    const one = new Map<string, Load[]>();
    const cpu = new Map<string, number[]>();
    for (let round = 0; round < rounds; round++) {
      for (const { name, port, pid } of ways) {
        const before = pid === undefined ? 0 : cpuMs(pid);
        const all = await load(port, 'GET', CONNECTIONS, seconds);
        const after = pid === undefined ? 0 : cpuMs(pid);
        many.set(name, [...(many.get(name) ?? []), all]);
        cpu.set(name, [...(cpu.get(name) ?? []), ((after - before) * 1000) / (all.perSecond * seconds)]);
        one.set(name, [...(one.get(name) ?? []), await load(port, 'GET', 1, 1)]);
      }
    }
    const of = (of_: Map<string, Load[]>, name: string, what: keyof Load): number =>
      median((of_.get(name) ?? []).map((entry) => entry[what]));
    const litefs = of(many, 'LiteFS', 'perSecond');
    console.log(`\nreads through the proxy (${CONNECTIONS} connections; one connection: p50)`);
    console.table(
      ways.map(({ name }) => ({
        way: name,
        'requests/s': Math.round(of(many, name, 'perSecond')),
        'p99 ms': of(many, name, 'p99').toFixed(1),
        'CPU us/request': name === 'directly' ? '' : Math.round(median(cpu.get(name) ?? [])),
        'one: p50 ms': of(one, name, 'p50').toFixed(3),
        'adds ms': (of(one, name, 'p50') - of(one, 'directly', 'p50')).toFixed(3),
        'of LiteFS': litefs > 0 ? `${Math.round((100 * of(many, name, 'perSecond')) / litefs)} %` : '',
        aim: name === 'KiteFS' ? '80 % of LiteFS, adds < 0.3 ms' : '',
      })),
    );

    // As the ways before: with code that has run often.
    for (const { port } of [primary, replica]) await load(port, 'POST', CONNECTIONS, seconds);
    const writes: { readonly here: number; readonly there: number }[] = [];
    for (let round = 0; round < rounds; round++) {
      const { p50: here } = await load(primary.port, 'POST', 1, 1);
      writes.push({ here, there: (await load(replica.port, 'POST', 1, 1)).p50 });
    }
    const here = median(writes.map((round) => round.here));
    const there = median(writes.map((round) => round.there));
    console.log('\na write, one connection, p50 (its token included)');
    console.table([
      { at: 'the primary', 'p50 ms': here.toFixed(3), aim: '' },
      { at: 'a replica', 'p50 ms': there.toFixed(3), aim: `less than ${(here + 1).toFixed(3)}` },
    ]);
    // Their load is over.
    quiet.child.disconnect();
    primary.child.disconnect();
    await benchSockets();
  } finally {
    // Proxies leave that signal to their daemons, and end with the channel to them.
    for (const child of children) if (child.connected) child.disconnect();
    for (const child of children) child.kill('SIGTERM');
    for (const child of children) {
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    }
    rmSync(dir, { recursive: true, force: true });
  }
}

/** How many connections a process may have at two descriptors each, once it is allowed what can be had. */
function connectionsOf({ pid }: ChildProcess): number {
  const wanted = 2 * SOCKETS + 100;
  try {
    // Beyond the hard limit only the mighty come.
    execFileSync('prlimit', ['--pid', String(pid), `--nofile=${wanted}:${wanted}`], { stdio: 'ignore' });
  } catch {
    // Node has taken the hard limit already.
  }
  const limit = /Max open files\s+(\d+)/.exec(readFileSync(`/proc/${pid}/limits`, 'utf8'))?.[1];
  return Math.min(SOCKETS, Math.floor((Number(limit) - 50) / 2));
}

const descriptorsOf = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

/** What idle WebSockets take in the proxy's process: their clients and the application are others. */
export async function benchSockets(): Promise<void> {
  const target = await freePort();
  const children: ChildProcess[] = [];
  try {
    const app = spawn(process.execPath, [CLIENT, 'accept', String(target)], { stdio: 'inherit' });
    children.push(app);
    await listening(target);
    const ours = await startOurs(target, { nodeId: 'c', primary: undefined });
    children.push(ours.child);
    const count = Math.min(...children.map(connectionsOf));
    const pid = ours.child.pid ?? 0;
    const [idle, before] = [rssOf(pid), descriptorsOf(pid)];
    const holder = spawn(process.execPath, [CLIENT, 'hold', String(ours.port), String(count)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    children.push(holder);
    await once(holder.stdout, 'data');
    const open = rssOf(pid);
    await new Promise((resolve) => setTimeout(resolve, 5000));
    const each = ((rssOf(pid) - idle) * 1024) / count;
    console.log(`\nidle WebSockets, each after a message both ways`);
    console.table([
      {
        connections: count,
        'resident MB': Math.round(rssOf(pid)),
        'at once MB': Math.round(open),
        'before MB': Math.round(idle),
        'KB each': each.toFixed(1),
        'descriptors each': ((descriptorsOf(pid) - before) / count).toFixed(2),
        '10 000 MB': Math.round(idle + (each * 10_000) / 1024),
        aim: 'less than 300 MB',
      },
    ]);
  } finally {
    for (const child of children) {
      if (child.connected) child.disconnect();
      child.kill('SIGTERM');
    }
    for (const child of children) {
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    }
  }
}
