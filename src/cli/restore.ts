import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import type { LoadedConfig } from '../config/load.js';
import { parseDuration } from '../config/values.js';
import { KiteError, toKiteError } from '../errors.js';
import { formatTxid } from '../ltx/position.js';
import {
  restore,
  type IntegrityCheck,
  type Restored,
  type RestoreRequest,
  type Wanted,
} from '../restore/restore.js';
import { type BackupSource, databaseNamed, isUrl, sourcesOf } from './backup-source.js';
import { print } from './output.js';
import { ProgressBar, sizeText } from './progress.js';

/** The flags of `kitefs restore`: Litestream's, and -cluster-txid. */
export interface RestoreFlags {
  readonly o?: string;
  readonly timestamp?: string;
  readonly txid?: string;
  readonly clusterTxid?: string;
  readonly parallelism: string;
  readonly ifDbNotExists?: boolean;
  readonly ifReplicaExists?: boolean;
  readonly integrityCheck: string;
}

const usage = (message: string): KiteError => new KiteError('ERR_CLI_USAGE', message);

/** `kitefs restore -o FILE URL|DB`, and `kitefs restore DB` into the place of a node that does not run. */
export async function runRestore(
  word: string,
  flags: RestoreFlags,
  config: () => LoadedConfig,
): Promise<void> {
  const how = howOf(flags);
  if (flags.o !== undefined) {
    const output = resolve(flags.o);
    if (flags.ifDbNotExists && existsSync(output)) return sayThere(output);
    const found = await restoreFirst(await sourcesOf(word, config), { ...how, output }, flags);
    if (found) print(`${output}: ${describe(found)}`);
    return;
  }
  if (isUrl(word))
    throw usage(
      'with a URL -o FILE is required; without -o give the name of a database of the configuration',
    );
  const { StoppedNode } = await import('../daemon/restore-in-place.js');
  const loaded = config();
  const name = databaseNamed(word, loaded);
  const sources = await sourcesOf(word, () => loaded);
  const node = await StoppedNode.open(loaded.config, name);
  try {
    if (flags.ifDbNotExists && node.hasDatabase) return sayThere(name);
    const found = await restoreFirst(sources, { ...how, output: node.output }, flags);
    if (!found) return;
    const { goesOn, txid, epoch, kept } = await node.put(found.restored);
    print(`${name}: ${describe(found)}`);
    print(
      goesOn
        ? `It is the newest state that there is, and its history goes on: TXID ${formatTxid(txid)}.`
        : `It is a new transaction after all that are known: TXID ${formatTxid(txid)}, epoch ${epoch}. Start this node before the others.`,
    );
    if (kept !== undefined) print(`What was there is in ${kept}`);
  } finally {
    await node.close();
  }
}

const sayThere = (what: string): void => print(`${what} is there already: nothing is restored`);

function howOf(flags: RestoreFlags): Omit<How, 'output'> {
  const wanted = wantedOf(flags);
  const integrityCheck = flags.integrityCheck as IntegrityCheck;
  if (!['none', 'quick', 'full'].includes(integrityCheck))
    throw usage(`-integrity-check ${flags.integrityCheck}: give none, quick or full`);
  const parallelism = Number(flags.parallelism);
  if (!(Number.isInteger(parallelism) && parallelism >= 1 && parallelism <= 64))
    throw usage(`-parallelism ${flags.parallelism}: give a number from 1 to 64`);
  return { wanted, integrityCheck, parallelism };
}

type How = Pick<RestoreRequest, 'output' | 'wanted' | 'parallelism' | 'integrityCheck'>;

interface Found {
  readonly restored: Restored;
  readonly url: string;
  readonly seconds: number;
}

