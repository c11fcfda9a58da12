import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const script = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** A helper process of a test, which says a line when it has begun and one when it ends in order. */
export class Helper {
  readonly #child: ChildProcess;
  readonly #lines: string[] = [];
  #errors = '';
  readonly #ended: Promise<unknown>;

  private constructor(name: string, args: readonly string[]) {
    this.#child = spawn(process.execPath, [script(name), ...args], { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#ended = once(this.#child, 'close');
    this.#child.stderr?.on('data', (text: Buffer) => (this.#errors += text.toString()));
  }

  static async start(name: string, ...args: string[]): Promise<Helper> {
    const helper = new Helper(name, args);
    const lines = createInterface({ input: helper.#child.stdout! });
    const begun = once(lines, 'line');
    lines.on('line', (line) => helper.#lines.push(line));
    await Promise.race([begun, helper.#ended]);
    if (helper.#lines.length === 0) throw new Error(`${name}: ${helper.#errors}`);
    return helper;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Tells it to end; returns its last line, or throws what it has found wrong. */
  async stop(): Promise<string> {
    this.#child.stdin?.end('stop\n');
    await this.#ended;
    if (this.#child.exitCode !== 0) throw new Error(this.#errors || `ended by ${this.#child.signalCode}`);
    return this.#lines.at(-1) ?? '';
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended;
  }
}
