import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import type { NodeStatus } from '../../src/observability/node-status.js';
import type { Place } from './network.js';

/**
 * Real daemons for tests: a TestCluster is a folder with a lease file and some TestNodes, each a
 * `kitefs mount` process of the built command. Tests never touch a mount themselves: everything that
 * goes through one is done by child processes (DESIGN §1.4), each with a limit.
 */

const CLI = process.env['TEST_KITEFS_CLI'] ?? join(process.cwd(), 'dist/cli/main.js');

const DUMP_PAGES = join(process.cwd(), 'test/helpers/dump-pages.mjs');

/** How long anything may take that is waited for: generous, because a wait ends as soon as it can. */
const LIMIT_MS = 60_000;

/** Daemons that run: ended with this process, however it ends, so that a failed benchmark leaves no mount. */
const children = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of children) child.kill('SIGTERM');
});

export interface NodeOptions {
  driver?: 'kernel' | 'fuse-native';
  candidate?: boolean;
  /** In another network namespace; the other nodes must be in some too. */
  place?: Place;
  /** Other than the cluster's. */
  ttl?: string;
  /** More of the daemon's environment. */
  env?: NodeJS.ProcessEnv;
  /** More configuration, merged section by section. */
  config?: Record<string, Record<string, unknown> | unknown[]>;
}

export interface ClusterOptions extends NodeOptions {
  nodes?: number;
}

export class TestCluster {
  readonly dir = mkdtempSync(join(tmpdir(), 'kitefs-test-'));
  readonly nodes: TestNode[] = [];
  readonly #ttl: string;

  private constructor(options: ClusterOptions) {
    this.#ttl = options.ttl ?? '5s';
  }

  /** Starts the nodes one after the other, so that the first is the primary. */
  static async start(options: ClusterOptions = {}): Promise<TestCluster> {
    const cluster = new TestCluster(options);
    try {
      for (let i = 0; i < (options.nodes ?? 2); i += 1) await cluster.add(options);
    } catch (error) {
      await cluster.stop();
      throw error;
    }
    return cluster;
  }

  /** Makes and starts one more node. */
  async add(options: NodeOptions = {}): Promise<TestNode> {
    const node = await this.prepare(options);
    await node.start();
    return node;
  }

  /** Makes a node's folder and configuration, without starting it. */
  async prepare(options: NodeOptions = {}): Promise<TestNode> {
    const id = `node${this.nodes.length + 1}`;
    const node = new TestNode(id, join(this.dir, id), await freePort(), await freePort(), options.place);
    node.configure(join(this.dir, 'lease.db'), options.ttl ?? this.#ttl, options);
    this.nodes.push(node);
    return node;
  }

  /** Node by number, from 1. */
  node(number: number): TestNode {
    const node = this.nodes[number - 1];
    if (!node) throw new Error(`no node ${number}`);
    return node;
  }

  /** The node that says it is primary; waits until there is one. */
  async primary(limitMs = LIMIT_MS): Promise<TestNode> {
    let found: TestNode | undefined;
    await waitFor(
      'a primary',
      async () => {
        for (const node of this.nodes) {
          if (!node.running) continue;
          const status = await node.status().catch(() => undefined);
          if (status?.role === 'primary') found = node;
        }
        return found !== undefined;
      },
      limitMs,
    );
    return found as TestNode;
  }

  /** Waits until each running node has applied what the primary has committed of a database. */
  async caughtUp(name: string, limitMs = LIMIT_MS): Promise<void> {
    const primary = await this.primary(limitMs);
    for (const node of this.nodes) {
      if (node === primary || !node.running) continue;
      let last = '';
      await waitFor(
        () => `${node.id} to have all of ${name}: ${last}`,
        async () => {
          const [theirs, ours] = await Promise.all([primary.database(name), node.database(name)]);
          last = `${theirs?.position} on ${primary.id}, ${ours?.appliedPosition} on ${node.id} ${ours?.error ?? ''}`;
          if (theirs === undefined || theirs.position !== ours?.appliedPosition) return false;
          // The status may be a moment behind a commit that was answered; `-pos` never is.
          const exact = await run('cat', [primary.path(`${name}-pos`)]).catch(() => undefined);
          return exact === theirs.position;
        },
        limitMs,
      );
    }
  }

  /** Fails unless every running node holds the same bytes and SQLite finds them sound. */
  async assertSame(name: string): Promise<void> {
    await this.caughtUp(name);
    const running = this.nodes.filter((node) => node.running);
    const [first, ...others] = await Promise.all(running.map((node) => node.pages(name)));
    for (const [i, other] of others.entries()) {
      if (other !== first) {
        throw new Error(
          `${name} differs between ${running[0]?.id} and ${running[i + 1]?.id}:\n${difference(first ?? '', other)}`,
        );
      }
    }
    for (const node of running) {
      const answer = await node.sql(name, 'PRAGMA integrity_check');
      if (answer !== 'ok') throw new Error(`${name} on ${node.id}: ${answer}`);
    }
  }

  /** Stops all nodes and removes the folder. A failed test's logs are kept when KEEP is set. */
  async stop(): Promise<void> {
    await Promise.allSettled(this.nodes.map((node) => node.stop()));
    const bugs = this.nodes.flatMap((node) =>
      node
        .log()
        .split('\n')
        .filter((line) => line.includes('a bug')),
    );
    for (const node of this.nodes) await node.clear();
    if (process.env['KEEP']) console.log(`kept: ${this.dir}`);
    else rmSync(this.dir, { recursive: true, force: true });
    // Whatever a test asked for: what a node itself takes for a bug is one.
    if (bugs.length > 0) throw new Error(bugs.join('\n'));
  }
}

export class TestNode {
  readonly mountDir: string;
  readonly dataDir: string;
  readonly configPath: string;
  readonly logPath: string;
  readonly #env: NodeJS.ProcessEnv;
  #process: ChildProcess | undefined;

