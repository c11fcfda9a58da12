import { existsSync, readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join, resolve } from 'node:path';
import { KiteError } from '../errors.js';
import type { DurabilityPolicy } from '../durability/policy.js';
import { checkConfig } from './checks.js';
import { readFileValues, type Remark } from './file.js';
import { configSchema, SETTINGS, type GivenConfig, type Setting } from './schema.js';
import { formatAddress, isLoopback, parseAddress, type Address } from './values.js';

export type { Remark } from './file.js';

/** Where a configuration file is looked for when none is named; LiteFS's files are read as they are. */
export const CONFIG_FILES = ['./kitefs.yml', './litefs.yml', '/etc/kitefs.yml', '/etc/litefs.yml'];

/** The configuration of one node, complete: values that were not given are worked out from the others. */
export type Config = ReturnType<typeof complete>;

export interface LoadOptions {
  /** -config: this file and no other. */
  readonly file?: string | undefined;
  /** Flags by key: `{'lease.ttl': '3s'}`. */
  readonly flags?: Readonly<Record<string, string>>;
  readonly environment?: Readonly<Record<string, string | undefined>>;
  /** false: `$NAME` in the file stays as it is. */
  readonly expandEnv?: boolean;
  /** For who only looks into data.dir: what the lease lacks (an address that only the service's environment has) is no mistake then. */
  readonly withoutLease?: boolean;
}

export interface LoadedConfig {
  readonly config: Config;
  /** The file that was read, or undefined when there is none. */
  readonly file: string | undefined;
  /** What was read and has no effect, line by line. */
  readonly notes: readonly Remark[];
  /** Where each value that is no default comes from, and how it was written, by key. */
  readonly given: ReadonlyMap<string, { readonly raw: unknown; readonly where: string }>;
}

/** Reads the configuration: flag before environment before file before default. Throws ERR_CONFIG_*. */
export function loadConfig(options: LoadOptions = {}): LoadedConfig {
  const environment = options.environment ?? process.env;
  const file = findFile(options.file);
  const problems: Remark[] = [];
  const notes: Remark[] = [];
  const given = new Map<string, { raw: unknown; where: string }>();

  if (file !== undefined) {
    // LiteFS sets HOSTNAME for its configuration when the environment has none.
    const variables = { HOSTNAME: hostname(), ...environment };
    const read = readFileValues(file, readText(file), options.expandEnv === false ? undefined : variables);
    problems.push(...read.problems);
    notes.push(...read.notes);
    for (const [key, value] of read.values) given.set(key, value);
  }
  for (const { key, env, alsoEnv } of SETTINGS) {
    const other = alsoEnv.find((name) => environment[name]);
    if (other !== undefined && !given.has(key)) given.set(key, { raw: environment[other], where: other });
    const fromEnvironment = environment[env];
    if (fromEnvironment !== undefined) given.set(key, { raw: fromEnvironment, where: env });
    const fromFlag = options.flags?.[key];
    if (fromFlag !== undefined) given.set(key, { raw: fromFlag, where: `--${key}` });
  }

  for (const [key, { where }] of given) {
    const noEffect = SETTINGS.find((setting) => setting.key === key)?.noEffect;
    if (noEffect !== undefined) notes.push({ where, text: `${key} has no effect: ${noEffect}` });
  }

  const parsed = configSchema.safeParse(nested(given));
  for (const issue of parsed.error?.issues ?? []) {
    const setting = SETTINGS.find(({ path }) => path.join('.') === issue.path.join('.'));
    if (!setting)
      throw new KiteError('ERR_INTERNAL', `no setting at ${issue.path.join('.')}: ${issue.message}`);
    const at = given.get(setting.key);
    // A value that is a list of things says which of them it is.
    problems.push(
      issue.message === `expected ${setting.form}`
        ? badValue(setting, at)
        : { where: at?.where ?? setting.key, text: `${setting.key}: ${issue.message}` },
    );
  }
  if (!parsed.success || problems.length > 0) throw invalid(problems);

  const config = complete(parsed.data);
  for (const { key, text } of checkConfig(config)) {
    if (options.withoutLease && key.startsWith('lease.')) continue;
    const where = given.get(key)?.where ?? file ?? `the default of ${key}`;
    problems.push({ where, text });
  }
  if (problems.length > 0) throw invalid(problems);
  if (config.lease.type === 'consul' && isLoopback(config.peer.addr.host)) {
    notes.push({
      where: given.get('lease.type')?.where ?? 'lease.type',
      text: 'other machines cannot reach this node while peer.addr is a loopback address: set it and peer.secret',
    });
  }
  return { config, file, notes, given };
}

