import { fstatSync, writeSync } from 'node:fs';

import { pino, type Logger } from 'pino';

export type { Logger } from 'pino';

export interface LogOptions {
  /** `auto`: text when stderr is a terminal, JSON otherwise. */
  readonly format: 'auto' | 'text' | 'json';
  readonly level: LogLevel;
}

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Wherever these stand in what is logged, the value does not reach the log. */
const SECRET_KEYS = ['secret', 'token', 'password', 'authorization'];

/** The log of one process, on stderr: a command's own output stays clean. */
export function createLogger(options: LogOptions, write: (line: string) => void = writeStderr): Logger {
  const text = options.format === 'text' || (options.format === 'auto' && process.stderr.isTTY);
  return pino(
    {
      level: options.level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: { paths: SECRET_KEYS.flatMap((key) => [key, `*.${key}`, `*.*.${key}`]), censor: '[secret]' },
    },
    { write: text ? (line: string) => write(formatLine(line)) : write },
  );
}

const STDERR = 2;
let isFile: boolean | undefined;

/**
 * A line that cannot be written is lost and nothing else: the reader of a pipe may be gone, the disk of a file full. To a
 * pipe it is written without waiting for the reader. A stream over a file would be of no use any more after its first error, also
 * when there is room again.
 */
function writeStderr(line: string): void {
  isFile ??= isRegularFile(STDERR);
  if (!isFile) return void process.stderr.write(line);
  try {
    writeSync(STDERR, line);
  } catch {
    // There is nowhere to say it.
  }
}

function isRegularFile(fd: number): boolean {
  try {
    return fstatSync(fd).isFile();
  } catch {
    return false;
  }
}

/** One JSON line as text: `12:30:05.123 info  message key=value`. */
function formatLine(line: string): string {
  const { time, level, msg, err, ...rest } = JSON.parse(line) as Record<string, unknown> & { msg?: string };
  const clock = String(time).slice(11, 23);
  const fields = Object.entries(rest).map(([key, value]) => `${key}=${fieldText(value)}`);
  const error =
    err === undefined ? [] : [`error=${fieldText((err as { message?: unknown }).message ?? err)}`];
  return `${[clock, String(level).padEnd(5), msg ?? '', ...fields, ...error].join(' ')}\n`;
}

const fieldText = (value: unknown): string => {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return /[\s"]/.test(text) && typeof value === 'string' ? JSON.stringify(text) : text;
};
