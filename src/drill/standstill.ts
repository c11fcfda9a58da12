import { SNAPSHOT_LEVEL, type BackupFile } from '../backup/layout.js';
import { isRepeated, type LevelSettings } from '../backup/levels.js';

/** At which intervals the levels of a backup should be made. */
export type LevelIntervals = Pick<LevelSettings, 'levelIntervalsMs' | 'snapshotIntervalMs'>;

/** Beside twice the interval: what a start and a slow destination may take. */
const SLACK_MS = 60_000;

/**
 * Levels that are missing or stand still, in words: what the level below has had for twice its interval is not in it. All latest states may
 * still be there, and yet nothing will be when retention takes the lower level away. Pure; the time is that of the newest object, so that the
 * backup of a cluster that was stopped long ago is judged as it was then.
 */
export function standstill(files: readonly BackupFile[], settings: LevelIntervals): string[] {
  const nowMs = files.reduce((newest, { modifiedMs }) => Math.max(newest, modifiedMs), 0);
  const levels = new Map<number, BackupFile[]>();
  for (const file of files) {
    const level = levels.get(file.level);
    if (level) level.push(file);
    else levels.set(file.level, [file]);
  }
  const at = (level: number): readonly BackupFile[] => levels.get(level) ?? [];
  const problems: string[] = [];
  const look = (level: number, below: readonly BackupFile[], intervalMs: number, what: string): void => {
    const done = at(level).at(-1)?.maxTxid ?? 0n;
    const oldest = below.find((file) => file.maxTxid > done && !isRepeated(file, levels));
    if (!oldest || nowMs - oldest.modifiedMs <= 2 * intervalMs + SLACK_MS) return;
    const since = new Date(oldest.modifiedMs).toISOString();
    problems.push(
      at(level).length === 0
        ? `${what} is missing: there should be one since ${since}`
        : `${what} stands still: it lacks what was made since ${since}`,
    );
  };
  for (const [i, intervalMs] of settings.levelIntervalsMs.entries())
    look(i + 1, at(i), intervalMs, `level ${i + 1}`);
  const lower = files.filter(({ level }) => level !== SNAPSHOT_LEVEL);
  const byEnd = lower.toSorted((a, b) => (a.maxTxid < b.maxTxid ? -1 : 1));
  look(
    SNAPSHOT_LEVEL,
    byEnd,
    at(SNAPSHOT_LEVEL).length === 0 ? 0 : settings.snapshotIntervalMs,
    'the level of snapshots',
  );
  return problems;
}
