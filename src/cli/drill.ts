import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { LoadedConfig } from '../config/load.js';
import { KiteError } from '../errors.js';
import { drill as runDrill, problemsOf } from '../drill/drill.js';
import { replaceFile } from '../util/files.js';
import { isUrl, placesOf } from './backup-source.js';
import { print } from './output.js';

export interface DrillFlags {
  /** Where the restored files are while they are checked. */
  readonly dir?: string;
  /** Where the report goes, instead of stdout. */
  readonly report?: string;
  readonly objects?: string;
}

/**
 * `kitefs drill [URL|DB]`: drills now, with the command and the recovery objective of the configuration. Returns the exit code: 1 when anything was
 * wrong, though another path went round it.
 */
export async function drill(
  word: string | undefined,
  flags: DrillFlags,
  config: () => LoadedConfig,
): Promise<number> {
  const { objects } = flags;
  if (objects !== undefined && objects !== 'all' && objects !== 'restored')
    throw new KiteError('ERR_CLI_USAGE', `-objects ${objects}: give all or restored`);
  // By URL there need not be a configuration.
  const { drill: settings, backups } =
    word !== undefined && isUrl(word) ? { drill: undefined, backups: [] } : config().config;
  const sources = await placesOf(word, config);
  const scratch = mkdtempSync(join(flags.dir ?? tmpdir(), 'kitefs-drill-'));
  try {
    // One source for each entry of the configuration, in its order.
    const places = sources.map((source, i) => ({ ...source, levels: backups[i] }));
    const report = await runDrill(places, {
      scratchDir: join(scratch, 'restored'),
      objects: objects ?? settings?.objects ?? 'all',
      exec: settings?.exec,
      recoveryObjectiveMs: settings?.recoveryObjectiveMs,
    });
    const text = JSON.stringify(report, undefined, 2);
    if (flags.report === undefined) print(text);
    else replaceFile(flags.report, Buffer.from(`${text}\n`));
    for (const problem of problemsOf(report)) process.stderr.write(`kitefs: ${problem}\n`);
    return report.ok ? 0 : 1;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
    for (const { from } of sources) from.close();
  }
}
