import { closeSync, fstatSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DatabaseChecksum, pageChecksum } from '../ltx/checksum.js';
import { compactLtx } from '../ltx/compactor.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { encodeLtx, LtxEncoder, type LtxPage } from '../ltx/encoder.js';
import { DatabaseWriter } from './database-writer.js';

const PAGE_SIZE = 512;

let folder = '';
let fd = -1;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'kitefs-restore-'));
  fd = openSync(join(folder, 'db'), 'w+');
});
afterEach(() => {
  closeSync(fd);
  rmSync(folder, { recursive: true });
});

const written = (): Buffer => readFileSync(join(folder, 'db'));
const page = (fill: number, size = PAGE_SIZE): Buffer => Buffer.alloc(size, fill);

function checksumOf(image: Buffer, pageSize = PAGE_SIZE): bigint {
  const sum = new DatabaseChecksum();
  for (let at = 0; at < image.length; at += pageSize) {
    const one = pageChecksum(at / pageSize + 1, image.subarray(at, at + pageSize));
    sum.toggle(Number(one >> 32n), Number(one & 0xffffffffn));
  }
  return sum.value;
}

/** An object of a bucket; `stamp` is the database's checksum after it. */
function object(txid: number, pages: readonly LtxPage[], commitPages: number, stamp?: bigint): Buffer {
  const pageSize = pages[0]?.data.length ?? PAGE_SIZE;
  const common = { pageSize, commitPages, timestampMs: txid, preApplyChecksum: 0n, noChecksum: true };
  const range = { minTxid: BigInt(txid), maxTxid: BigInt(txid) };
  const stamped = stamp === undefined ? {} : { epoch: 1n, clusterTxid: 9n, clusterChecksum: stamp };
  return encodeLtx({ ...common, ...range, ...stamped }, pages, 0n);
}

const apply = (writer: DatabaseWriter, file: Buffer): unknown => writer.apply(LtxDecoder.fromBuffer(file));

