import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { run, waitFor } from '../helpers/cluster.js';

const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** An application of its own process whose connection stays open between statements. */
export class Connection {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #ended: Promise<unknown>;

  private constructor(path: string) {
    this.#child = spawn(process.execPath, [here('connection.mjs'), path], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#ended = once(this.#child, 'close');
    const lines: Interface = createInterface({ input: this.#child.stdout! });
    this.#lines = lines[Symbol.asyncIterator]();
  }

  /** Opens a database; `statements` are run at once. */
  static async open(path: string, ...statements: string[]): Promise<Connection> {
    const connection = new Connection(path);
    await connection.#answer();
    for (const sql of statements) await connection.run(sql);
    return connection;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Runs one statement; its rows in the form of the sqlite3 shell. Rejects with SQLite's error. */
  async run(sql: string): Promise<string> {
    this.#child.stdin?.write(`${JSON.stringify(sql)}\n`);
    return await this.#answer();
  }

  /** Closes in order. */
  async close(): Promise<void> {
    this.#child.stdin?.end();
    await this.#ended;
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended;
  }

  async #answer(): Promise<string> {
    const line = await this.#lines.next();
    if (line.done === true) throw new Error('the application has ended');
    const { rows, error } = JSON.parse(line.value) as { rows?: unknown[][]; error?: string };
    if (error !== undefined) throw new Error(error);
    return (rows ?? []).map((row) => row.join('|')).join('\n');
  }
}

/** Where stop-at.c ends or stops a process. */
export interface StopPoint {
  readonly at: 'commit-frame' | 'wal-frame' | 'unlink' | 'truncate' | 'zero-header';
  readonly file: string;
}

/** Builds stop-at.c in a folder of its own; returns the library. */
async function buildLibrary(): Promise<string> {
  const built = join(mkdtempSync(join(tmpdir(), 'kitefs-traps-')), 'stop-at.so');
  await run('cc', ['-shared', '-fPIC', '-Wall', '-o', built, here('stop-at.c'), '-ldl']);
  return built;
}

/** The sqlite3 shell, with a signal to itself at an exact point of what it does. */
export class StoppedWriter {
  readonly #child: ChildProcess;
  #output = '';
  readonly ended: Promise<unknown>;
  readonly #exited: Promise<unknown>;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#exited = once(child, 'exit');
    for (const stream of [child.stdout, child.stderr]) {
      stream?.on('data', (text: Buffer) => (this.#output += text.toString()));
    }
    this.ended = once(child, 'close');
  }

  static async #start(
    path: string,
    sql: string[],
    point: StopPoint,
    signal: string,
    held = false,
  ): Promise<StoppedWriter> {
    const library = await buildLibrary();
    const env = {
      ...process.env,
      LD_PRELOAD: library,
      STOP_AT: point.at,
      STOP_FILE: point.file,
      STOP_SIGNAL: signal,
      ...(held && { STOP_HOLD: '1' }),
    };
    const args = ['-bail', '-cmd', '.timeout 20000', path, sql.join(';\n')];
    const child = spawn('sqlite3', args, { env, stdio: ['ignore', 'pipe', 'pipe', 'pipe'] });
    child.once('close', () => rmSync(dirname(library), { recursive: true, force: true }));
    return new StoppedWriter(child);
  }

  /**
   * Runs SQL until the point, where the process is killed; resolves when it is gone. What it has open stays so, in a
   * child that it leaves behind, until what this returns is called.
   */
  static async killed(path: string, sql: string[], point: StopPoint): Promise<() => Promise<void>> {
    const writer = await StoppedWriter.#start(path, sql, point, 'KILL', true);
    await writer.#exited;
    if (writer.#child.signalCode !== 'SIGKILL') throw new Error(`it was not killed: ${writer.#output}`);
    return async () => {
      writer.#child.stdio[3]?.destroy();
      await writer.ended;
    };
  }

  /** Runs SQL until the point, where the process stops until `continue`. */
  static async stopped(path: string, sql: string[], point: StopPoint): Promise<StoppedWriter> {
    const writer = await StoppedWriter.#start(path, sql, point, 'STOP');
    await waitFor(
      () => `the writer to stop: ${writer.#output}`,
      () => {
        if (writer.#child.exitCode !== null) throw new Error(`it did not stop: ${writer.#output}`);
        const stat = readFileSync(`/proc/${writer.#child.pid}/stat`, 'utf8');
        return stat.slice(stat.lastIndexOf(')') + 2).startsWith('T');
      },
    );
    return writer;
  }

  /** Lets it go on to its end; returns its exit code and what it said. */
  async continue(): Promise<{ code: number | null; output: string }> {
    this.#child.kill('SIGCONT');
    await this.ended;
    return { code: this.#child.exitCode, output: this.#output.trim() };
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.ended;
  }
}
