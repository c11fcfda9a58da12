import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Destination } from '../backup/destination.js';
import { isErrno, replaceFile } from '../util/files.js';
import type { DrillReport } from './drill.js';

/**
 * Reports of drills are kept on the node (`<data>/drills/`) and at each destination that was drilled: a container without a volume, or the
 * next primary, finds there when the last drill was. No database can have a name that begins with a dot.
 */

/** So many are kept in each place. */
const KEPT = 30;
const FOLDER = '.kitefs/drills/';

/** `20261122T013000Z.json`: in the order of time. */
const nameOf = (startedAt: string): string => `${startedAt.replaceAll(/[-:]|\.\d+/g, '')}.json`;
const timeOf = (name: string): number => {
  const parts = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z\.json$/.exec(name);
  if (!parts) return Number.NaN;
  const [, year, month, day, hours, minutes, seconds] = parts;
  return Date.parse(`${year}-${month}-${day}T${hours}:${minutes}:${seconds}Z`);
};
const isReport = (name: string): boolean => !Number.isNaN(timeOf(name));

const bytesOf = (report: DrillReport): Buffer => Buffer.from(`${JSON.stringify(report, undefined, 2)}\n`);

/** Keeps a report on this node; returns its path. Throws errors of node:fs. */
export function keepReport(dataDir: string, report: DrillReport): string {
  const folder = join(dataDir, 'drills');
  mkdirSync(folder, { recursive: true });
  const path = join(folder, nameOf(report.startedAt));
  replaceFile(path, bytesOf(report));
  for (const name of namesIn(folder).slice(0, -KEPT)) rmSync(join(folder, name), { force: true });
  return path;
}

/** The last report that this node has kept; undefined when there is none, or none that can be read. */
export function lastReport(dataDir: string): { path: string; report: DrillReport } | undefined {
  const folder = join(dataDir, 'drills');
  const name = namesIn(folder).at(-1);
  if (name === undefined) return undefined;
  const path = join(folder, name);
  try {
    return { path, report: JSON.parse(readFileSync(path, 'utf8')) as DrillReport };
  } catch {
    return undefined;
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).filter(isReport).toSorted();
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}

/** Keeps a report at a destination. Throws ERR_BACKUP_*. */
export async function putReport(at: Destination, report: DrillReport): Promise<void> {
  await at.create(FOLDER + nameOf(report.startedAt), bytesOf(report), Date.parse(report.startedAt));
  const names = await reportsAt(at);
  await at.remove(names.slice(0, -KEPT).map((name) => FOLDER + name));
}

/** When the last drill of a destination began, by the reports that are kept there; 0: never. Throws ERR_BACKUP_*. */
export async function lastDrillMs(at: Destination): Promise<number> {
  const name = (await reportsAt(at)).at(-1);
  return name === undefined ? 0 : timeOf(name);
}

async function reportsAt(at: Destination): Promise<string[]> {
  const names: string[] = [];
  for await (const { key } of at.list(FOLDER)) names.push(key.slice(FOLDER.length));
  return names.filter(isReport);
}
