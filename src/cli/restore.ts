import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { openDestination, parseDestinationUrl } from '../backup/open.js';
import { parseDuration } from '../config/values.js';
import { KiteError } from '../errors.js';
import { formatTxid } from '../ltx/position.js';
import { restore, type IntegrityCheck, type Wanted } from '../restore/restore.js';
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

/** `kitefs restore -o FILE URL`. */
export async function runRestore(url: string, flags: RestoreFlags): Promise<void> {
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
  const from = await openDestination(parseDestinationUrl(url));
  const bar = new ProgressBar('restoring');
  try {
    const started = Date.now();
    const restored = await restore({
      from,
      folder: '',
      output,
      wanted,
      parallelism,
      integrityCheck,
      say: (line) => {
        bar.end();
        process.stderr.write(`kitefs: ${line}\n`);
      },
      onProgress: (done, total) => bar.update(done, total),
    });
    bar.end();
    const seconds = (Date.now() - started) / 1000;
    const txid = restored.txid === undefined ? '' : `, TXID ${formatTxid(restored.txid)}`;
    const cluster =
      restored.clusterTxid === undefined ? '' : `, cluster TXID ${formatTxid(restored.clusterTxid)}`;
    const checked = restored.verified ? '; its checksum is the one recorded at that commit' : '';
    print(
      `${output}: ${sizeText(restored.sizeBytes)} in ${seconds.toFixed(1)} s from ${from.url}${txid}${cluster}, as of ${new Date(restored.timestampMs).toISOString()}${checked}`,
    );
  } catch (error) {
    bar.end();
    if (!(flags.ifReplicaExists && error instanceof KiteError && error.code === 'ERR_RESTORE_NOTHING'))
      throw error;
    print(`${from.url} has no backup: nothing is restored`);
  } finally {
    from.close();
  }
}

function wantedOf({ timestamp, txid, clusterTxid }: RestoreFlags): Wanted {
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
