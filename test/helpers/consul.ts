import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  closeSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, run, waitFor } from './cluster.js';

/** What `npm test` installs (test/tools/install.mjs). */
const BINARY = join(process.cwd(), '.cache/bin/consul');

export interface ConsulOptions {
  /** Serve HTTPS too; `config` names the certificates. */
  readonly tls?: boolean;
  /** More of the agent's configuration. */
  readonly config?: Record<string, unknown>;
  /** For requests of the test itself. */
  readonly token?: string;
}

/** A real Consul: one server with a data directory, so that it keeps what it has when it is started again. */
export class TestConsul {
  readonly dir = mkdtempSync(join(tmpdir(), 'kitefs-consul-'));
  readonly #options: ConsulOptions;
  #process: ChildProcess | undefined;

  private constructor(
    readonly httpPort: number,
    readonly httpsPort: number,
    options: ConsulOptions,
  ) {
    this.#options = options;
  }

  static async start(options: ConsulOptions = {}): Promise<TestConsul> {
    if (!existsSync(BINARY)) {
      throw new Error(
        `these tests need Consul at ${BINARY}: \`npm test\` installs it (test/tools/install.mjs)`,
      );
    }
    const [http, https, server, lan] = [
      await freePort(),
      await freePort(),
      await freePort(),
      await freePort(),
    ];
    const consul = new TestConsul(http, https, options);
    const config = {
      server: true,
      bootstrap_expect: 1,
      bind_addr: '127.0.0.1',
      data_dir: join(consul.dir, 'data'),
      disable_update_check: true,
      performance: { raft_multiplier: 1 },
      ports: {
        http,
        https: options.tls ? https : -1,
        server,
        serf_lan: lan,
        serf_wan: -1,
        dns: -1,
        grpc: -1,
      },
      ...options.config,
    };
    writeFileSync(join(consul.dir, 'consul.json'), JSON.stringify(config));
    await consul.up();
    return consul;
  }

  get url(): string {
    return `http://127.0.0.1:${this.httpPort}`;
  }

  /** Starts it (again) and waits until it has a leader and takes writes. */
  async up(): Promise<void> {
    mkdirSync(join(this.dir, 'data'), { recursive: true });
    const log = openSync(join(this.dir, 'log'), 'a');
    const args = ['agent', '-config-file', join(this.dir, 'consul.json')];
    const child = spawn(BINARY, args, { stdio: ['ignore', log, log] });
    closeSync(log);
    process.once('exit', () => child.kill('SIGKILL'));
    this.#process = child;
    await waitFor(
      () => `Consul to start; its log ends:\n${readFileSync(join(this.dir, 'log'), 'utf8').slice(-2000)}`,
      async () => {
        if (child.exitCode !== null)
          throw new Error(readFileSync(join(this.dir, 'log'), 'utf8').slice(-2000));
        return await this.put('probe', 'x').then(
          () => true,
          () => false,
        );
      },
    );
  }

  signal(signal: NodeJS.Signals): void {
    this.#process?.kill(signal);
  }

  /** kill -9, as a machine that fails; what was committed stays in its data directory. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  /** Loses everything, as a Consul that is set up anew. Stopped afterwards. */
  async wipe(): Promise<void> {
    await this.kill();
    rmSync(join(this.dir, 'data'), { recursive: true, force: true });
  }

  async request(method: string, path: string, body?: string): Promise<string> {
    const token = this.#options.token;
    const answer = await fetch(`${this.url}${path}`, {
      method,
      signal: AbortSignal.timeout(5000),
      ...(body !== undefined && { body }),
      ...(token !== undefined && { headers: { 'x-consul-token': token } }),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
    return text;
  }

  async put(key: string, value: string): Promise<void> {
    await this.request('PUT', `/v1/kv/${key}`, value);
  }

  async get(key: string): Promise<string> {
    return await this.request('GET', `/v1/kv/${key}?raw`);
  }

  async delete(key: string, recurse = false): Promise<void> {
    await this.request('DELETE', `/v1/kv/${key}${recurse ? '?recurse' : ''}`);
  }

  async saveSnapshot(): Promise<string> {
    const file = join(this.dir, 'snapshot');
    await run(BINARY, ['snapshot', 'save', '-http-addr', this.url, file]);
    return file;
  }

  async restoreSnapshot(file: string): Promise<void> {
    await run(BINARY, ['snapshot', 'restore', '-http-addr', this.url, file]);
  }

  async stop(): Promise<void> {
    await this.kill();
    if (!process.env['KEEP']) rmSync(this.dir, { recursive: true, force: true });
  }
}