describe('writing a database from LTX files', () => {
  it('makes every state of a history, whatever it grows and shrinks, from single files and merged ones', () => {
    const change = fc.record({ commit: fc.integer({ min: 1, max: 12 }), touched: fc.array(fc.nat(11)) });
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 8 }), fc.nat(7), (changes, split) => {
        let image = Buffer.alloc(0);
        const files = changes.map(({ commit, touched }, at) => {
          const before = image.length / PAGE_SIZE;
          const numbers = new Set(touched.map((one) => one + 1).filter((pgno) => pgno <= commit));
          for (let pgno = before + 1; pgno <= commit; pgno++) numbers.add(pgno);
          const next = Buffer.alloc(commit * PAGE_SIZE);
          image.copy(next);
          const pages = [...numbers]
            .toSorted((a, b) => a - b)
            .map((pgno) => ({ pgno, data: page(16 * (at + 1) + pgno) }));
          for (const { pgno, data } of pages) data.copy(next, (pgno - 1) * PAGE_SIZE);
          image = next;
          return object(at + 1, pages, commit, checksumOf(image));
        });
        const merged = (some: readonly Buffer[]): Buffer[] => {
          const chunks: Buffer[] = [];
          const sink = (chunk: Buffer): number => chunks.push(Buffer.from(chunk));
          const inputs = some.map((file) => LtxDecoder.fromBuffer(file));
          if (some.length > 0) compactLtx(inputs, new LtxEncoder(), sink, { noChecksum: true });
          return some.length > 0 ? [Buffer.concat(chunks)] : [];
        };
        const at = split % files.length;
        for (const path of [files, [...merged(files.slice(0, at)), ...merged(files.slice(at))]]) {
          const writer = new DatabaseWriter(fd);
          for (const file of path) apply(writer, file);
          expect(written().equals(image)).toBe(true);
          expect(writer.state).toEqual({
            pageSize: PAGE_SIZE,
            pages: image.length / PAGE_SIZE,
            checksum: checksumOf(image),
          });
          expect(DatabaseWriter.measure(fd, PAGE_SIZE, image.length / PAGE_SIZE)).toEqual(writer.state);
        }
      }),
      { numRuns: 200 },
    );
  });

  it('refuses pages that are not those of the commit', () => {
    const writer = new DatabaseWriter(fd);
    const file = object(1, [{ pgno: 1, data: page(1) }], 1, checksumOf(page(2)));
    expect(() => apply(writer, file)).toThrow(/not those of the transaction/);
  });

  it('goes on from a state with pages of later files, and compares when all of them have come again', () => {
    const images = [1, 2, 3].map((n) => Buffer.concat([page(1), page(n > 1 ? 2 : 9), page(n > 2 ? 3 : 9)]));
    const files = [
      object(
        1,
        [1, 9, 9].map((fill, at) => ({ pgno: at + 1, data: page(fill) })),
        3,
        checksumOf(images[0]!),
      ),
      object(2, [{ pgno: 2, data: page(2) }], 3, checksumOf(images[1]!)),
      object(3, [{ pgno: 3, data: page(3) }], 3, checksumOf(images[2]!)),
    ];
    const killed = new DatabaseWriter(fd);
    for (const file of files) apply(killed, file);
    // What it had noted was only the first.
    const again = new DatabaseWriter(fd, DatabaseWriter.measure(fd, PAGE_SIZE, 3));
    expect(() => apply(again, files[1]!)).toThrow(/not those of the transaction/);
    const right = new DatabaseWriter(fd, DatabaseWriter.measure(fd, PAGE_SIZE, 3));
    right.apply(LtxDecoder.fromBuffer(files[1]!), false);
    right.apply(LtxDecoder.fromBuffer(files[2]!));
    expect(written().equals(images[2]!)).toBe(true);
  });

  it('refuses a file that lacks a page by which the database grows', () => {
    const writer = new DatabaseWriter(fd);
    apply(writer, object(1, [{ pgno: 1, data: page(1) }], 1));
    expect(() => apply(writer, object(2, [{ pgno: 3, data: page(3) }], 3))).toThrow(/grows by 2/);
  });

  it('takes a change of the page size as a whole new database', () => {
    const writer = new DatabaseWriter(fd);
    apply(
      writer,
      object(
        1,
        [1, 2, 3].map((pgno) => ({ pgno, data: page(pgno) })),
        3,
      ),
    );
    const larger = [1, 2].map((pgno) => ({ pgno, data: page(7, 1024) }));
    apply(writer, object(2, larger, 2, checksumOf(Buffer.alloc(2048, 7), 1024)));
    expect(written().equals(Buffer.alloc(2048, 7))).toBe(true);
    expect(() => apply(writer, object(3, [{ pgno: 1, data: page(1) }], 2))).toThrow(/grows by 2/);
  });

  it('leaves the lock page empty', () => {
    const large = 65536;
    const commit = 0x40000000 / large + 2;
    const writer = new DatabaseWriter(fd, { pageSize: large, pages: commit - 3, checksum: 0n });
    const pages = [commit - 2, commit].map((pgno) => ({ pgno, data: page(5, large) }));
    apply(writer, object(2, pages, commit));
    expect(writer.state.pages).toBe(commit);
    expect(() => apply(writer, object(3, [{ pgno: 1, data: page(1, large) }], commit - 1))).not.toThrow();
  });

  it('leaves holes for pages of zeros, also where something was before', () => {
    const PAGES = 2000;
    const size = 4096;
    const writer = new DatabaseWriter(fd);
    const state = (data: (pgno: number) => number): { pages: LtxPage[]; image: Buffer } => {
      const pages = Array.from({ length: PAGES }, (_, i) => ({ pgno: i + 1, data: page(data(i + 1), size) }));
      return { pages, image: Buffer.concat(pages.map((one) => one.data)) };
    };
    const sparse = state((pgno) => (pgno % 500 === 1 ? pgno : 0));
    apply(writer, object(1, sparse.pages, PAGES, checksumOf(sparse.image, size)));
    expect(written().equals(sparse.image)).toBe(true);
    expect(fstatSync(fd).blocks * 512).toBeLessThan((PAGES * size) / 10);
    const full = state((pgno) => 1 + (pgno % 7));
    apply(writer, object(2, full.pages, PAGES, checksumOf(full.image, size)));
    apply(writer, object(3, [full.pages[0]!], 1, checksumOf(full.pages[0]!.data as Buffer, size)));
    const last = [full.pages[0]!, ...sparse.pages.slice(1)];
    const image = Buffer.concat(last.map(({ data }) => data));
    apply(writer, object(4, sparse.pages.slice(1), PAGES, checksumOf(image, size)));
    expect(written().equals(image)).toBe(true);
  });
});
