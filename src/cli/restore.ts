import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import type { LoadedConfig } from '../config/load.js';
import { parseDuration } from '../config/values.js';
import { KiteError, toKiteError } from '../errors.js';
import { formatTxid } from '../ltx/position.js';
import { restore, type IntegrityCheck, type RestoreRequest, type Wanted } from '../restore/restore.js';
import { type BackupSource, sourcesOf } from './backup-source.js';
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

/** `kitefs restore -o FILE URL|DB`. */
export async function runRestore(
  word: string,
  flags: RestoreFlags,
  config: () => LoadedConfig,
): Promise<void> {
  if (flags.o === undefined) throw usage('-o FILE is required: where the database is restored to');
  const output = resolve(flags.o);
  const wanted = wantedOf(flags);
  const integrityCheck = flags.integrityCheck as IntegrityCheck;
  if (!['none', 'quick', 'full'].includes(integrityCheck))
    throw usage(`-integrity-check ${flags.integrityCheck}: give none, quick or full`);
  const parallelism = Number(flags.parallelism);
  if (!(Number.isInteger(parallelism) && parallelism >= 1 && parallelism <= 64))
    throw usage(`-parallelism ${flags.parallelism}: give a number from 1 to 64`);
  if (flags.ifDbNotExists && existsSync(output)) {
    print(`${output} is there already: nothing is restored`);
    return;
  }
  const sources = await sourcesOf(word, config);
  const errors: KiteError[] = [];
  try {
    for (const source of sources) {
      if (errors.length > 0) say(`${errors.at(-1)!.message}. Trying ${source.from.url}`);
      try {
        await restoreFrom(source, { output, wanted, parallelism, integrityCheck });
        return;
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
  if (!flags.ifReplicaExists || errors.some(({ code }) => code !== 'ERR_RESTORE_NOTHING'))
    throw errors.find(({ code }) => code !== 'ERR_RESTORE_NOTHING') ?? errors[0]!;
  print(`${sources.map(({ from }) => from.url).join(', ')}: no backup; nothing is restored`);
}

const say = (line: string): void => void process.stderr.write(`kitefs: ${line}\n`);

type How = Pick<RestoreRequest, 'output' | 'wanted' | 'parallelism' | 'integrityCheck'>;

async function restoreFrom(source: BackupSource, how: How): Promise<void> {
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
    bar.end();
    const seconds = (Date.now() - started) / 1000;
    print(
      [
        `${how.output}: ${sizeText(restored.sizeBytes)} in ${seconds.toFixed(1)} s from ${source.from.url}`,
        restored.txid !== undefined && `TXID ${formatTxid(restored.txid)}`,
        restored.clusterTxid !== undefined && `cluster TXID ${formatTxid(restored.clusterTxid)}`,
        `as of ${new Date(restored.timestampMs).toISOString()}`,
        restored.verified && 'its checksum is the one recorded at that commit',
      ]
        .filter((part) => part !== false)
        .join(', '),
    );
  } finally {
    bar.end();
  }
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
