import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, rmSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import type { Destination } from '../backup/destination.js';
import { readHead } from '../backup/head.js';
import type { BackupFile } from '../backup/layout.js';
import { KiteError, toKiteError } from '../errors.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { formatTxid } from '../ltx/position.js';
import { listFiles, listGenerations } from '../restore/bucket.js';
import { fetchHeader, fetchPart } from '../restore/fetch.js';
import { databaseFolders } from '../restore/inventory.js';
import { reachOf } from '../restore/plan.js';
import { restore, type Wanted } from '../restore/restore.js';
import { withoutFuse } from '../util/child-stdio.js';
import { writeFully } from '../util/files.js';
import { standstill, type LevelIntervals } from './standstill.js';

/** One restore of a drill, as the report has it. */
export interface DrilledRestore {
  readonly url: string;
  readonly moment: 'latest' | 'random';
  readonly ok: boolean;
  /** What was wrong, or had to be gone round. */
  readonly problems: readonly string[];
  readonly txid?: string;
  readonly clusterTxid?: string;
  readonly asOf?: string;
  readonly sizeBytes?: number;
  /** What the recovery objective is about: until the file is whole. */
  readonly seconds: number;
  /** What was looked at after that. */
  readonly checkSeconds?: number;
  /** Whether the database's checksum was compared with the one recorded at the commit. */
  readonly checksumCompared?: boolean;
  /** Rows of each table. */
  readonly rows?: Readonly<Record<string, number>>;
}

/** What a drill found. */
export interface DrillReport {
  readonly startedAt: string;
  readonly endedAt: string;
  readonly ok: boolean;
  /** Restoring the latest state of all databases, one after another, from the slowest destination. */
  readonly restoreSeconds: number;
  readonly recoveryObjectiveSeconds?: number;
  /** Objects that were read besides, because no restore of this drill needs them. */
  readonly objectsRead: number;
  /** What is no matter of one restore. */
  readonly problems: readonly string[];
  readonly restores: readonly DrilledRestore[];
}

/** Which objects are read: all of them, or those that the restores need. */
export type DrillObjects = 'all' | 'restored';

export interface DrillPlace {
  readonly from: Destination;
  /** Of one database, with a slash at its end; empty: of all that are there. */
  readonly folder: string;
  /** The intervals that its levels should be made at; undefined when they are not known. */
  readonly levels?: LevelIntervals | undefined;
}

export interface DrillOptions {
  /** Made and removed: the restored databases, one at a time. */
  readonly scratchDir: string;
  readonly objects: DrillObjects;
  /** The user's own check, for /bin/sh: gets KITEFS_DRILL_FILE, and must end with 0. */
  readonly exec?: string | undefined;
  readonly recoveryObjectiveMs?: number | undefined;
  readonly parallelism?: number;
}

/**
 * Restores the latest state and a random one of each database at each place, with every check there is: the database's checksum against the
 * one recorded at the commit, SQLite's integrity_check, rows of each table, the user's own. Never throws for what is wrong with a backup: that
 * is what the report is for, and also what another path went round is wrong.
 */
export async function drill(places: readonly DrillPlace[], options: DrillOptions): Promise<DrillReport> {
  const startedAt = new Date().toISOString();
  const restores: DrilledRestore[] = [];
  const problems: string[] = [];
  let restoreSeconds = 0;
  let objectsRead = 0;
  mkdirSync(options.scratchDir, { recursive: true });
  try {
    for (const place of places) {
      const { from } = place;
      let seconds = 0;
      try {
        const wanted = place.folder === '' ? await foldersAt(from) : new Map([[place.folder, true]]);
        let there = 0;
        for (const [folder, isOurs] of wanted) {
          const found = await drillDatabase({ ...place, folder }, options, isOurs);
          if (found === 'foreign') continue;
          there += 1;
          restores.push(...found.restores);
          problems.push(...found.problems.map((problem) => `${urlOf(from, folder)}: ${problem}`));
          objectsRead += found.objectsRead;
          seconds += found.restores[0]?.seconds ?? 0;
        }
        if (there === 0) problems.push(`${from.url}: there is no backup of a database`);
      } catch (error) {
        problems.push(`${from.url}: ${toKiteError(error).describe()}`);
      }
      restoreSeconds = Math.max(restoreSeconds, seconds);
      const limitMs = options.recoveryObjectiveMs;
      if (limitMs !== undefined && seconds * 1000 > limitMs)
        problems.push(
          `${from.url}: restoring took ${seconds.toFixed(1)} s, the recovery objective is ${limitMs / 1000} s`,
        );
    }
  } finally {
    rmSync(options.scratchDir, { recursive: true, force: true });
  }
  const { recoveryObjectiveMs } = options;
  return {
    startedAt,
    endedAt: new Date().toISOString(),
    ok: problems.length === 0 && restores.every(({ ok }) => ok),
    restoreSeconds: round(restoreSeconds),
    ...(recoveryObjectiveMs !== undefined && { recoveryObjectiveSeconds: recoveryObjectiveMs / 1000 }),
    objectsRead,
    problems,
    restores,
  };
}

