import { spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, it } from 'vitest';
import { DatabaseChecksum, pageChecksumInto } from '../../src/ltx/checksum.js';
import { encodeLtx } from '../../src/ltx/encoder.js';
import { ltxFileName } from '../../src/ltx/position.js';

/** kill -9 in the middle of a restore, again and again, until one comes to its end. */

const PROGRAM = fileURLToPath(new URL('restore-noting.mjs', import.meta.url));
const PAGE_SIZE = 4096;
const PAGES = 3000;
const CHANGED = 600;
const OBJECTS = 20;

const dir = mkdtempSync(join(tmpdir(), 'kitefs-restore-killed-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** A bucket of many uploads, each of which changes pages here and there. Returns the database after the last. */
function makeBucket(path: string): Buffer {
  mkdirSync(join(path, 'ltx/0'), { recursive: true });
  const image = Buffer.alloc(PAGES * PAGE_SIZE);
  const sum = new DatabaseChecksum();
  const halves = new Uint32Array(2);
  const toggle = (pgno: number, data: Buffer): void => {
    pageChecksumInto(pgno, data, halves, 0);
    sum.toggle(halves[0]!, halves[1]!);
  };
  for (let txid = 1; txid <= OBJECTS; txid += 1) {
    const numbers = new Set<number>();
    while (numbers.size < (txid === 1 ? PAGES : CHANGED))
      numbers.add(txid === 1 ? numbers.size + 1 : 1 + Math.floor(Math.random() * PAGES));
    const pages = [...numbers]
      .toSorted((a, b) => a - b)
      .map((pgno) => {
        const data = image.subarray((pgno - 1) * PAGE_SIZE, pgno * PAGE_SIZE);
        if (txid > 1) toggle(pgno, data);
        toggle(pgno, randomFillSync(data));
        return { pgno, data };
      });
    const range = { minTxid: BigInt(txid), maxTxid: BigInt(txid) };
    const header = { pageSize: PAGE_SIZE, commitPages: PAGES, timestampMs: txid, preApplyChecksum: 0n };
    const stamp = { noChecksum: true, epoch: 1n, clusterTxid: BigInt(txid), clusterChecksum: sum.value };
    writeFileSync(
      join(path, 'ltx/0', ltxFileName(range)),
      encodeLtx({ ...header, ...range, ...stamp }, pages, 0n),
    );
  }
  return image;
}

/** Runs the restore until it has fetched so many bytes; returns what it said. */
async function runUntil(url: string, output: string, killAtBytes: number): Promise<string> {
  const child = spawn(process.execPath, [PROGRAM, url, output], { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (text: Buffer) => {
    said += text.toString();
    const done = Number(/done (\d+)\n$/.exec(said)?.[1] ?? 0);
    if (done >= killAtBytes) child.kill('SIGKILL');
  });
  await once(child, 'close');
  return said;
}

it('goes on after kill -9 at any point, and ends with the right database', async () => {
  const bucket = join(dir, 'bucket');
  const image = makeBucket(bucket);
  const output = join(dir, 'out', 'app.db');
  mkdirSync(join(dir, 'out'));
  const url = `file://${bucket}`;
  for (let wentOn = 0; wentOn < 3;) {
    // A call that was not killed in time: once more from the start.
    rmSync(output, { force: true });
    let said = '';
    while (!/^restored$/m.test(said)) {
      // Past the first object, which is the whole database, while nothing is there; then wherever the call happens to be.
      const skip = said.includes('going on after') ? 0 : PAGES;
      const killAt = wentOn < 3 ? (skip + Math.random() * 8 * CHANGED) * PAGE_SIZE : Infinity;
      said = await runUntil(url, output, killAt);
      if (said.includes('going on after')) wentOn += 1;
      expect(said).not.toMatch(/anew|cannot be used/);
    }
  }
  expect(readFileSync(output).equals(image)).toBe(true);
  expect(readdirSync(join(dir, 'out'))).toEqual(['app.db']);
});
