import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Database from 'better-sqlite3';
import { afterAll, expect, it } from 'vitest';
import { type CliRun, runCli } from '../cli/run-cli.js';

/** `kitefs restore` from what Litestream 0.3.13 wrote: 12 rows, each with the time at which it was inserted. */

const FIXTURE = fileURLToPath(new URL('../fixtures/litestream-0.3', import.meta.url));
/** A checkout does not keep the files' times, by which moments are found. */
const TIMES = JSON.parse(readFileSync(join(FIXTURE, 'times.json'), 'utf8')) as Record<string, number>;
const keyOf = (end: string): string => Object.keys(TIMES).find((key) => key.endsWith(end))!;

const dir = mkdtempSync(join(tmpdir(), 'kitefs-generations-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

let count = 0;
function bucket(): string {
  const path = join(dir, `bucket-${(count += 1)}`);
  cpSync(join(FIXTURE, 'generations'), join(path, 'generations'), { recursive: true });
  for (const [key, ms] of Object.entries(TIMES)) utimesSync(join(path, key), ms / 1000, ms / 1000);
  return path;
}

async function restored(from: string, ...flags: string[]): Promise<{ path: string; run: CliRun }> {
  const path = join(dir, `restored-${(count += 1)}.db`);
  const run = await runCli(['restore', '-o', path, '-integrity-check', 'full', ...flags, `file://${from}`]);
  return { path, run };
}

function timesIn(path: string): number[] {
  const db = new Database(path, { readonly: true });
  try {
    return db.prepare('SELECT at FROM t ORDER BY id').pluck().all() as number[];
  } finally {
    db.close();
  }
}

it('restores the last state, and moments', async () => {
  const from = bucket();
  const { path, run } = await restored(from);
  expect(run.code, run.stderr).toBe(0);
  const all = timesIn(path);
  expect(all).toHaveLength(12);
  for (const end of ['00000000_00001510.wal.lz4', '00000001_00001728.wal.lz4']) {
    const moment = TIMES[keyOf(end)]!;
    const at = await restored(from, '-timestamp', new Date(moment).toISOString());
    expect(at.run.code, at.run.stderr).toBe(0);
    const rows = timesIn(at.path);
    expect(rows).toEqual(all.slice(0, rows.length));
    expect(rows.at(-1)).toBeLessThanOrEqual(moment);
    // 1 s lay between two of Litestream's syncs there.
    expect(all.filter((ms) => ms < moment - 1100).length).toBeLessThanOrEqual(rows.length);
  }
  expect((await runCli(['backups', `file://${from}`])).stdout).toContain(
    'Litestream 0.3: 17 kB, 1 generation, 3 copies',
  );
});

it('goes back to an older copy when the last is damaged', async () => {
  const from = bucket();
  const key = keyOf('00000002.snapshot.lz4');
  const bytes = readFileSync(join(from, key));
  bytes[bytes.length >> 1]! ^= 1;
  writeFileSync(join(from, key), bytes);
  utimesSync(join(from, key), TIMES[key]! / 1000, TIMES[key]! / 1000);
  const { path, run } = await restored(from);
  expect(run.stderr).toContain('Looking for an older copy');
  expect(readFileSync(path).equals(readFileSync((await restored(bucket())).path))).toBe(true);
});

it('says what can be restored when a piece is missing, and that there are no TXIDs', async () => {
  const from = bucket();
  rmSync(join(from, keyOf('00000002_00000238.wal.lz4')));
  const { path, run } = await restored(from);
  expect(run.code).toBe(1);
  expect(existsSync(path)).toBe(false);
  expect(existsSync(`${path}.kitefs-restore-wal`)).toBe(false);
  expect(run.stderr).toContain('[ERR_RESTORE_DAMAGED]');
  const instead = /-timestamp (\S+Z)/.exec(run.stderr)![1]!;
  expect((await restored(from, '-timestamp', instead)).run.code).toBe(0);
  expect((await restored(from, '-txid', '1')).run.stderr).toContain('has no TXIDs');
});