/** All that is wrong in a report, a line each. */
export const problemsOf = (report: DrillReport): string[] => [
  ...report.problems,
  ...report.restores.flatMap(({ url, problems }) => problems.map((problem) => `${url}: ${problem}`)),
];

const urlOf = (from: Destination, folder: string): string =>
  `${from.url}${folder && `/${folder.slice(0, -1)}`}`;

const round = (seconds: number): number => Math.round(seconds * 1000) / 1000;

/**
 * The folders of a place, and whether each has to be a database's: what the head names has to be there, all of it may be gone. What it does not
 * name may be Litestream's, or have nothing to do with backups.
 */
async function foldersAt(from: Destination): Promise<Map<string, boolean>> {
  const folders = new Map((await databaseFolders(from)).map((folder) => [folder, folder === '']));
  if (folders.has('')) return folders;
  const head = await readHead(from);
  for (const [name, { droppedMs }] of Object.entries(head?.databases ?? {}))
    if (droppedMs === undefined) folders.set(`${name}/`, true);
  return folders;
}

async function drillDatabase(
  place: DrillPlace,
  options: DrillOptions,
  isOurs: boolean,
): Promise<{ restores: DrilledRestore[]; problems: string[]; objectsRead: number } | 'foreign'> {
  const { from, folder, levels } = place;
  const listed = await listFiles(from, folder);
  if (!isOurs && listed.length === 0 && (await listGenerations(place)).snapshots.length === 0)
    return 'foreign';
  const { files, holes } = reachOf(listed);
  const problems = holes.map(
    (hole) => `TXIDs ${formatTxid(hole.from)} to ${formatTxid(hole.to)} are missing`,
  );
  if (levels) problems.push(...standstill(listed, levels));
  await requireSpace(from, files.at(-1), options.scratchDir);
  const restores = [await drillMoment(place, options, 'latest', { kind: 'latest' })];
  const random = files[Math.floor(Math.random() * files.length)];
  // Litestream 0.3's backups have no TXIDs: of them only the latest state.
  if (random)
    restores.push(await drillMoment(place, options, 'random', { kind: 'txid', txid: random.maxTxid }));
  const read =
    options.objects === 'all' ? await readAll(from, listed, options.scratchDir) : { problems: [], count: 0 };
  return { restores, problems: [...problems, ...read.problems], objectsRead: read.count };
}

/** Objects up to this are read into memory; larger ones (snapshots, mostly) go by the disk. */
const PIECE_BYTES = 4 << 20;
const PARALLEL = 8;

/** Reads objects and verifies every byte, those that no restore needs too: a flipped byte waits there for the day that one does. */
async function readAll(
  from: Destination,
  files: readonly BackupFile[],
  scratchDir: string,
): Promise<{ problems: string[]; count: number }> {
  const problems: string[] = [];
  let next = 0;
  let count = 0;
  const worker = async (): Promise<void> => {
    while (next < files.length) {
      const file = files[next]!;
      next += 1;
      try {
        await readOne(from, file, scratchDir);
        count += 1;
      } catch (thrown) {
        const error = toKiteError(thrown);
        // Compaction and retention go on meanwhile.
        if (error.code !== 'ERR_BACKUP_MISSING') problems.push(`${file.key}: ${error.message}`);
      }
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, worker));
  return { problems, count };
}

async function readOne(from: Destination, file: BackupFile, scratchDir: string): Promise<void> {
  const { key, sizeBytes } = file;
  if (sizeBytes <= PIECE_BYTES) {
    const bytes = Buffer.allocUnsafeSlow(sizeBytes);
    await fetchPart(from, key, 0, bytes);
    verify(LtxDecoder.fromBuffer(bytes, { exact: true }));
    return;
  }
  const path = join(scratchDir, `object-${randomUUID()}`);
  const fd = openSync(path, 'wx+');
  try {
    const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
    for (let at = 0; at < sizeBytes; at += PIECE_BYTES) {
      const part = piece.subarray(0, Math.min(PIECE_BYTES, sizeBytes - at));
      await fetchPart(from, key, at, part);
      writeFully(fd, part, at);
    }
    verify(LtxDecoder.fromFile(fd, { exact: true }));
  } finally {
    closeSync(fd);
    rmSync(path, { force: true });
  }
}

function verify(ltx: LtxDecoder): void {
  while (ltx.next());
}

