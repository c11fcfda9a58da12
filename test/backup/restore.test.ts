import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import Database from 'better-sqlite3';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type CliRun, runCli } from '../cli/run-cli.js';
import { waitFor } from '../helpers/cluster.js';
import { Litestream, litestreamRestore } from '../helpers/litestream.js';

/** A history that the real Litestream has shipped to a folder, and what of it `kitefs restore` gives back. */

const MOMENTS = 20;

const dir = mkdtempSync(join(tmpdir(), 'kitefs-restore-'));
const bucket = join(dir, 'bucket');
const url = `file://${bucket}`;
/** When each row was committed. */
const commits: number[] = [];

beforeAll(async () => {
  const path = join(dir, 'app.db');
  const db = new Database(path);
  db.exec(
    'PRAGMA journal_mode = WAL; CREATE TABLE history (id INTEGER PRIMARY KEY, at INTEGER, filler BLOB)',
  );
  const litestream = new Litestream(dir, path, { type: 'file', path: bucket });
  const insert = db.prepare('INSERT INTO history VALUES (?, ?, randomblob(?))');
  await waitFor('Litestream to ship something', () => existsSync(join(bucket, 'ltx/0')));
  while (levelFiles(0).length < 30) {
    const at = Date.now();
    insert.run(commits.length + 1, at, 100 + ((commits.length * 7919) % 9000));
    commits.push(at);
    if (commits.length % 40 === 0) db.exec(`DELETE FROM history WHERE id % 7 = 0; VACUUM`);
    await sleep(20);
  }
  db.close();
  await litestream.stop();
});

afterAll(() => rmSync(dir, { recursive: true, force: true }));

const levelFiles = (level: number, of = bucket): string[] =>
  existsSync(join(of, `ltx/${level}`)) ? readdirSync(join(of, `ltx/${level}`)).toSorted() : [];

let count = 0;
const fresh = (): string => join(dir, `restored-${(count += 1)}.db`);

async function restored(...flags: string[]): Promise<{ path: string; run: CliRun }> {
  const path = fresh();
  const run = await runCli(['restore', '-o', path, ...flags]);
  return { path, run };
}

/** The rows, after SQLite has checked the file. */
function rowsOf(path: string): { id: number; at: number }[] {
  const db = new Database(path);
  try {
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    return db.prepare('SELECT id, at FROM history ORDER BY id').all() as { id: number; at: number }[];
  } finally {
    db.close();
  }
}

/** A copy of the bucket to do harm to. */
function copyOfBucket(): string {
  const copy = join(dir, `copy-${(count += 1)}`);
  cpSync(bucket, copy, { recursive: true, preserveTimestamps: true });
  return copy;
}

function flip(file: string, at: number): void {
  const bytes = readFileSync(file);
  bytes[at]! ^= 0x10;
  writeFileSync(file, bytes);
}

