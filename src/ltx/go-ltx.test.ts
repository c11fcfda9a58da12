import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DatabaseChecksum, pageChecksum } from './checksum.js';
import { compactLtx } from './compactor.js';
import { LtxDecoder } from './decoder.js';
import { encodeLtx, LtxEncoder } from './encoder.js';

/** The Go implementation is the judge: its command must be there. */
const GO_LTX = fileURLToPath(new URL('../../.cache/bin/ltx', import.meta.url));
const HOW_TO_GET_IT =
  'The Go ltx command is missing. `npm test` installs it; by hand: ' +
  'GOBIN=$PWD/.cache/bin go install github.com/superfly/ltx/cmd/ltx@v0.5.3';

let directory: string;
beforeAll(() => {
  if (!existsSync(GO_LTX)) throw new Error(HOW_TO_GET_IT);
  directory = mkdtempSync(join(tmpdir(), 'kitefs-go-ltx-'));
});
afterAll(() => {
  if (directory) rmSync(directory, { recursive: true });
});

const goLtx = (...args: string[]): string => execFileSync(GO_LTX, args, { encoding: 'utf8' }).trim();
const inDirectory = (name: string): string => join(directory, name);

const PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/** A database with text, blobs that do not compress, and free pages. Returns its bytes. */
function makeDatabase(path: string, pageSize: number, rows: number): Buffer {
  const db = new Database(path);
  db.pragma(`page_size = ${pageSize}`);
  db.exec('CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, name TEXT, noise BLOB)');
  const insert = db.prepare('INSERT INTO t (name, noise) VALUES (?, randomblob(?))');
  db.transaction(() => {
    for (let i = 0; i < rows; i++) insert.run(`row number ${i} of ${rows}`, i % 7 === 0 ? pageSize / 2 : 3);
    db.exec('DELETE FROM t WHERE id % 5 = 0');
  })();
  db.close();
  return readFileSync(path);
}

/** The file that turns one database into another: all pages that differ. */
function transaction(before: Buffer, after: Buffer, pageSize: number, txid: bigint): Buffer {
  const sums = [before, after].map((bytes) => {
    const database = new DatabaseChecksum();
    for (let at = 0; at < bytes.length; at += pageSize) {
      const sum = pageChecksum(at / pageSize + 1, bytes.subarray(at, at + pageSize));
      database.toggle(Number(sum >> 32n), Number(sum & 0xffffffffn));
    }
    return database.value;
  });
  const pages = [];
  for (let at = 0; at < after.length; at += pageSize) {
    const data = after.subarray(at, at + pageSize);
    if (txid === 1n || !data.equals(before.subarray(at, at + pageSize)))
      pages.push({ pgno: at / pageSize + 1, data });
  }
  return encodeLtx(
    {
      pageSize,
      commitPages: after.length / pageSize,
      minTxid: txid,
      maxTxid: txid,
      timestampMs: 1_700_000_000_000,
      preApplyChecksum: txid === 1n ? 0n : sums[0]!,
      walOffset: txid === 1n ? 0 : 32,
      walSizeBytes: txid === 1n ? 0 : 4120,
      walSalt1: txid === 1n ? 0 : 5,
      nodeId: 77n,
      epoch: 12n,
    },
    pages,
    sums[1]!,
  );
}

test.each(PAGE_SIZES)(
  'Go verifies, applies and agrees with what we wrote at page size %i, and we with Go',
  (pageSize) => {
    const path = inDirectory(`${pageSize}.db`);
    const first = makeDatabase(path, pageSize, 60);

    const theirs = inDirectory(`${pageSize}-theirs.ltx`);
    goLtx('encode-db', '-o', theirs, path);
    const theirBytes = readFileSync(theirs);
    const ltx = LtxDecoder.fromBuffer(theirBytes, { exact: true });
    const pages = [];
    while (ltx.next()) pages.push({ pgno: ltx.pgno, data: Buffer.from(ltx.page) });
    expect(Buffer.concat(pages.map((page) => page.data)).equals(first)).toBe(true);
    expect(goLtx('checksum', path)).toBe(ltx.trailer.postApplyChecksum.toString(16));
    expect(encodeLtx(ltx.header, pages, ltx.trailer.postApplyChecksum).equals(theirBytes)).toBe(true);

    const second = makeDatabase(path, pageSize, 30);
    const files = [
      transaction(Buffer.alloc(0), first, pageSize, 1n),
      transaction(first, second, pageSize, 2n),
      transaction(second, first, pageSize, 3n),
    ];
    const chunks: Buffer[] = [];
    const inputs = files.map((file) => LtxDecoder.fromBuffer(file));
    compactLtx(inputs, new LtxEncoder(), (chunk) => chunks.push(Buffer.from(chunk)));
    const plain: Buffer[] = [];
    const again = files.map((file) => LtxDecoder.fromBuffer(file));
    compactLtx(again, new LtxEncoder(), (chunk) => plain.push(Buffer.from(chunk)), { noChecksum: true });
    const paths = [...files, Buffer.concat(chunks), Buffer.concat(plain)].map((file, i) => {
      const name = inDirectory(`${pageSize}-${i + 1}.ltx`);
      writeFileSync(name, file);
      return name;
    });

    expect(goLtx('verify', ...paths)).toBe('ok');
    const applied = inDirectory(`${pageSize}-applied.db`);
    goLtx('apply', '-db', applied, paths[0]!, paths[1]!);
    expect(readFileSync(applied).equals(second)).toBe(true);
    goLtx('apply', '-db', applied, paths[2]!);
    expect(readFileSync(applied).equals(first)).toBe(true);
    for (const compacted of paths.slice(3)) {
      rmSync(applied);
      goLtx('apply', '-db', applied, compacted);
      expect(readFileSync(applied).equals(first)).toBe(true);
    }
  },
);

test('Go reads our header and deletion as we meant them', () => {
  const deletion = inDirectory('deletion.ltx');
  const header = { pageSize: 4096, commitPages: 0, minTxid: 9n, maxTxid: 9n, timestampMs: 2000 };
  writeFileSync(deletion, encodeLtx({ ...header, preApplyChecksum: (1n << 63n) | 5n }, [], 1n << 63n));
  expect(goLtx('verify', deletion)).toBe('ok');
  const dump = goLtx('dump', deletion);
  for (const line of [
    /Page size: 4096/,
    /Commit: {4}0/,
    /Min TXID: {2}0000000000000009/,
    /Pre-apply: 8000000000000005/,
  ])
    expect(dump).toMatch(line);
});