/** The scratch space may be on the disk of the data: a drill must never be what fills it. */
async function requireSpace(
  from: Destination,
  newest: BackupFile | undefined,
  scratchDir: string,
): Promise<void> {
  if (!newest) return;
  const { commitPages, pageSize } = await fetchHeader(from, newest);
  const sizeBytes = commitPages * pageSize;
  const { bavail, bsize } = await statfs(scratchDir);
  if (bavail * bsize >= 2 * sizeBytes) return;
  throw new KiteError(
    'ERR_RESTORE_FULL',
    `${scratchDir} has ${bavail * bsize} bytes free: a drill of a database of ${sizeBytes} bytes needs twice that, so that it never fills the disk`,
  );
}

async function drillMoment(
  { from, folder }: DrillPlace,
  { scratchDir, exec, parallelism = 8 }: DrillOptions,
  moment: DrilledRestore['moment'],
  wanted: Wanted,
): Promise<DrilledRestore> {
  const problems: string[] = [];
  const url = urlOf(from, folder);
  const output = join(scratchDir, 'database');
  const started = performance.now();
  const secondsNow = (): number => round((performance.now() - started) / 1000);
  let seconds: number | undefined;
  try {
    const restored = await restore({
      from,
      folder,
      output,
      wanted,
      parallelism,
      integrityCheck: 'none',
      say: (line) => problems.push(line),
    });
    seconds = secondsNow();
    const { txid, clusterTxid, timestampMs, sizeBytes, verified } = restored;
    const rows = lookThrough(output, problems);
    if (exec !== undefined) await runExec(exec, { output, url, moment }, problems);
    return {
      url,
      moment,
      ok: problems.length === 0,
      problems,
      ...(txid !== undefined && { txid: formatTxid(txid) }),
      ...(clusterTxid !== undefined && { clusterTxid: formatTxid(clusterTxid) }),
      asOf: new Date(timestampMs).toISOString(),
      sizeBytes,
      seconds,
      checkSeconds: round(secondsNow() - seconds),
      checksumCompared: verified,
      rows,
    };
  } catch (error) {
    problems.push(toKiteError(error).describe());
    return { url, moment, ok: false, problems, seconds: seconds ?? secondsNow() };
  } finally {
    for (const end of ['', '-wal', '-shm', '-journal', '.kitefs-restore', '.kitefs-restore-state'])
      rmSync(`${output}${end}`, { force: true });
  }
}

/** SQLite's own check, and how many rows each table has. */
function lookThrough(path: string, problems: string[]): Record<string, number> {
  const rows: Record<string, number> = {};
  const db = new Database(path, { fileMustExist: true });
  try {
    const said = db.pragma('integrity_check(10)', { simple: true });
    if (said !== 'ok') problems.push(`SQLite's integrity_check says: ${String(said)}`);
    const tables = db
      .prepare(`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`)
      .pluck()
      .all() as string[];
    for (const table of tables) {
      try {
        const count = db.prepare(`SELECT count(*) FROM "${table.replaceAll('"', '""')}"`).pluck();
        rows[table] = count.get() as number;
      } catch (error) {
        // A virtual table of an extension that is not loaded here has no rows that could be counted.
        if (!/no such module/.test((error as Error).message)) throw error;
      }
    }
  } catch (error) {
    problems.push(`SQLite cannot read it: ${(error as Error).message}`);
  } finally {
    db.close();
  }
  return rows;
}

/** The last lines of what the user's check said are enough to know why. */
const SAID_BYTES = 2000;

async function runExec(
  command: string,
  { output, url, moment }: { output: string; url: string; moment: string },
  problems: string[],
): Promise<void> {
  const child = spawn('/bin/sh', ['-c', command], {
    env: { ...process.env, KITEFS_DRILL_FILE: output, KITEFS_DRILL_URL: url, KITEFS_DRILL_MOMENT: moment },
    stdio: withoutFuse(['ignore', 'pipe', 'pipe'] as const),
    // A group of its own, so that all of it ends with this process.
    detached: true,
  });
  const end = (): void => {
    try {
      process.kill(-child.pid!, 'SIGKILL');
    } catch {
      // It has ended.
    }
  };
  process.once('exit', end);
  let said = '';
  for (const stream of [child.stdout, child.stderr])
    stream?.on('data', (text: Buffer) => (said = (said + text.toString()).slice(-SAID_BYTES)));
  try {
    const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
    if (code !== 0)
      problems.push(
        `drill.exec ended with ${signal ?? `exit code ${code}`}${said && `: ${said.trim().split('\n').slice(-5).join(' | ')}`}`,
      );
  } finally {
    process.off('exit', end);
    end();
  }
}