describe("kitefs restore of Litestream's files", () => {
  it('restores the latest state, the same bytes as Litestream itself', async () => {
    const { path, run } = await restored('-integrity-check', 'full', url);
    expect(run.stderr).toBe('');
    const theirs = fresh();
    await litestreamRestore(url, theirs);
    expect(readFileSync(path).equals(readFileSync(theirs))).toBe(true);
    expect(rowsOf(path).at(-1)?.id).toBe(commits.length);
  });

  it('restores any TXID that Litestream restores', async () => {
    const files = levelFiles(0);
    for (const file of [files[0], files[files.length >> 1]]) {
      const txid = file!.slice(0, 16);
      const { path, run } = await restored('-txid', txid, url);
      expect(run.stderr).toBe('');
      const theirs = fresh();
      await litestreamRestore(url, theirs, ['-txid', txid]);
      expect(readFileSync(path).equals(readFileSync(theirs))).toBe(true);
    }
  });

  it('restores random moments: all that was shipped until then, nothing that came later', async () => {
    const first = commits[0]!;
    const last = commits.at(-1)!;
    const moments = Array.from({ length: MOMENTS }, () => first + Math.random() * (last + 500 - first))
      .map((moment) => Math.round(moment))
      .toSorted((a, b) => a - b);
    const program = fileURLToPath(new URL('restore-moments.mjs', import.meta.url));
    await promisify(execFile)(process.execPath, [program, url, dir, ...moments.map(String)]);
    let before = 0;
    for (const moment of moments) {
      const said = new Date(moment).toISOString();
      const rows = rowsOf(join(dir, `${moment}.db`));
      const newest = rows.at(-1)?.id ?? 0;
      // Rows are deleted in batches, so the newest says how far the history has come.
      expect(newest, said).toBeGreaterThanOrEqual(before);
      for (const { id, at } of rows) expect(at, said).toBe(commits[id - 1]);
      expect(commits[newest - 1] ?? 0, said).toBeLessThanOrEqual(moment);
      before = newest;
    }
  });

  it('goes round a damaged or missing object where another path leads to the same moment', async () => {
    const copy = copyOfBucket();
    const compacted = levelFiles(1, copy).find((name) => name.slice(0, 16) !== name.slice(17, 33))!;
    flip(join(copy, 'ltx/1', compacted), 300);
    const snapshots = levelFiles(9, copy);
    rmSync(join(copy, 'ltx/9', snapshots.at(-1)!));
    const { path, run } = await restored(`file://${copy}`);
    expect(run.code, run.stderr).toBe(0);
    expect(run.stderr).toContain(`${compacted} cannot be used`);
    const whole = await restored(url);
    expect(readFileSync(path).equals(readFileSync(whole.path))).toBe(true);
  });

  it('says what can be restored where nothing leads to the moment, and restores that', async () => {
    const newest = levelFiles(0).at(-1)!;
    for (const harm of ['cut', 'hole'] as const) {
      const copy = copyOfBucket();
      const file = join(copy, 'ltx/0', newest);
      rmSync(join(copy, 'ltx/1'), { recursive: true, force: true });
      if (harm === 'cut') writeFileSync(file, readFileSync(file).subarray(0, 150));
      else rmSync(join(copy, 'ltx/0', levelFiles(0).at(-2)!));
      const { path, run } = await restored(`file://${copy}`);
      expect(run.code).toBe(1);
      expect(existsSync(path)).toBe(false);
      expect(run.stderr).toContain('[ERR_RESTORE_DAMAGED]');
      if (harm === 'hole') expect(run.stderr).toMatch(/TXIDs \w+ to \w+ are missing/);
      const instead = /-txid ([0-9a-f]{16})/.exec(run.stderr)?.[1];
      const second = await restored('-txid', instead!, `file://${copy}`);
      expect(second.run.code, second.run.stderr).toBe(0);
      rowsOf(second.path);
    }
  });

  it('lists what there is, and the holes', async () => {
    const listed = await runCli(['backups', '-json', url]);
    const [inventory] = JSON.parse(listed.stdout) as {
      levels: object[];
      newest: { txid: string };
      holes: [];
    }[];
    expect(inventory?.levels[0]).toMatchObject({ level: 0, files: levelFiles(0).length });
    expect(inventory?.newest.txid).toBe(levelFiles(0).at(-1)!.slice(0, 16));
    expect(inventory?.holes).toEqual([]);
    const copy = copyOfBucket();
    rmSync(join(copy, 'ltx/1'), { recursive: true, force: true });
    const gone = levelFiles(0).at(-3)!;
    rmSync(join(copy, 'ltx/0', gone));
    const { stdout } = await runCli(['backups', `file://${copy}`]);
    const txid = gone.slice(0, 16);
    expect(stdout).toContain(`HOLE    TXIDs ${txid} to ${txid} are missing`);
  });

  it('never touches a file that is there', async () => {
    const path = fresh();
    writeFileSync(path, 'mine');
    const refused = await runCli(['restore', '-o', path, url]);
    expect(refused).toMatchObject({ code: 1 });
    expect(refused.stderr).toContain('cannot restore, output path already exists');
    expect(await runCli(['restore', '-o', path, '-if-db-not-exists', url])).toMatchObject({ code: 0 });
    expect(readFileSync(path, 'utf8')).toBe('mine');
  });

  it('leaves with success when there is no backup and that is allowed, else names what is there', async () => {
    const parent = `file://${dir}`;
    const { run } = await restored(parent);
    expect(run.code).toBe(1);
    expect(run.stderr).toContain('[ERR_RESTORE_NOTHING]');
    expect(run.stderr).toContain('bucket');
    expect((await restored('-if-replica-exists', parent)).run).toMatchObject({ code: 0 });
  });

  it('says what a wrong call needs', async () => {
    for (const [flags, text] of [
      [['-timestamp', '2h ago', '-txid', '1', url], 'give one of'],
      [['ftp://host/path'], 'ftp'],
    ] as const) {
      const { run } = await restored(...flags);
      expect(run.code).toBe(2);
      expect(run.stderr).toContain(text);
    }
    const { run } = await restored('-timestamp', '2h ago', url);
    expect(run.stderr).toMatch(/nothing at .* or before; the oldest moment is -txid/);
  });
});
