import Database from 'better-sqlite3';
import { closeSync, existsSync, fsyncSync, openSync, writeSync } from 'node:fs';
import { copyFile, mkdtemp, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import type { LoadedConfig } from '../config/load.js';
import { formatAddress } from '../config/values.js';
import { KiteError } from '../errors.js';
import { LtxCompactor } from '../ltx/compactor.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { LtxEncoder } from '../ltx/encoder.js';
import { WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import { databasePaths } from '../store/data-directory.js';
import { LostAndFound, type LostManifest } from '../store/lost-and-found.js';
import { print } from './output.js';
import { differingRows, type DifferingRow, type TableDifference } from './row-difference.js';
import { exportFile } from './transfer.js';

const PAGES_SHOWN = 20;

interface Lost {
  readonly id: string;
  readonly directory: string;
  readonly manifest: LostManifest;
}

/** `kitefs lost ls`: what this node had to give up, a line each. */
export function listLost({ config }: LoadedConfig): void {
  const all = allLost(config.data.dir);
  if (all.length === 0) return print('nothing was lost on this node');
  for (const { id, manifest } of all) print(`${id}  ${summaryOf(manifest)}`);
}

/** `kitefs lost show`: the files, their pages, and the rows that are otherwise in the database of this node now. */
export async function showLost({ config }: LoadedConfig, id: string, rowsMax: number): Promise<void> {
  const lost = find(config.data.dir, id);
  const { manifest, directory } = lost;
  print(`${manifest.name}: ${summaryOf(manifest)}\n${manifest.reason}\n`);
  for (const file of manifest.files) print(`${file}  ${describeFile(join(directory, file))}`);
  const kept = databaseOf(lost);
  if (kept === undefined) {
    return print(
      '\nThe database was not kept with them, so their rows cannot be shown: kitefs ltx dump shows their pages.',
    );
  }
  await withFolder(async (folder) => {
    const [there, here] = [join(folder, 'lost.db'), join(folder, 'now.db')];
    writeDatabase(kept, there, { plain: true });
    await copyNow(config, manifest.name, here);
    const database = new Database(here);
    try {
      database.prepare('ATTACH ? AS there').run(there);
      let isSame = true;
      for (const table of differingRows(database, rowsMax)) {
        isSame = false;
        printTable(table);
      }
      if (isSame) print('\nEvery row of it is in the database as it is now.');
    } finally {
      database.close();
    }
  });
}

/** `kitefs lost export`: the database as it was with the lost transactions, or these alone as one LTX file. */
export async function exportLost(
  { config }: LoadedConfig,
  id: string,
  path: string,
  ltx: boolean,
): Promise<void> {
  const lost = find(config.data.dir, id);
  const kept = databaseOf(lost);
  if (!ltx && kept === undefined) {
    throw new KiteError('ERR_CLI_LOST', `the database was not kept with ${id}; --ltx gives the transactions`);
  }
  const temporary = `${path}.tmp`;
  try {
    if (ltx) writeLtx(lost, temporary);
    else if (kept !== undefined) writeDatabase(kept, temporary, { plain: false });
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    if (error instanceof KiteError) throw error;
    throw new KiteError('ERR_CLI_FILE', `cannot write ${path} (${(error as Error).message})`, {
      cause: error,
    });
  }
  print(`${path}: ${ltx ? 'the transactions of' : 'the database with'} ${id}`);
}

function allLost(dataDir: string): Lost[] {
  const lostAndFound = new LostAndFound(dataDir);
  return lostAndFound.list().map(({ directory, manifest }) => ({
    id: relative(lostAndFound.path, directory),
    directory,
    manifest,
  }));
}

/** By its whole id, or any part of it that only one has. */
function find(dataDir: string, id: string): Lost {
  const all = allLost(dataDir);
  const found = all.filter((lost) => lost.id === id);
  if (found.length === 0) found.push(...all.filter((lost) => lost.id.includes(id)));
  const [lost] = found;
  if (lost && found.length === 1) return lost;
  throw new KiteError(
    'ERR_CLI_LOST',
    found.length > 1
      ? `${found.length} of them have ${id} in their names`
      : `nothing that was lost is named ${id}`,
  );
}

function summaryOf({ lost, files }: LostManifest): string {
  if (!lost) return `${files.length} log files that were of no use`;
  const { transactions, after, epoch, certain } = lost;
  return `${transactions} transactions after TXID ${after}, epoch ${epoch}${certain ? '' : ', which the cluster may have'}`;
}

function databaseOf({ directory, manifest }: Lost): string | undefined {
  const { database } = manifest.lost ?? {};
  const path = database === undefined ? undefined : join(directory, database);
  return path !== undefined && existsSync(path) ? path : undefined;
}

function describeFile(path: string): string {
  try {
    const pgnos: number[] = [];
    const ltx = read(path, (decoder) => void (pgnos.length < PAGES_SHOWN && pgnos.push(decoder.pgno)));
    const more = ltx.pageCount > pgnos.length ? '…' : '';
    return `${ltx.pageCount} pages (${pgnos.join(', ')}${more}) of ${ltx.header.commitPages}`;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** Reads and checks a whole LTX file. */
function read(path: string, use: (ltx: LtxDecoder) => void): LtxDecoder {
  const fd = openSync(path, 'r');
  try {
    const ltx = LtxDecoder.fromFile(fd);
    while (ltx.next()) use(ltx);
    return ltx;
  } finally {
    closeSync(fd);
  }
}

/** Writes what a snapshot LTX holds as a database file; `plain`: one that can be opened without a WAL beside it. */
function writeDatabase(ltxPath: string, path: string, { plain }: { plain: boolean }): void {
  const fd = openSync(path, 'w', 0o600);
  try {
    read(ltxPath, ({ pgno, page }) => {
      if (plain && pgno === 1) page.fill(1, WRITE_VERSION_OFFSET, WRITE_VERSION_OFFSET + 2);
      for (let done = 0; done < page.length;)
        done += writeSync(fd, page, done, page.length - done, (pgno - 1) * page.length + done);
    });
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function writeLtx({ directory, manifest }: Lost, path: string): void {
  const inputs = manifest.files.map((file) => openSync(join(directory, file), 'r'));
  const fd = openSync(path, 'w', 0o600);
  try {
    const decoders = inputs.map((input) => LtxDecoder.fromFile(input));
    const compactor = new LtxCompactor(decoders, new LtxEncoder(), (chunk) => {
      for (let done = 0; done < chunk.length;) done += writeSync(fd, chunk, done);
    });
    while (!compactor.step(4096));
    fsyncSync(fd);
  } finally {
    for (const input of inputs) closeSync(input);
    closeSync(fd);
  }
}

/** The database as this node has it: from the node, or, when it does not run, from its data directory. */
async function copyNow(config: LoadedConfig['config'], name: string, path: string): Promise<void> {
  const { host, port } = config.http.addr;
  try {
    await exportFile(`http://${formatAddress({ host: host || '127.0.0.1', port })}`, name, path, {
      quiet: true,
    });
  } catch (error) {
    if (!(error instanceof KiteError) || error.code !== 'ERR_CLI_UNREACHABLE') throw error;
    const { database, wal } = databasePaths(config.data.dir, name);
    await copyFile(database, path);
    if (existsSync(wal)) await copyFile(wal, `${path}-wal`);
  }
}

async function withFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'kitefs-lost-'));
  try {
    return await work(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

const SIGNS = { added: '+', changed: '~', removed: '-' } as const;

function printTable({ table, counts, rows, error }: TableDifference): void {
  if (error !== undefined) return print(`\n${table}: cannot be read (${error})`);
  const { added, changed, removed } = counts;
  print(`\n${table}: ${added} rows only here (+), ${changed} otherwise now (~), ${removed} only now (-)`);
  for (const row of rows) print(`  ${formatRow(row)}`);
  if (added + changed + removed > rows.length) print('  …');
}

function formatRow({ key, kind, columns }: DifferingRow): string {
  const values = columns.map(([name, there, here]) =>
    kind === 'changed' ? `${name}: ${there}, now ${here ?? 'not there'}` : `${name}: ${there}`,
  );
  return [`${SIGNS[kind]} ${key}`, ...values].join('  ');
}
