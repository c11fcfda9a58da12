import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { MountState } from '../../src/fuse/control-block.js';
import type { FuseDriver, MountEvent } from '../../src/fuse/mount.js';

const SERVER = fileURLToPath(new URL('plain-mount-server.mjs', import.meta.url));
const DIST = fileURLToPath(new URL('../../dist', import.meta.url));
const LIMIT_MS = 60_000;

export interface PlainMountOptions {
  readonly driver: FuseDriver;
  readonly state?: MountState;
  readonly otherFiles?: 'refuse' | 'local';
  readonly candidate?: boolean;
  /** Data of a mount before this one. */
  readonly dataDir?: string;
  /** Where a mount before this one was. */
  readonly mountDir?: string;
}

/** What a command said and how it ended. */
export interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/**
 * A mount without capture, served by a process of its own; so the test, and the commands that it runs,
 * may touch it (DESIGN §1.4). Always `stop` it.
 */
export class PlainMount {
  readonly dir: string;
  readonly dataDir: string;
  readonly events: MountEvent[] = [];
  readonly #folder: string;
  readonly #server: ChildProcess;
  readonly #answers: (() => void)[] = [];

  private constructor(folder: string, dir: string, dataDir: string, server: ChildProcess) {
    this.#folder = folder;
    this.dir = dir;
    this.dataDir = dataDir;
    this.#server = server;
  }

  static async start(options: PlainMountOptions): Promise<PlainMount> {
    const { dataDir: oldData, mountDir: oldMount, state = MountState.primary, ...rest } = options;
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'kitefs-plain-'));
    const dataDir = oldData ?? path.join(folder, 'data');
    const mountDir = oldMount ?? path.join(folder, 'mnt');
    if (oldMount === undefined) fs.mkdirSync(mountDir);
    fs.mkdirSync(dataDir, { recursive: true });
    const json = JSON.stringify({ ...rest, state, dataDir, mountDir });
    const server = spawn(process.execPath, [SERVER, DIST, json], { stdio: ['pipe', 'pipe', 'pipe'] });
    const mount = new PlainMount(folder, mountDir, dataDir, server);
    let said = '';
    server.stderr.on('data', (bytes: Buffer) => (said += bytes.toString()));
    const ready = new Promise<void>((resolve, reject) => {
      mount.#answers.push(resolve);
      server.once('exit', () => reject(new Error(`the mount's process ended: ${said}`)));
    });
    createInterface({ input: server.stdout }).on('line', (line) => {
      const message = JSON.parse(line) as { event?: MountEvent };
      if (message.event) mount.events.push(message.event);
      else mount.#answers.shift()?.();
    });
    await ready;
    return mount;
  }

  get pid(): number {
    return this.#server.pid ?? -1;
  }

  /** A command in the mount's top folder. */
  run(command: string, ...args: string[]): Ran {
    const ran = spawnSync(command, args, {
      cwd: this.dir,
      encoding: 'utf8',
      timeout: LIMIT_MS,
      killSignal: 'SIGKILL',
      env: { ...process.env, LC_ALL: 'C' },
    });
    return { code: ran.status, out: ran.stdout.trim(), err: ran.stderr.trim() };
  }

  shell(script: string): Ran {
    return this.run('sh', '-c', script);
  }

  /** Runs SQL with the sqlite3 shell, which stops at the first error. */
  sql(database: string, statements: string): Ran {
    return this.run('sqlite3', '-bail', database, statements);
  }

  /** A role, or the applier's pid, as plain-mount-server.mjs takes them; resolves when it is in force. */
  async tell(command: Record<string, unknown>): Promise<void> {
    const answered = new Promise<void>((resolve) => this.#answers.push(resolve));
    this.#server.stdin!.write(`${JSON.stringify(command)}\n`);
    await answered;
  }

  refusals(): string[] {
    return this.events.flatMap((event) => (event.type === 'refused' ? [event.reason] : []));
  }

  /** Ends the serving process as a crash does; the dead mount stays. */
  async kill(): Promise<void> {
    const exited = once(this.#server, 'exit');
    this.#server.kill('SIGKILL');
    await exited;
  }

  /** Unmounts; keeps the data when it was given from outside. */
  async stop(): Promise<void> {
    if (this.#server.exitCode === null && this.#server.signalCode === null) {
      const exited = once(this.#server, 'exit');
      const limit = setTimeout(() => this.#server.kill('SIGKILL'), LIMIT_MS);
      this.#server.stdin!.end('{"stop":true}\n');
      await exited;
      clearTimeout(limit);
    }
    spawnSync('umount', ['-l', this.dir]);
    fs.rmSync(this.#folder, { recursive: true, force: true });
  }
}
