import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { loadConfig } from '../config/load.js';
import { sampleConfig } from '../config/sample.js';
import { KiteError } from '../errors.js';
import type { NodeStatus } from '../observability/node-status.js';
import { print } from './output.js';

const READY_WITHIN_MS = 60_000;
const STOP_WITHIN_MS = 20_000;
/** A node that ends sooner than this after its start will most likely do so again. */
const SHORT_LIFE_MS = 3000;
const SHORT_LIVES_MAX = 3;
const LOG_LINES_SHOWN = 8;

const MAIN = fileURLToPath(new URL('./main.js', import.meta.url));

/** One `kitefs mount` of the demo: its files under the demo's folder, and its process, started again when it dies. */
export class DemoNode {
  readonly name: string;
  readonly mountDir: string;
  readonly httpPort: number;
  readonly #configFile: string;
  readonly #logFile: string;
  #child: ChildProcess | undefined;
  /** It served once and is not asked to stop: when it ends, it is started again. */
  #serving = false;
  #shortLives = 0;

  private constructor(dir: string, name: string, httpPort: number) {
    this.name = name;
    this.mountDir = join(dir, name);
    this.httpPort = httpPort;
    this.#configFile = configFileOf(dir, name);
    this.#logFile = join(dir, 'logs', `${name}.log`);
  }

  /** Writes the node's kitefs.yml, or takes the one that is there, with other ports where its own are in use. */
  static async prepare(dir: string, number: number): Promise<DemoNode> {
    const name = `node${number}`;
    const file = configFileOf(dir, name);
    for (const folder of [join(dir, 'config', name), join(dir, 'data', name), join(dir, 'logs')])
      mkdirSync(folder, { recursive: true });
    if (!existsSync(file)) writeFileSync(file, sampleConfig(HEADING, await valuesOf(dir, name, number)));
    let text = readFileSync(file, 'utf8');
    const { http, peer } = loadConfig({ file, environment: {} }).config;
    for (const { port } of [http.addr, peer.addr]) {
      if (await isFree(port)) continue;
      const other = await freePort();
      print(`${name}: port ${port} is in use, taking ${other}`);
      text = text.replaceAll(`:${port}"`, `:${other}"`);
    }
    writeFileSync(file, text);
    const { config } = loadConfig({ file, environment: {} });
    return new DemoNode(dir, name, config.http.addr.port);
  }

  /** Resolves when the node serves; rejects with the end of its log when it does not. */
  async start(stop: AbortSignal): Promise<void> {
    makeMountPoint(this.mountDir);
    const child = this.#spawn();
    const end = performance.now() + READY_WITHIN_MS;
    while (!stop.aborted && !(await this.status())?.ready) {
      const ended = child.exitCode !== null || child.signalCode !== null;
      if (ended || performance.now() > end) {
        throw new KiteError(
          'ERR_CLI_DEMO',
          `${this.name} ${ended ? 'did not start' : 'is not ready'}; the end of ${this.#logFile}:\n${this.#logTail()}`,
        );
      }
      await delay(50);
    }
    this.#serving = !stop.aborted;
  }

  /** What the node says of itself, or undefined when it does not answer. */
  async status(): Promise<NodeStatus | undefined> {
    try {
      const response = await fetch(`http://127.0.0.1:${this.httpPort}/status`, {
        signal: AbortSignal.timeout(2000),
      });
      return (await response.json()) as NodeStatus;
    } catch {
      return undefined;
    }
  }

  /** Unmounts; leaves only the data. */
  async stop(): Promise<void> {
    this.#serving = false;
    const child = this.#child;
    if (child) {
      const ended = once(child, 'exit');
      const late = setTimeout(() => {
        print(`${this.name} does not stop and is killed; see ${this.#logFile}`);
        child.kill('SIGKILL');
      }, STOP_WITHIN_MS);
      child.kill('SIGTERM');
      await ended;
      clearTimeout(late);
    }
    try {
      rmdirSync(this.mountDir);
    } catch {
      // Still mounted by somebody, or not empty: it is theirs then, and the next start looks at it again.
    }
  }

  #spawn(): ChildProcess {
    const log = openSync(this.#logFile, 'a');
    // Forked with a channel, so that it ends with the demo; in a session of its own, so that Ctrl-C is the demo's.
    const child = fork(MAIN, ['mount', '--config', this.#configFile], {
      detached: true,
      execArgv: [],
      stdio: ['ignore', log, log, 'ipc'],
    });
    closeSync(log);
    this.#child = child;
    const startedAt = performance.now();
    child.once('exit', (code, signal) => {
      this.#child = undefined;
      if (!this.#serving) return;
      this.#shortLives = performance.now() - startedAt < SHORT_LIFE_MS ? this.#shortLives + 1 : 0;
      this.#startAgain(signal ?? `code ${code}`);
    });
    return child;
  }

  #startAgain(how: string): void {
    if (this.#shortLives >= SHORT_LIVES_MAX) {
      print(
        `${this.name} ended again (${how}) and is left alone; the end of ${this.#logFile}:\n${this.#logTail()}`,
      );
      return;
    }
    print(`${this.name} ended (${how}); starting it again`);
    this.#spawn();
  }

  #logTail(): string {
    const lines = readFileSync(this.#logFile, 'utf8').trimEnd().split('\n');
    return lines
      .slice(-LOG_LINES_SHOWN)
      .map((line) => `  ${line}`)
      .join('\n');
  }
}

const HEADING =
  'Written by kitefs demo, which keeps your changes. Lines that begin with # are defaults: a starting point ' +
  'for a kitefs.yml of your own (docs/configuration.md says more).';

const configFileOf = (dir: string, name: string): string => join(dir, 'config', name, 'kitefs.yml');

async function valuesOf(dir: string, name: string, number: number): Promise<Record<string, string>> {
  return {
    'fuse.dir': join(dir, name),
    'data.dir': join(dir, 'data', name),
    'http.addr': `127.0.0.1:${await freePort()}`,
    'peer.addr': `127.0.0.1:${await freePort()}`,
    'node.id': name,
    'node.priority': String(100 - number),
    'lease.type': 'local',
    'lease.path': join(dir, 'data', 'lease.db'),
    'log.format': 'text',
  };
}

/** Chosen in this process and perhaps not listened on yet. */
const chosenPorts = new Set<number>();

/** A port that nobody listens on now, and that no other node of this demo was given. */
async function freePort(): Promise<number> {
  let port = 0;
  while (port === 0 || chosenPorts.has(port)) port = (await tryPort(0)) ?? 0;
  chosenPorts.add(port);
  return port;
}

async function isFree(port: number): Promise<boolean> {
  return (await tryPort(port)) !== undefined;
}

async function tryPort(port: number): Promise<number | undefined> {
  const server = createServer();
  const listening = await new Promise<boolean>((done) => {
    server.once('error', () => done(false));
    server.listen(port, '127.0.0.1', () => done(true));
  });
  if (!listening) return undefined;
  const { port: taken } = server.address() as AddressInfo;
  await new Promise((done) => {
    server.close(done);
  });
  return taken;
}

/** The dead mount of a killed node still stands at its path, and cannot even be looked at; its next start clears it. */
function makeMountPoint(dir: string): void {
  try {
    mkdirSync(dir);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}

const delay = (ms: number): Promise<void> =>
  new Promise((done) => {
    setTimeout(done, ms);
  });