  constructor(
    readonly id: string,
    readonly dir: string,
    readonly httpPort: number,
    readonly peerPort: number,
    readonly place: Place = { address: '127.0.0.1', namespace: undefined },
  ) {
    this.mountDir = join(dir, 'mnt');
    this.dataDir = join(dir, 'data');
    this.configPath = join(dir, 'kitefs.yml');
    this.logPath = join(dir, 'log');
    this.#env = { ...process.env, NODE_ENV: 'production' };
    mkdirSync(this.mountDir, { recursive: true });
  }

  get running(): boolean {
    return (
      this.#process !== undefined && this.#process.exitCode === null && this.#process.signalCode === null
    );
  }

  get pid(): number {
    if (this.#process?.pid === undefined) throw new Error(`${this.id} does not run`);
    return this.#process.pid;
  }

  configure(leasePath: string, ttl: string, options: NodeOptions): void {
    const config: Record<string, Record<string, unknown> | unknown[]> = {
      fuse: { dir: this.mountDir, driver: options.driver ?? 'kernel' },
      data: { dir: this.dataDir },
      http: { addr: `${this.place.address}:${this.httpPort}` },
      peer: { addr: `${this.place.address}:${this.peerPort}` },
      node: { id: this.id },
      lease: { type: 'local', path: leasePath, ttl, candidate: options.candidate ?? true },
      log: { level: 'debug' },
    };
    for (const [section, keys] of Object.entries(options.config ?? {})) {
      config[section] = Array.isArray(keys) ? keys : Object.assign({}, config[section], keys);
    }
    writeFileSync(this.configPath, stringify(config));
    Object.assign(this.#env, options.env);
  }

  /** Starts `kitefs mount` and waits until it is ready to be used. */
  async start(...command: string[]): Promise<void> {
    this.spawn(...command);
    await this.ready();
  }

  /** Starts `kitefs mount` and waits for nothing. */
  spawn(...command: string[]): ChildProcess {
    const args = [
      CLI,
      'mount',
      '--config',
      this.configPath,
      ...(command.length > 0 ? ['--', ...command] : []),
    ];
    const { namespace } = this.place;
    // Not `ip netns exec`, which would put its mount where nobody else sees it.
    const inside = namespace === undefined ? [] : ['nsenter', `--net=/run/netns/${namespace}`];
    const [program = '', ...rest] = [...inside, process.execPath, ...args];
    const child = spawn(program, rest, { env: this.#env, stdio: ['ignore', 'pipe', 'pipe'] });
    child.stdout.on('data', (text: Buffer) => appendFileSync(this.logPath, text));
    child.stderr.on('data', (text: Buffer) => appendFileSync(this.logPath, text));
    children.add(child);
    child.once('exit', () => children.delete(child));
    this.#process = child;
    return child;
  }

  async ready(limitMs = LIMIT_MS): Promise<void> {
    await waitFor(
      () => `${this.id} to be ready; its log ends:\n${this.logTail()}`,
      async () => {
        if (!this.running) throw new Error(`${this.id} ended; its log:\n${this.logTail()}`);
        const answer = await fetch(`http://${this.place.address}:${this.httpPort}/ready`).catch(
          () => undefined,
        );
        return answer?.status === 200;
      },
      limitMs,
    );
  }

  logTail(lines = 30): string {
    return existsSync(this.logPath)
      ? readFileSync(this.logPath, 'utf8').split('\n').slice(-lines).join('\n')
      : '(none)';
  }

  log(): string {
    return existsSync(this.logPath) ? readFileSync(this.logPath, 'utf8') : '';
  }

  /** SIGTERM and wait for the end. */
  async stop(): Promise<number | null> {
    return await this.end('SIGTERM');
  }

  /** kill -9 and wait for the end. */
  async kill(): Promise<void> {
    await this.end('SIGKILL');
  }

  async end(signal: NodeJS.Signals): Promise<number | null> {
    const child = this.#process;
    if (!child || !this.running) return child?.exitCode ?? null;
    const ended = once(child, 'exit');
    child.kill(signal);
    const late = setTimeout(() => {
      appendFileSync(this.logPath, `\n[test] ${signal} did not end ${this.id}: kill -9\n`);
      child.kill('SIGKILL');
    }, LIMIT_MS);
    await ended;
    clearTimeout(late);
    return child.exitCode;
  }

  /** Clears what a killed daemon leaves mounted (its guard does the same, a moment later). */
  async clear(): Promise<void> {
    await run('umount', ['-l', this.mountDir]).catch(() => undefined);
  }

  async applierPid(): Promise<number> {
    const lines = (await run('ps', ['-o', 'pid=,args=', '--ppid', String(this.pid)])).split('\n');
    const line = lines.find((text) => text.includes('applier'));
    if (!line) throw new Error(`no applier among:\n${lines.join('\n')}`);
    return Number.parseInt(line, 10);
  }

  async status(): Promise<NodeStatus> {
    const answer = await fetch(`http://${this.place.address}:${this.httpPort}/status`, {
      signal: AbortSignal.timeout(10_000),
    });
    if (!answer.ok) throw new Error(`${this.id} /status: ${answer.status} ${await answer.text()}`);
    return (await answer.json()) as NodeStatus;
  }

  async database(name: string): Promise<NodeStatus['databases'][number] | undefined> {
    return (await this.status()).databases.find((database) => database.name === name);
  }

  /** A value of /metrics by its full name, labels and all: `kitefs_compensated_count{db="app.db"}`; 0 when it is not there. */
  async metric(name: string): Promise<number> {
    const answer = await fetch(`http://${this.place.address}:${this.httpPort}/metrics`);
    const line = (await answer.text()).split('\n').find((text) => text.startsWith(`${name} `));
    return Number(line?.slice(name.length + 1) ?? 0);
  }

  path(name: string): string {
    return join(this.mountDir, name);
  }

  /** Runs SQL by the sqlite3 shell on this node's mount; returns what it prints, trimmed. */
  async sql(name: string, ...statements: string[]): Promise<string> {
    return await sqlite(this.path(name), ...statements);
  }

  /** The bytes of a database as SQLite reads them: a line per page; journal-mode bytes masked (DESIGN §6). */
  async pages(name: string): Promise<string> {
    return await run(process.execPath, [DUMP_PAGES, this.path(name)]);
  }
}

/** Runs SQL by the sqlite3 shell on any path. */
export async function sqlite(path: string, ...statements: string[]): Promise<string> {
  return await run('sqlite3', ['-bail', '-cmd', '.timeout 20000', path, statements.join(';\n')]);
}

/** Runs a command to its end; returns its standard output, trimmed; rejects with its standard error. */
export async function run(
  command: string,
  args: readonly string[],
  options: { cwd?: string; limitMs?: number } = {},
): Promise<string> {
  return await new Promise((resolve, reject) => {
    execFile(
      command,
      args,
      { cwd: options.cwd, timeout: options.limitMs ?? LIMIT_MS, killSignal: 'SIGKILL', maxBuffer: 1 << 28 },
      (error, stdout, stderr) => {
        if (error)
          reject(new Error(`${command} ${args.join(' ').slice(0, 300)}: ${stderr.trim() || error.message}`));
        else resolve(stdout.trim());
      },
    );
  });
}

/** Waits until `condition` holds; fails with `what` after the limit. */
export async function waitFor(
  what: string | (() => string),
  condition: () => Promise<boolean> | boolean,
  limitMs = LIMIT_MS,
): Promise<void> {
  const deadline = performance.now() + limitMs;
  while (!(await condition())) {
    if (performance.now() > deadline) {
      throw new Error(`waited ${limitMs} ms for ${typeof what === 'string' ? what : what()}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A port that nobody listens on now. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = (nextPort = nextPort + 1 < LAST_PORT ? nextPort + 1 : FIRST_PORT);
    const server = createServer();
    server.listen(port, '127.0.0.1');
    const isFree = await once(server, 'listening').then(
      () => true,
      () => false,
    );
    if (!isFree) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
}

/**
 * Below those that the system gives to outgoing connections, which could have one by the time when it is used; each
 * process of the tests begins elsewhere.
 */
const FIRST_PORT = 11_000;
const LAST_PORT = 32_000;
let nextPort = FIRST_PORT + ((process.pid * 211) % (LAST_PORT - FIRST_PORT));

function difference(a: string, b: string): string {
  const [left, right] = [a.split('\n'), b.split('\n')];
  const lines = [`${left.length} and ${right.length} pages`];
  for (let i = 0; i < Math.max(left.length, right.length) && lines.length < 6; i += 1) {
    if (left[i] !== right[i]) lines.push(`- ${left[i]?.slice(0, 120)}`, `+ ${right[i]?.slice(0, 120)}`);
  }
  return lines.join('\n');
}
