import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

/** What `npm test` installs (test/tools/install.mjs). */
const BINARY = join(process.cwd(), '.cache/bin/litestream');

/** It fails when it cannot add these, and needs them for nothing here. */
function environment(env: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const all = { ...process.env, ...env };
  delete all['AWS_CA_BUNDLE'];
  return all;
}

/** Where the real program is. */
export function litestreamProgram(): string {
  if (!existsSync(BINARY))
    throw new Error(
      `these tests need Litestream at ${BINARY}: \`npm test\` installs it (test/tools/install.mjs)`,
    );
  return BINARY;
}

/** The real `litestream replicate`, until it is stopped. */
export class Litestream {
  readonly #child: ChildProcess;
  readonly #log: string;

  /** Replicates one database as often as it can; `replica` are its settings. */
  constructor(
    dir: string,
    database: string,
    replica: object,
    options: { env?: NodeJS.ProcessEnv; levels?: object[] } = {},
  ) {
    const config = {
      levels: options.levels ?? [{ interval: '1s' }],
      dbs: [
        {
          path: database,
          'monitor-interval': '50ms',
          replica: { 'sync-interval': '50ms', ...replica },
        },
      ],
    };
    const file = join(dir, 'litestream.yml');
    // YAML takes JSON.
    writeFileSync(file, JSON.stringify(config));
    this.#log = join(dir, 'litestream.log');
    const log = openSync(this.#log, 'a');
    this.#child = spawn(litestreamProgram(), ['replicate', '-config', file], {
      stdio: ['ignore', log, log],
      env: environment(options.env),
    });
    closeSync(log);
    process.once('exit', () => this.#child.kill('SIGKILL'));
  }

  get log(): string {
    return readFileSync(this.#log, 'utf8');
  }

  /** Ends it; it ships what is left first. */
  async stop(): Promise<void> {
    if (this.#child.exitCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    await ended;
  }
}

/** Ships all of a database, and ends. */
export async function shipOnce(
  dir: string,
  database: string,
  replica: object,
  env: NodeJS.ProcessEnv,
): Promise<void> {
  const file = join(dir, 'once.yml');
  writeFileSync(file, JSON.stringify({ dbs: [{ path: database, replica }] }));
  await promisify(execFile)(litestreamProgram(), ['replicate', '-once', '-config', file], {
    env: environment(env),
  });
}

/** The real `litestream restore`. */
export async function litestreamRestore(
  url: string,
  output: string,
  flags: readonly string[] = [],
  env: NodeJS.ProcessEnv = {},
): Promise<void> {
  await promisify(execFile)(litestreamProgram(), ['restore', '-o', output, ...flags, url], {
    env: environment(env),
  });
}