/** From the first source that can give it; undefined when none has a backup and that is no error. */
async function restoreFirst(
  sources: readonly BackupSource[],
  how: How,
  { ifReplicaExists }: RestoreFlags,
): Promise<Found | undefined> {
  const errors: KiteError[] = [];
  try {
    for (const source of sources) {
      if (errors.length > 0) say(`${errors.at(-1)!.message}. Trying ${source.from.url}`);
      try {
        return await restoreFrom(source, how);
      } catch (error) {
        const failed = toKiteError(error);
        // Anything else is not the destination's trouble.
        if (!/^ERR_(BACKUP_|RESTORE_(NOTHING|MOMENT|DAMAGED|CHECK))/.test(failed.code)) throw failed;
        errors.push(failed);
      }
    }
  } finally {
    for (const { from } of sources) from.close();
  }
  if (!ifReplicaExists || errors.some(({ code }) => code !== 'ERR_RESTORE_NOTHING'))
    throw errors.find(({ code }) => code !== 'ERR_RESTORE_NOTHING') ?? errors[0]!;
  print(`${sources.map(({ from }) => from.url).join(', ')}: no backup; nothing is restored`);
  return undefined;
}

const say = (line: string): void => void process.stderr.write(`kitefs: ${line}\n`);

async function restoreFrom(source: BackupSource, how: How): Promise<Found> {
  const bar = new ProgressBar('restoring');
  const started = Date.now();
  try {
    const restored = await restore({
      ...source,
      ...how,
      say: (line) => {
        bar.end();
        say(line);
      },
      onProgress: (done, total) => bar.update(done, total),
    });
    return { restored, url: source.from.url, seconds: (Date.now() - started) / 1000 };
  } finally {
    bar.end();
  }
}

function describe({ restored, url, seconds }: Found): string {
  return [
    `${sizeText(restored.sizeBytes)} in ${seconds.toFixed(1)} s from ${url}`,
    restored.txid !== undefined && `TXID ${formatTxid(restored.txid)}`,
    restored.clusterTxid !== undefined && `cluster TXID ${formatTxid(restored.clusterTxid)}`,
    `as of ${new Date(restored.timestampMs).toISOString()}`,
    restored.verified && 'its checksum is the one recorded at that commit',
  ]
    .filter((part) => part !== false)
    .join(', ');
}

/** The moment that -timestamp, -txid or -cluster-txid names, the latest without them. Throws ERR_CLI_USAGE. */
export function wantedOf({
  timestamp,
  txid,
  clusterTxid,
}: Pick<RestoreFlags, 'timestamp' | 'txid' | 'clusterTxid'>): Wanted {
  if ([timestamp, txid, clusterTxid].filter((flag) => flag !== undefined).length > 1)
    throw usage('give one of -timestamp, -txid and -cluster-txid');
  if (timestamp !== undefined) return { kind: 'time', timestampMs: parseMoment(timestamp, Date.now()) };
  if (txid !== undefined) return { kind: 'txid', txid: parseTxid('-txid', txid) };
  if (clusterTxid !== undefined)
    return { kind: 'cluster-txid', txid: parseTxid('-cluster-txid', clusterTxid) };
  return { kind: 'latest' };
}

/** Hex, as `kitefs backups` and Litestream print it; zeros at the front may be left out. */
function parseTxid(flag: string, text: string): bigint {
  if (!/^[0-9a-f]{1,16}$/i.test(text) || /^0+$/.test(text))
    throw usage(`${flag} ${text}: give a TXID in hex, as \`kitefs backups\` prints it`);
  return BigInt(`0x${text}`);
}

/** A moment in ms since 1970: RFC 3339 (`2026-11-20T15:04:05Z`), or how long ago (`2h ago`, `90m ago`, `3d ago`). */
export function parseMoment(text: string, nowMs: number): number {
  const ago = /^(?:(\d+)d)?(\S*)\s+ago$/.exec(text.trim());
  if (ago) {
    const days = ago[1] === undefined ? 0 : Number(ago[1]) * 86_400_000;
    const rest = ago[2] === '' ? 0 : parseDuration(ago[2]);
    if (rest !== undefined && (ago[1] !== undefined || ago[2] !== '')) return nowMs - days - rest;
  }
  const rfc3339 = /^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$/;
  const ms = rfc3339.test(text) ? Date.parse(text.replace(' ', 'T')) : Number.NaN;
  if (Number.isNaN(ms)) throw usage(`-timestamp ${text}: give 2026-11-20T15:04:05Z or "2h ago"`);
  return ms;
}
