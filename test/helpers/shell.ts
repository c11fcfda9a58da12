import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Readable, Writable } from 'node:stream';
import { waitFor } from './cluster.js';

/** A sqlite3 shell that stays open: an application's connection that lives beside others. */
export class Shell {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #ended: Promise<unknown>;
  #output = '';
  #questions = 0;

  constructor(path: string, options: { cwd?: string } = {}) {
    // Errors go where the answers go, in their order.
    this.#child = spawn('sh', ['-c', 'exec sqlite3 "$0" 2>&1', path], {
      cwd: options.cwd,
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#child.stdout.on('data', (text: Buffer) => (this.#output += text.toString()));
    this.#child.stdin.on('error', () => undefined);
    this.#ended = once(this.#child, 'exit');
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Runs statements or dot-commands; returns what the shell prints, errors included, trimmed. */
  async ask(...statements: string[]): Promise<string> {
    const end = `--- ${++this.#questions} ---\n`;
    const from = this.#output.length;
    for (const statement of statements) {
      this.#child.stdin.write(statement.startsWith('.') ? `${statement}\n` : `${statement};\n`);
    }
    this.#child.stdin.write(`.print ${end}`);
    await waitFor(
      () => `the shell's answer to ${statements.join('; ')}: ${this.#output.slice(from)}`,
      () => this.#output.includes(end, from) || this.#child.exitCode !== null,
    );
    return this.#output.slice(from).replace(end, '').trim();
  }

  /** Ends the shell as an application ends that closes its connection. */
  async close(): Promise<void> {
    this.#child.stdin.end();
    await this.#ended;
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended;
  }
}
