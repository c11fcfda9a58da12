/**
 * Restoring a database of 25 million pages of which one in a thousand holds something: `npm run bench sparse`. PAGES changes the size, DIR keeps what is made for
 * the next time. Prints seconds, the largest resident memory, and what the restored file takes on the disk.
 */
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseChecksum, pageChecksumInto } from '../src/ltx/checksum.js';
import { LtxEncoder } from '../src/ltx/encoder.js';
import { lockPgno } from '../src/ltx/format.js';
import { ltxFileName } from '../src/ltx/position.js';
import { measure } from './measure.js';

const PAGES = Number(process.env['PAGES'] ?? 25_000_000);
const PAGE_SIZE = 4096;
const EVERY = 1000;

const page = Buffer.alloc(PAGE_SIZE);
const zeros = Buffer.alloc(PAGE_SIZE);

function fill(pgno: number): Buffer {
  if (pgno % EVERY !== 1) return zeros;
  for (let at = 0; at < PAGE_SIZE; at += 4) page.writeUInt32LE(Math.imul(pgno + at, 0x9e3779b1) >>> 0, at);
  return page;
}

/** The only object of a backup: a snapshot, stamped with the checksum of all pages. */
function makeBackup(dir: string): void {
  const lock = lockPgno(PAGE_SIZE);
  const total = new DatabaseChecksum();
  const sum = new Uint32Array(2);
  for (let pgno = 1; pgno <= PAGES; pgno += 1) {
    if (pgno === lock) continue;
    pageChecksumInto(pgno, fill(pgno), sum, 0);
    total.toggle(sum[0]!, sum[1]!);
  }
  const folder = join(dir, 'ltx/9');
  const making = join(dir, 'making');
  mkdirSync(making, { recursive: true });
  const range = { minTxid: 1n, maxTxid: 1n };
  const fd = openSync(join(making, ltxFileName(range)), 'w');
  const encoder = new LtxEncoder();
  const sizes = { pageSize: PAGE_SIZE, commitPages: PAGES, timestampMs: Date.now(), preApplyChecksum: 0n };
  const stamp = { epoch: 1n, clusterTxid: 1n, clusterChecksum: total.value };
  encoder.begin({ ...sizes, ...range, ...stamp, noChecksum: true }, (chunk) => void writeSync(fd, chunk));
  for (let pgno = 1; pgno <= PAGES; pgno += 1) if (pgno !== lock) encoder.addPage(pgno, fill(pgno));
  encoder.end(0n);
  closeSync(fd);
  mkdirSync(join(dir, 'ltx'), { recursive: true });
  renameSync(making, folder);
}

function check(path: string): void {
  const fd = openSync(path, 'r');
  const found = Buffer.alloc(PAGE_SIZE);
  for (let pgno = 1; pgno <= PAGES; pgno += Math.max(1, Math.floor(PAGES / 100_000)) * EVERY) {
    for (const one of [pgno, pgno + 1]) {
      readSync(fd, found, 0, PAGE_SIZE, (one - 1) * PAGE_SIZE);
      if (one <= PAGES && one !== lockPgno(PAGE_SIZE) && !found.equals(fill(one)))
        throw new Error(`page ${one} is not what was backed up`);
    }
  }
  closeSync(fd);
}

const kept = process.env['DIR'];
const dir = kept ?? mkdtempSync(join(tmpdir(), 'kitefs-bench-sparse-'));
try {
  if (!existsSync(join(dir, 'ltx/9'))) makeBackup(dir);
  const output = join(dir, 'restored.db');
  const cli = join(process.cwd(), 'dist/cli/main.js');
  const { seconds, peakMb } = await measure(
    process.execPath,
    [cli, 'restore', '-o', output, `file://${dir}`],
    process.env,
  );
  check(output);
  const { size, blocks } = statSync(output);
  console.log(`\nRestore of ${PAGES} pages, one in ${EVERY} of which holds something, from a folder`);
  console.table([
    {
      'size GB': (size / 1e9).toFixed(1),
      'object GB': (
        statSync(join(dir, 'ltx/9', ltxFileName({ minTxid: 1n, maxTxid: 1n }))).size / 1e9
      ).toFixed(2),
      'on disk GB': ((blocks * 512) / 1e9).toFixed(2),
      seconds: seconds.toFixed(0),
      'MB/s': (size / 1e6 / seconds).toFixed(0),
      'peak MB': peakMb.toFixed(0),
      target: '200 MB',
    },
  ]);
} finally {
  rmSync(kept === undefined ? dir : join(dir, 'restored.db'), { recursive: true, force: true });
}