export const formatRemark = ({ where, text }: Remark): string => `${where}: ${text}`;

function findFile(named: string | undefined): string | undefined {
  if (named === undefined) return CONFIG_FILES.find((file) => existsSync(file));
  if (!existsSync(named)) throw new KiteError('ERR_CONFIG_FILE', `there is no configuration file ${named}`);
  return named;
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new KiteError('ERR_CONFIG_FILE', `${file} cannot be read (${(error as Error).message})`, {
      cause: error,
    });
  }
}

function badValue(setting: Setting, at: { raw: unknown; where: string } | undefined): Remark {
  const shown = setting.secret ? '(secret)' : JSON.stringify(at?.raw);
  return {
    where: at?.where ?? setting.key,
    text: `${setting.key}: expected ${setting.form}, found ${shown}`,
  };
}

function invalid(problems: readonly Remark[]): KiteError {
  return new KiteError('ERR_CONFIG_INVALID', problems.map(formatRemark).join('\n'));
}

/** Builds the object that the schema reads; every setting is there, undefined when it was not given. */
function nested(given: ReadonlyMap<string, { raw: unknown }>): unknown {
  const root: Record<string, unknown> = {};
  for (const { key, path } of SETTINGS) {
    let at = root;
    for (const part of path.slice(0, -1)) at = (at[part] ??= {}) as Record<string, unknown>;
    at[path.at(-1) ?? ''] = given.get(key)?.raw;
  }
  return root;
}

function complete(given: GivenConfig) {
  const { fuse, data, http, peer, durability, lease, proxy, log } = given;
  const machine = lease.hostname ?? hostname();
  const advertiseUrl = lease.advertiseUrl ?? `http://${formatAddress({ ...http.addr, host: machine })}`;
  const advertised: Address = peer.addr.host === '' ? { ...peer.addr, host: machine } : peer.addr;
  const dataDir = resolve(data.dir);
  const inConsul = lease.type === 'consul';
  return {
    ...given,
    fuse: { ...fuse, dir: resolve(fuse.dir) },
    data: { ...data, dir: dataDir },
    peer: { ...peer, advertise: formatAddress(peer.advertise ?? advertised) },
    lease: {
      ...lease,
      hostname: machine,
      advertiseUrl,
      primary: lease.primary ?? primaryOf(advertiseUrl, peer.addr.port),
      path: resolve(lease.path ?? join(dataDir, 'lease.db')),
      ttlMs: (inConsul ? lease.consul.ttlMs : undefined) ?? lease.ttlMs,
      lockDelayMs: inConsul ? lease.consul.lockDelayMs : 0,
      // CONSUL_HTTP_ADDR may lack the scheme.
      consul: { ...lease.consul, url: lease.consul.url?.replace(/^(?!\w+:\/\/)/, 'http://') },
    },
    durability: policies(durability),
    proxy: {
      ...proxy,
      advertise: proxy.advertise ?? besidePeers(peer.advertise ?? advertised, proxy.addr),
      primaryWaitMs: proxy.primaryWaitMs ?? proxy.primaryRedirectTimeoutMs,
      replay: proxy.replay !== 'auto' ? proxy.replay : proxy.instance === undefined ? 'off' : 'instance',
    } as const,
    log: { ...log, level: log.debug ? ('debug' as const) : log.level },
  };
}

/** Peers reach the proxy at the host where they reach this node, unless it listens on one address only. */
function besidePeers(advertised: Address, addr: Address | undefined): Address | undefined {
  if (!addr) return undefined;
  const isEvery = ['', '0.0.0.0', '::'].includes(addr.host);
  return isEvery ? { host: advertised.host, port: addr.port } : addr;
}

/** One for each entry of `databases`, then one for all other databases. */
function policies(given: GivenConfig['durability']): readonly DurabilityPolicy[] {
  const { commit: waitFor, backup, acknowledge, spread, timeoutMs, onTimeout, databases } = given;
  const others = { pattern: '*', waitFor, backup, acknowledge, spread, timeoutMs, onTimeout };
  return [...databases.map((entry) => ({ ...others, ...entry })), others];
}

/** In LiteFS's static lease the advertise-url is the primary's; its peers listen beside it. */
function primaryOf(advertiseUrl: string, port: number): Address | undefined {
  if (!URL.canParse(advertiseUrl)) return undefined;
  return parseAddress(`${new URL(advertiseUrl).hostname}:${port}`);
}
