import { execFileSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Clocks of one daemon (clocks.c) that a test can step; those of the machine and of the other daemons go on. */
export class Clocks {
  readonly #dir = mkdtempSync(join(tmpdir(), 'kitefs-clocks-'));
  readonly #library = join(this.#dir, 'clocks.so');
  readonly #offsets = join(this.#dir, 'offsets');
  #wallMs = 0;
  #monotonicMs = 0;

  constructor() {
    const source = join(process.cwd(), 'test/helpers/clocks.c');
    execFileSync('cc', ['-shared', '-fPIC', '-Wall', '-o', this.#library, source, '-ldl']);
    this.step({});
  }

  /** For the daemon. */
  get env(): NodeJS.ProcessEnv {
    return { LD_PRELOAD: this.#library, CLOCK_OFFSETS: this.#offsets };
  }

  /** Steps them, at once. */
  step({ wallMs = 0, monotonicMs = 0 }: { wallMs?: number; monotonicMs?: number }): void {
    this.#wallMs += wallMs;
    this.#monotonicMs += monotonicMs;
    const bytes = Buffer.alloc(16);
    bytes.writeBigInt64LE(BigInt(Math.round(this.#wallMs)) * 1_000_000n, 0);
    bytes.writeBigInt64LE(BigInt(Math.round(this.#monotonicMs)) * 1_000_000n, 8);
    // Never cut short: the daemon has it mapped.
    const file = openSync(this.#offsets, constants.O_WRONLY | constants.O_CREAT);
    writeSync(file, bytes, 0, bytes.length, 0);
    closeSync(file);
  }

  remove(): void {
    rmSync(this.#dir, { recursive: true, force: true });
  }
}
