import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, waitFor } from './cluster.js';

/** What `npm test` installs (test/tools/install.mjs). */
const BINARY = join(process.cwd(), '.cache/bin/minio');

/** A real MinIO on this machine, with a data directory that stays when it is killed. */
export class TestMinio {
  readonly dir = mkdtempSync(join(tmpdir(), 'kitefs-minio-'));
  /** What a client needs in its environment. */
  readonly env = {
    AWS_ACCESS_KEY_ID: 'kitefs-test',
    AWS_SECRET_ACCESS_KEY: 'kitefs-test-secret',
    AWS_REGION: 'us-east-1',
  };
  #child: ChildProcess | undefined;

  private constructor(
    readonly port: number,
    readonly certs: string | undefined,
  ) {}

  /** Starts one with these buckets, whose names have at least 3 letters; over TLS when there is a folder with a certificate. */
  static async start(buckets: readonly string[], certs?: string): Promise<TestMinio> {
    if (!existsSync(BINARY))
      throw new Error(
        `these tests need MinIO at ${BINARY}: \`npm test\` installs it (test/tools/install.mjs)`,
      );
    const minio = new TestMinio(await freePort(), certs);
    // A folder of its data directory is a bucket to it.
    for (const bucket of buckets) mkdirSync(join(minio.dir, 'data', bucket), { recursive: true });
    await minio.up();
    return minio;
  }

  get endpoint(): string {
    return `${this.certs === undefined ? 'http' : 'https'}://127.0.0.1:${this.port}`;
  }

  /** Starts it (again) and waits until it answers. */
  async up(): Promise<void> {
    const log = openSync(join(this.dir, 'log'), 'a');
    const args = ['server', '--quiet', join(this.dir, 'data'), '--address', `127.0.0.1:${this.port}`];
    if (this.certs !== undefined) args.push('--certs-dir', this.certs);
    const child = spawn(BINARY, args, {
      stdio: ['ignore', log, log],
      env: {
        ...process.env,
        MINIO_ROOT_USER: this.env.AWS_ACCESS_KEY_ID,
        MINIO_ROOT_PASSWORD: this.env.AWS_SECRET_ACCESS_KEY,
        MINIO_BROWSER: 'off',
        MINIO_UPDATE: 'off',
      },
    });
    closeSync(log);
    process.once('exit', () => child.kill('SIGKILL'));
    this.#child = child;
    await waitFor(
      () => `MinIO to start; its log ends:\n${readFileSync(join(this.dir, 'log'), 'utf8').slice(-2000)}`,
      async () => {
        if (child.exitCode !== null)
          throw new Error(readFileSync(join(this.dir, 'log'), 'utf8').slice(-2000));
        return await isReady(`${this.endpoint}/minio/health/ready`);
      },
    );
  }

  signal(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  /** kill -9; what was stored stays. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  async stop(): Promise<void> {
    await this.kill();
    if (!process.env['KEEP']) rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Whether it answers, whatever its certificate is. */
async function isReady(url: string): Promise<boolean> {
  return await new Promise((resolve) => {
    const { get } = url.startsWith('https') ? https : http;
    get(url, { rejectUnauthorized: false }, (answer) => {
      answer.resume();
      resolve(answer.statusCode === 200);
    }).on('error', () => resolve(false));
  });
}
