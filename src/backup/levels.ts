import type { TxidRange } from '../ltx/position.js';
import { SNAPSHOT_LEVEL, type BackupFile } from './layout.js';

/**
 * What there is of a database in a destination, and what is due there. Pure. All decisions go by the names, sizes and ages of
 * objects, so that a process that has just started decides as one that ran for weeks.
 */

/** Objects of a database by level, each in the order of their names. */
export type Levels = ReadonlyMap<number, readonly BackupFile[]>;

/** Litestream's settings of one destination. */
export interface LevelSettings {
  /** Interval of level 1, 2… */
  readonly levelIntervalsMs: readonly number[];
  readonly snapshotIntervalMs: number;
  /** How far back one can go. */
  readonly retentionMs: number;
  /** For how long each object of level 0 stays after it is in level 1; 0: for ever. */
  readonly l0RetentionMs: number;
  /** false: nothing is ever removed, the bucket's own rules do that. */
  readonly retentionEnabled: boolean;
}

const at = (levels: Levels, level: number): readonly BackupFile[] => levels.get(level) ?? [];

/** The last snapshot. */
export const newestSnapshot = (levels: Levels): BackupFile | undefined => at(levels, SNAPSHOT_LEVEL).at(-1);

/** The last object of level 0. */
export const newestShipped = (levels: Levels): BackupFile | undefined => at(levels, 0).at(-1);

/**
 * Whether an object of level 0 is a full set of pages that a snapshot repeats: then levels 1 and up need not hold all of it once
 * more, since whoever passes it can begin at that snapshot. Both are the same pages, so their sizes nearly are.
 */
export function isRepeated(file: BackupFile, levels: Levels): boolean {
  const snapshot = at(levels, SNAPSHOT_LEVEL).find(({ maxTxid }) => maxTxid === file.maxTxid);
  return (
    file.level === 0 &&
    snapshot !== undefined &&
    file.sizeBytes * 2 > snapshot.sizeBytes &&
    file.sizeBytes > REPEATED_BYTES
  );
}

/** Smaller ones are not worth a hole. */
const REPEATED_BYTES = 1 << 20;

/** Objects of the level below that are not in this level yet, oldest first. */
function uncompacted(levels: Levels, level: number): BackupFile[] {
  const done = at(levels, level).at(-1)?.maxTxid ?? 0n;
  return at(levels, level - 1).filter((file) => file.minTxid > done && !isRepeated(file, levels));
}

/**
 * What makes the next object of a level: objects of the level below that follow one another, oldest first; empty when there is
 * nothing. A hole ends it, what is behind that comes in the next object.
 */
export function nextCompaction(levels: Levels, level: number): BackupFile[] {
  const run: BackupFile[] = [];
  for (const file of uncompacted(levels, level)) {
    const last = run.at(-1);
    if (last && file.minTxid !== last.maxTxid + 1n) break;
    run.push(file);
  }
  return run;
}

/** Whether an object of a level is due: as in Litestream, once the clock has passed a multiple of the interval since the last one. */
export function isCompactionDue(levels: Levels, level: number, intervalMs: number, nowMs: number): boolean {
  const boundaryMs = Math.floor(nowMs / intervalMs) * intervalMs;
  const first = uncompacted(levels, level)[0];
  if (!first) return false;
  const lastMs = at(levels, level).at(-1)?.modifiedMs ?? first.modifiedMs;
  // A clock that was set back, or a bucket whose clock is ahead, must not stop it for ever.
  return lastMs < boundaryMs || lastMs > nowMs + intervalMs;
}

/** Whether a snapshot is due: there is none, there is more than the last one has and that is old, or the chain to what was shipped is broken. */
export function isSnapshotDue(levels: Levels, settings: LevelSettings, nowMs: number): boolean {
  const shipped = newestShipped(levels);
  if (!shipped) return false;
  const snapshot = newestSnapshot(levels);
  if (!snapshot) return true;
  if (snapshot.maxTxid >= shipped.maxTxid) return false;
  const ageMs = nowMs - snapshot.modifiedMs;
  return ageMs >= settings.snapshotIntervalMs || findHole(levels) !== undefined;
}

/** TXIDs of the bucket that no object has between the last snapshot and the end of level 0; undefined when all are there. */
export function findHole(levels: Levels): TxidRange | undefined {
  const end = newestShipped(levels)?.maxTxid ?? 0n;
  let reached = newestSnapshot(levels)?.maxTxid ?? 0n;
  const files = [...levels.values()].flat().toSorted((a, b) => (a.minTxid < b.minTxid ? -1 : 1));
  for (const file of files) {
    if (file.maxTxid <= reached) continue;
    if (file.minTxid > reached + 1n) return { minTxid: reached + 1n, maxTxid: file.minTxid - 1n };
    reached = file.maxTxid;
  }
  return reached < end ? { minTxid: reached + 1n, maxTxid: end } : undefined;
}

/**
 * What retention may remove, lowest levels last: whoever plans a restore meanwhile loses the oldest moments first.
 *
 * - Snapshots older than the retention, but for the newest one of these: it is what the moments at the far end of the retention
 *   are restored from. (Litestream removes it too, so that its oldest moment is younger than promised.)
 * - Objects of level 1 and up that end before that snapshot.
 * - Objects of level 0 that are in level 1 (or before that snapshot) and older than `l0RetentionMs`; the last one always stays, because
 *   the next name follows from it.
 */
export function expired(levels: Levels, settings: LevelSettings, nowMs: number): BackupFile[] {
  if (!settings.retentionEnabled) return [];
  const snapshots = at(levels, SNAPSHOT_LEVEL);
  const isOld = (file: BackupFile, limitMs: number): boolean => file.modifiedMs <= nowMs - limitMs;
  const base = snapshots.findLast((file) => isOld(file, settings.retentionMs));
  const floor = base?.maxTxid ?? 0n;
  const gone: BackupFile[] = snapshots.filter((file) => base !== undefined && file.maxTxid < floor);
  for (const [level, files] of levels) {
    if (level === 0 || level === SNAPSHOT_LEVEL) continue;
    // The last one says how far the level is.
    gone.push(...files.slice(0, -1).filter((file) => file.maxTxid <= floor));
  }
  if (settings.l0RetentionMs > 0) {
    const pending = settings.levelIntervalsMs.length > 0 ? uncompacted(levels, 1)[0]?.minTxid : undefined;
    for (const file of at(levels, 0).slice(0, -1)) {
      const isCompacted =
        settings.levelIntervalsMs.length === 0
          ? file.maxTxid <= floor
          : pending === undefined || file.maxTxid < pending;
      // In order, so that what is left is one run: the first that is too young ends it.
      if (!isCompacted || !isOld(file, settings.l0RetentionMs)) break;
      gone.push(file);
    }
  }
  return gone;
}
