import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { LoadedConfig } from '../config/load.js';
import { toKiteError } from '../errors.js';
import { formatTxid } from '../ltx/position.js';
import { listFiles } from '../restore/bucket.js';
import { reachOf } from '../restore/plan.js';
import { restore, type Wanted } from '../restore/restore.js';
import { replaceFile } from '../util/files.js';
import { foldersOf, placesOf, type BackupSource } from './backup-source.js';
import { print } from './output.js';

/** One restore of a drill, as the report has it. */
interface DrillResult {
  readonly url: string;
  readonly moment: 'latest' | 'random';
  readonly ok: boolean;
  /** What was wrong, or had to be gone round. */
  readonly problems: readonly string[];
  readonly txid?: string;
  readonly clusterTxid?: string;
  readonly asOf?: string;
  readonly sizeBytes?: number;
  readonly seconds: number;
  /** Whether the database's checksum was compared with the one recorded at the commit. */
  readonly checksumCompared?: boolean;
}

export interface DrillFlags {
  /** Where the restored files are while they are checked. */
  readonly dir?: string;
  /** Where the report goes, instead of stdout. */
  readonly report?: string;
}

/**
 * `kitefs drill [URL|DB]`: restores the latest state and a random one of each database at each destination into scratch space, with every
 * check there is, and reports. Returns the exit code: 1 when anything was wrong, though another path went round it.
 */
export async function drill(
  word: string | undefined,
  flags: DrillFlags,
  config: () => LoadedConfig,
): Promise<number> {
  const sources = await placesOf(word, config);
  const scratch = mkdtempSync(join(flags.dir ?? tmpdir(), 'kitefs-drill-'));
  const startedAt = new Date().toISOString();
  const results: DrillResult[] = [];
  try {
    for (const source of sources) {
      const { from } = source;
      try {
        const folders = await foldersOf(source);
        if (folders.length === 0) results.push(failed(from.url, 'there is no backup of a database'));
        for (const one of folders) results.push(...(await drillDatabase({ from, folder: one }, scratch)));
      } catch (error) {
        results.push(failed(from.url, toKiteError(error).describe()));
      }
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
    for (const { from } of sources) from.close();
  }
  const ok = results.every((result) => result.ok);
  const report = JSON.stringify(
    { startedAt, endedAt: new Date().toISOString(), ok, restores: results },
    undefined,
    2,
  );
  if (flags.report === undefined) print(report);
  else replaceFile(flags.report, Buffer.from(`${report}\n`));
  for (const { url, problems } of results)
    for (const problem of problems) process.stderr.write(`kitefs: ${url}: ${problem}\n`);
  return ok ? 0 : 1;
}

const failed = (url: string, problem: string): DrillResult => ({
  url,
  moment: 'latest',
  ok: false,
  problems: [problem],
  seconds: 0,
});

async function drillDatabase(source: BackupSource, scratch: string): Promise<DrillResult[]> {
  const { files, holes } = reachOf(await listFiles(source.from, source.folder));
  const missing = holes.map(({ from, to }) => `TXIDs ${formatTxid(from)} to ${formatTxid(to)} are missing`);
  const results = [await drillMoment(source, scratch, 'latest', { kind: 'latest' }, missing)];
  const random = files[Math.floor(Math.random() * files.length)];
  // Litestream 0.3's backups have no TXIDs: of them only the latest state.
  if (random)
    results.push(await drillMoment(source, scratch, 'random', { kind: 'txid', txid: random.maxTxid }, []));
  return results;
}

async function drillMoment(
  { from, folder }: BackupSource,
  scratch: string,
  moment: DrillResult['moment'],
  wanted: Wanted,
  known: readonly string[],
): Promise<DrillResult> {
  const problems = [...known];
  const url = `${from.url}${folder && `/${folder.slice(0, -1)}`}`;
  const output = join(scratch, 'database');
  const started = performance.now();
  const secondsNow = (): number => Math.round(performance.now() - started) / 1000;
  try {
    const restored = await restore({
      from,
      folder,
      output,
      wanted,
      parallelism: 8,
      integrityCheck: 'full',
      say: (line) => problems.push(line),
    });
    const { txid, clusterTxid, timestampMs, sizeBytes, verified } = restored;
    return {
      url,
      moment,
      ok: problems.length === 0,
      problems,
      ...(txid !== undefined && { txid: formatTxid(txid) }),
      ...(clusterTxid !== undefined && { clusterTxid: formatTxid(clusterTxid) }),
      asOf: new Date(timestampMs).toISOString(),
      sizeBytes,
      seconds: secondsNow(),
      checksumCompared: verified,
    };
  } catch (error) {
    problems.push(toKiteError(error).describe());
    return { url, moment, ok: false, problems, seconds: secondsNow() };
  } finally {
    for (const end of ['', '.kitefs-restore', '.kitefs-restore-state'])
      rmSync(`${output}${end}`, { force: true });
  }
}
