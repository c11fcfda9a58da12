import { isIP } from 'node:net';
import type { DurabilityPolicy } from '../durability/policy.js';

/**
 * How single values are written. Each parser takes what stands in the file, the environment or a flag
 * and returns undefined when that is no such value; the setting's `form` says what was expected.
 */

export function parseText(raw: unknown): string | undefined {
  return typeof raw === 'string' ? raw : undefined;
}

export function parseBoolean(raw: unknown): boolean | undefined {
  const text = String(raw).trim().toLowerCase();
  if (['true', 'yes', 'on', '1'].includes(text)) return true;
  return ['false', 'no', 'off', '0'].includes(text) ? false : undefined;
}

export function parseInteger(raw: unknown): number | undefined {
  const text = String(raw).trim();
  return /^\d{1,15}$/.test(text) ? Number(text) : undefined;
}

/** Permission bits, written in octal. */
export function parseMode(raw: unknown): number | undefined {
  const text = String(raw).trim();
  return /^(0o?)?[0-7]{3}$/.test(text) ? Number.parseInt(text.replace(/^0o/, ''), 8) : undefined;
}

const UNIT_MS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};

/** Go's durations, as in LiteFS: `500ms`, `10s`, `1m30s`, `1.5h`, `0`. Returns milliseconds. */
export function parseDuration(raw: unknown): number | undefined {
  const text = String(raw).trim();
  if (text === '0') return 0;
  const parts = /^(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+$/.test(text) ? text.matchAll(/([\d.]+)([a-zµ]+)/g) : [];
  let totalMs: number | undefined;
  for (const [, count, unit] of parts)
    totalMs = (totalMs ?? 0) + Number(count) * (UNIT_MS[unit ?? ''] ?? Number.NaN);
  return totalMs;
}

const SIZE_POWER: Readonly<Record<string, number>> = { '': 0, k: 1, m: 2, g: 3, t: 4 };

/** `4096`, `64KB`, `16MiB`, `2GB`; every unit is a power of 1024. Returns bytes. */
export function parseSize(raw: unknown): number | undefined {
  const match = /^(\d{1,15})\s*([kmgt]?)(i?b)?$/.exec(String(raw).trim().toLowerCase());
  const power = SIZE_POWER[match?.[2] ?? ''];
  return match && power !== undefined ? Number(match[1]) * 1024 ** power : undefined;
}

/** A YAML list, or (environment, flag) words separated by commas. */
export function parseList(raw: unknown): readonly string[] | undefined {
  if (Array.isArray(raw)) return raw.every((item) => typeof item === 'string') ? raw : undefined;
  if (typeof raw !== 'string') return undefined;
  return raw
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '');
}

/** Where something listens, or is reached. An empty host means every address of the machine. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

/** `:20202`, `127.0.0.1:20202`, `[::1]:20202`, `node1.internal:20202`. */
export function parseAddress(raw: unknown): Address | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^\s:/[\]]*)):(\d{1,5})$/.exec(String(raw).trim());
  if (!match) return undefined;
  const [, ipv6, host = ''] = match;
  const port = Number(match[3]);
  return port <= 65_535 && (ipv6 === undefined || isIP(ipv6) === 6)
    ? { host: ipv6 ?? host, port }
    : undefined;
}

export function formatAddress({ host, port }: Address): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

export function isLoopback(host: string): boolean {
  const mapped = host.replace(/^::ffff:/, '');
  return host === 'localhost' || host === '::1' || (isIP(mapped) === 4 && mapped.startsWith('127.'));
}

/** `async`, `quorum`, `replicas: 2`, or in YAML the mapping `replicas: 2`. */
export function parseWaitFor(raw: unknown): DurabilityPolicy['waitFor'] | undefined {
  const isMapping = typeof raw === 'object' && raw !== null && Object.keys(raw).join() === 'replicas';
  const text = isMapping ? `replicas: ${String(Object.values(raw)[0])}` : String(raw).trim();
  if (text === 'async' || text === 'quorum') return text;
  const count = Number(/^replicas:\s*(\d{1,2})$/.exec(text)?.[1] ?? 0);
  return count > 0 ? count : undefined;
}

/** What an entry of `durability.databases` says; what it leaves out is as for all others. */
export type DatabaseDurability = Pick<DurabilityPolicy, 'pattern'> & Partial<DurabilityPolicy>;

/** A YAML list of `{name, commit, backup, acknowledge, timeout, on-timeout}`; elsewhere `orders.db=quorum,logs/*=async`. */
export function parseDatabaseDurability(raw: unknown): readonly DatabaseDurability[] | undefined {
  const items: unknown[] | undefined = Array.isArray(raw)
    ? raw
    : parseList(raw)?.map((item) => {
        const [name, commit] = item.split(/=(.*)/s);
        return { name, commit };
      });
  const entries = items?.map(parseDurabilityItem);
  return entries?.every((entry) => entry !== undefined) ? entries : undefined;
}

function parseDurabilityItem(raw: unknown): DatabaseDurability | undefined {
  if (typeof raw !== 'object' || raw === null) return undefined;
  const {
    name,
    commit,
    backup,
    acknowledge,
    timeout,
    'on-timeout': onTimeout,
    ...rest
  } = raw as Record<string, unknown>;
  if (typeof name !== 'string' || name === '' || Object.keys(rest).length > 0) return undefined;
  const given = {
    waitFor: commit === undefined ? null : parseWaitFor(commit),
    backup: backup === undefined ? null : parseBoolean(backup),
    acknowledge: acknowledge === undefined ? null : parseWord(acknowledge, ['fsync', 'memory']),
    timeoutMs: timeout === undefined ? null : parseDuration(timeout),
    onTimeout: onTimeout === undefined ? null : parseWord(onTimeout, ['block', 'degrade']),
  };
  if (Object.values(given).includes(undefined)) return undefined;
  const said = Object.entries(given).filter(([, value]) => value !== null);
  return { pattern: name, ...(Object.fromEntries(said) as Partial<DurabilityPolicy>) };
}

const parseWord = <const T extends string>(raw: unknown, words: readonly T[]): T | undefined =>
  words.find((word) => word === raw);

/** A command of `exec`, run by the shell. */
export interface ExecCommand {
  readonly cmd: string;
  /** Only on a node that may be primary. */
  readonly ifCandidate: boolean;
}

/** One command line, or a list of them: the last one is the application, those before it run to their end first. */
export function parseExec(raw: unknown): readonly ExecCommand[] | undefined {
  if (typeof raw === 'string') return raw.trim() === '' ? [] : [{ cmd: raw, ifCandidate: false }];
  if (!Array.isArray(raw)) return undefined;
  const commands = raw.map(parseExecItem);
  return commands.every((command) => command !== undefined) ? commands : undefined;
}

function parseExecItem(raw: unknown): ExecCommand | undefined {
  if (typeof raw === 'string') return { cmd: raw, ifCandidate: false };
  const { cmd, 'if-candidate': condition = 'false' } = (raw ?? {}) as Record<string, unknown>;
  const ifCandidate = parseBoolean(condition);
  return typeof cmd === 'string' && ifCandidate !== undefined ? { cmd, ifCandidate } : undefined;
}
