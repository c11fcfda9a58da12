import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export const CLI =
  process.env['TEST_KITEFS_CLI'] ?? fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

export interface CliRun {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the built `kitefs` to its end. */
export async function runCli(
  words: readonly string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<CliRun> {
  const env = { ...process.env, ...options.env };
  return await new Promise((resolve) => {
    execFile(
      process.execPath,
      [CLI, ...words],
      { ...options, env, timeout: 60_000 },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1;
        resolve({ code, stdout, stderr });
      },
    );
  });
}
