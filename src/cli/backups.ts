import type { LoadedConfig } from '../config/load.js';
import { KiteError } from '../errors.js';
import { formatTxid } from '../ltx/position.js';
import {
  databaseOf,
  inventoryOf,
  type Inventory,
  type OldSummary,
  type RestorePoint,
} from '../restore/inventory.js';
import { foldersOf, placesOf } from './backup-source.js';
import { print } from './output.js';
import { sizeText } from './progress.js';

/** `kitefs backups [URL|DB]`: what can be restored from where. */
export async function listBackups(
  word: string | undefined,
  json: boolean,
  config: () => LoadedConfig,
): Promise<void> {
  const sources = await placesOf(word, config);
  try {
    const found: { database: string | undefined; inventory: Inventory }[] = [];
    for (const source of sources) {
      for (const one of await foldersOf(source))
        found.push({ database: databaseOf(one), inventory: await inventoryOf(source.from, one) });
    }
    if (json) print(JSON.stringify(found.map(asJson), undefined, 2));
    else if (found.length > 0) print(found.map(({ inventory }) => inventoryText(inventory)).join('\n\n'));
    else {
      const urls = sources.map(({ from }) => from.url).join(', ');
      throw new KiteError('ERR_RESTORE_NOTHING', `${urls}: no backup of a database`);
    }
  } finally {
    for (const { from } of sources) from.close();
  }
}

function asJson({ database, inventory }: { database: string | undefined; inventory: Inventory }): object {
  // TXIDs and times as they are written everywhere else.
  const text = (key: string, value: unknown): unknown => {
    if (typeof value === 'bigint') return formatTxid(value);
    return key.endsWith('Ms') && typeof value === 'number' ? new Date(value).toISOString() : value;
  };
  const named = { ...(database !== undefined && { database }), ...inventory };
  return JSON.parse(JSON.stringify(named, text).replaceAll(/"(\w+)Ms":/g, '"$1":')) as object;
}

/** The inventory of a database for a person. */
export function inventoryText(of: Inventory): string {
  const lines = [`${of.url}  ${sizeText(of.sizeBytes + (of.litestream03?.sizeBytes ?? 0))}`];
  if (of.oldest && of.newest) {
    lines.push(`  from    ${pointText(of.oldest)}`, `  to      ${pointText(of.newest)}`);
    lines.push(`  ${of.points} ${of.points === 1 ? 'state' : 'states'} can be restored`);
  } else if (!of.litestream03) lines.push('  nothing can be restored');
  if (of.litestream03) lines.push(oldText(of.litestream03));
  for (const { from, to } of of.holes)
    lines.push(`  HOLE    TXIDs ${formatTxid(from)} to ${formatTxid(to)} are missing`);
  for (const level of of.levels) {
    const times = level.oldestMs !== undefined && level.newestMs !== undefined;
    const span = times ? `  ${iso(level.oldestMs)} to ${iso(level.newestMs)}` : '';
    const range = `${formatTxid(level.minTxid)}-${formatTxid(level.maxTxid)}`;
    lines.push(
      `  level ${level.level}  ${String(level.files).padStart(6)} ${level.files === 1 ? 'object ' : 'objects'} ${sizeText(level.sizeBytes).padStart(8)}  ${range}${span}`,
    );
  }
  for (const snapshot of of.snapshots)
    lines.push(`  snapshot ${sizeText(snapshot.sizeBytes).padStart(8)}  ${pointText(snapshot)}`);
  return lines.join('\n');
}

const oldText = ({ generations, snapshots, sizeBytes, oldestMs, newestMs }: OldSummary): string =>
  `  Litestream 0.3: ${sizeText(sizeBytes)}, ${generations} ${generations === 1 ? 'generation' : 'generations'}, ${snapshots} ${snapshots === 1 ? 'copy' : 'copies'}; by -timestamp from ${iso(oldestMs)} to ${iso(newestMs)}`;

const iso = (ms: number): string => new Date(ms).toISOString();

const pointText = ({ txid, clusterTxid, timestampMs }: RestorePoint): string =>
  `${iso(timestampMs)}  -txid ${formatTxid(txid)}${clusterTxid === undefined ? '' : `  -cluster-txid ${formatTxid(clusterTxid)}`}`;
