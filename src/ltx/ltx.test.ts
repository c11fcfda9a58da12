import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DatabaseChecksum, pageChecksum } from './checksum.js';
import { LtxDecoder } from './decoder.js';
import { encodeLtx, LtxEncoder, type LtxPage } from './encoder.js';
import { completeHeader, lockPgno, type LtxHeaderFields } from './format.js';
import { decodePageFrame, LtxPageIndex } from './page-index.js';
import { PageOrder } from './page-order.js';

const FLAG = 1n << 63n;
const fixture = (name: string): Buffer =>
  readFileSync(fileURLToPath(new URL(`../../test/fixtures/ltx/${name}`, import.meta.url)));

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'kitefs-ltx-'));
});
afterAll(() => rmSync(directory, { recursive: true }));

/** Reads everything; the pages are copies. */
function readAll(ltx: LtxDecoder): LtxPage[] {
  const pages: LtxPage[] = [];
  while (ltx.next()) {
    const checksum = (BigInt(ltx.checksumHigh) << 32n) | BigInt(ltx.checksumLow);
    expect(checksum).toBe(pageChecksum(ltx.pgno, ltx.page));
    pages.push({ pgno: ltx.pgno, data: Buffer.from(ltx.page) });
  }
  return pages;
}

/** Pages as text: comparing buffers byte by byte is what takes a test runner's time. */
const textOf = (pages: readonly LtxPage[]): string[] =>
  pages.map(({ pgno, data }) => `${pgno} ${Buffer.from(data).toString('latin1')}`);

const snapshotHeader = (pageSize: number, commitPages: number): LtxHeaderFields => ({
  pageSize,
  commitPages,
  minTxid: 1n,
  maxTxid: 1n,
  timestampMs: 1000,
  preApplyChecksum: 0n,
});

const checksumOf = (pages: readonly LtxPage[]): bigint =>
  pages.reduce((sum, page) => FLAG | (sum ^ pageChecksum(page.pgno, page.data)), 0n);

const pageOf = (pageSize: number, pgno: number): LtxPage => ({
  pgno,
  data: Buffer.from(Array.from({ length: pageSize }, (_, i) => ((i * pgno) >> 3) & 0x3f)),
});

describe('bytes that others wrote', () => {
  test('A snapshot of two pages is written as the vector says', () => {
    const pages = [50, 51].map((byte, i) => ({ pgno: i + 1, data: Buffer.alloc(1024, byte) }));
    const expected =
      `4c5458310000000000000400000000020000000000000001000000000000000100000000000003e8${'00'.repeat(60)}` +
      '0000000100010000001a1f320100ffffffdc000200000200b03232323232323232323232' +
      '0000000200010000001a1f330100ffffffdc000200000200b03333333333333333333333' +
      `${'00'.repeat(6)}01642402880124000000000000000008e1899b6d587aaaaaf86fcff36247df82`;
    const file = encodeLtx(snapshotHeader(1024, 2), pages, 0xe1899b6d587aaaaan);
    expect(file.toString('hex')).toBe(expected);
  });

  test('A file without checksums and with a place in the WAL has the file checksum of the vector', () => {
    const header = { ...snapshotHeader(512, 1), noChecksum: true };
    const wal = { walOffset: 32, walSizeBytes: 536, walSalt1: 0x11223344, walSalt2: 0x55667788 };
    const file = encodeLtx({ ...header, ...wal }, [{ pgno: 1, data: Buffer.alloc(512, '1') }], 0n);
    expect(file.length).toBe(168);
    expect(file.subarray(-8).toString('hex')).toBe('e4e39f27d25fa5a3');
  });

  test('A deletion has the file checksum of the vector', () => {
    const header = { pageSize: 4096, commitPages: 0, minTxid: 5n, maxTxid: 6n, timestampMs: 2000 };
    const file = encodeLtx({ ...header, preApplyChecksum: FLAG | 5n }, [], FLAG);
    expect(file.length).toBe(131);
    expect(file.subarray(-8).toString('hex')).toBe('9bf813822a638080');
  });

  test.each(['v1-raw', 'v1-lz4', 'v2', 'v3a', 'v3b'])(
    'A %s file of the Go implementation is read to the same database',
    (name) => {
      const ltx = LtxDecoder.fromBuffer(fixture(`${name}.ltx`));
      expect(ltx.version).toBe(name.slice(0, name.startsWith('v1') ? 2 : undefined));
      const pages = readAll(ltx);
      expect(Buffer.concat(pages.map((page) => page.data)).equals(fixture('sample.db'))).toBe(true);
      expect(ltx.trailer.postApplyChecksum).toBe(checksumOf(pages));
    },
  );

  test('The header of a LiteFS transaction is read, and its deletion', () => {
    const transaction = LtxDecoder.fromBuffer(fixture('v1-wal.ltx'));
    expect(readAll(transaction).map((page) => page.pgno)).toEqual([1, 3]);
    expect(transaction.header).toMatchObject({
      minTxid: 13n,
      walOffset: 32,
      walSizeBytes: 1072,
      walSalt1: 0x01020304,
      walSalt2: 0x05060708,
      nodeId: 0x1122334455667788n,
      epoch: 0n,
    });
    const deletion = LtxDecoder.fromBuffer(fixture('v1-deletion.ltx'));
    expect(readAll(deletion)).toEqual([]);
    expect([deletion.version, deletion.header.commitPages]).toEqual(['v1', 0]);
  });

  test('The same snapshot as Go wrote is written byte for byte', () => {
    const theirs = fixture('v3b.ltx');
    const ltx = LtxDecoder.fromBuffer(theirs, { exact: true });
    const pages = readAll(ltx);
    expect(encodeLtx(ltx.header, pages, ltx.trailer.postApplyChecksum).equals(theirs)).toBe(true);
  });
});

describe('what was written is read', () => {
  const pageSizes = fc.constantFrom(512, 1024, 4096, 65536);
  const u64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
  const u32 = fc.integer({ min: 0, max: 0xffffffff });
  const files = fc
    .record({
      pageSize: pageSizes,
      pgnos: fc.uniqueArray(fc.integer({ min: 1, max: 5000 }), { maxLength: 8 }),
      minTxid: fc.bigInt({ min: 2n, max: 1n << 62n }),
      more: fc.bigInt({ min: 0n, max: 1n << 40n }),
      timestampMs: fc.integer({ min: -1e12, max: 4e12 }),
      pre: u64,
      post: u64,
      salts: fc.tuple(u32, u32),
      nodeId: u64,
      epoch: u64,
      noise: fc.uint8Array({ minLength: 1, maxLength: 600 }),
    })
    .map(({ pgnos, noise, ...file }) => ({
      ...file,
      pages: pgnos
        .toSorted((a, b) => a - b)
        .map((pgno) => {
          const data = Buffer.alloc(file.pageSize);
          for (let at = 0; at < data.length; at += 701) data.set(noise.subarray(0, data.length - at), at);
          data.writeUInt32LE(pgno, 100);
          return { pgno, data };
        }),
    }));

  test('Header, pages, index and trailer come back, from memory and from a file', () => {
    const encoder = new LtxEncoder();
    fc.assert(
      fc.property(files, (file) => {
        const header = completeHeader({
          pageSize: file.pageSize,
          commitPages: 5000,
          minTxid: file.minTxid,
          maxTxid: file.minTxid + file.more,
          timestampMs: file.timestampMs,
          preApplyChecksum: file.pre | FLAG,
          walOffset: 32,
          walSizeBytes: 4120,
          walSalt1: file.salts[0],
          walSalt2: file.salts[1],
          nodeId: file.nodeId,
          epoch: file.epoch,
        });
        const bytes = encodeLtx(header, file.pages, file.post | FLAG, encoder);
        const path = join(directory, 'round-trip.ltx');
        writeFileSync(path, bytes);
        const fd = openSync(path, 'r');
        try {
          for (const ltx of [LtxDecoder.fromBuffer(bytes, { exact: true }), LtxDecoder.fromFile(fd)]) {
            expect(textOf(readAll(ltx))).toEqual(textOf(file.pages));
            expect(ltx.header).toEqual(header);
            expect(ltx.version).toBe('v3b');
            expect(ltx.trailer.postApplyChecksum).toBe(file.post | FLAG);
            expect(ltx.sizeBytes).toBe(bytes.length);
          }
          for (const index of [LtxPageIndex.fromBuffer(bytes), LtxPageIndex.fromFile(fd)]) {
            expect([...index.pgnos()]).toEqual(file.pages.map((page) => page.pgno));
            expect(index.find(5001)).toBeUndefined();
            for (const { pgno, data } of file.pages) {
              const { offset, sizeBytes } = index.find(pgno)!;
              const frame = bytes.subarray(offset, offset + sizeBytes);
              expect(decodePageFrame(frame, pgno, file.pageSize).equals(data)).toBe(true);
            }
          }
        } finally {
          closeSync(fd);
        }
      }),
      { numRuns: 60 },
    );
  });

  test('A file of many megabytes goes through in chunks of at most 256 KiB', () => {
    const encoder = new LtxEncoder();
    const path = join(directory, 'large.ltx');
    const fd = openSync(path, 'w+');
    const database = new DatabaseChecksum();
    const halves = new Uint32Array(2);
    const page = Buffer.alloc(4096);
    let largest = 0;
    const fill = (pgno: number): Buffer => {
      for (let i = 0; i < 4096; i += 4) page.writeUInt32LE(Math.imul(pgno * 4096 + i, 2654435761) >>> 0, i);
      return page;
    };
    encoder.begin(snapshotHeader(4096, 2000), (chunk) => {
      largest = Math.max(largest, chunk.length);
      writeFileSync(fd, chunk);
    });
    for (let pgno = 1; pgno <= 2000; pgno++) {
      encoder.addPage(pgno, fill(pgno), halves, 0);
      database.toggle(halves[0]!, halves[1]!);
    }
    const end = encoder.end(database.value);
    expect(largest).toBeLessThanOrEqual(256 * 1024);
    const ltx = LtxDecoder.fromFile(fd, { exact: true });
    while (ltx.next()) expect(ltx.page.equals(fill(ltx.pgno))).toBe(true);
    expect(ltx.pageCount).toBe(2000);
    expect(ltx.sizeBytes).toBe(end.sizeBytes);
    closeSync(fd);
  });

  test('A frame of an older version is found by the index too', () => {
    for (const name of ['v3a.ltx', 'v3b.ltx']) {
      const bytes = fixture(name);
      const { offset, sizeBytes } = LtxPageIndex.fromBuffer(bytes).find(3)!;
      const page = decodePageFrame(bytes.subarray(offset, offset + sizeBytes), 3, 512);
      expect(page).toEqual(fixture('sample.db').subarray(1024, 1536));
    }
  });
});

describe('damage', () => {
  const small = (): Buffer => {
    const pages = [1, 2, 3].map((pgno) => pageOf(512, pgno));
    pages[1] = { pgno: 2, data: Buffer.alloc(512) };
    const header = { ...snapshotHeader(512, 3), epoch: 7n, nodeId: 9n, walOffset: 32, walSizeBytes: 100 };
    return encodeLtx(header, pages, checksumOf(pages));
  };
  const read = (bytes: Buffer, exact: boolean) => (): void => {
    const ltx = LtxDecoder.fromBuffer(bytes, { exact });
    while (ltx.next());
  };
  const damage = expect.objectContaining({ code: expect.stringMatching(/^ERR_LTX_(DAMAGED|FOREIGN)$/) });

  test('Every changed byte is noticed in exact mode, reserved bytes and the index included', () => {
    const bytes = small();
    expect(read(bytes, true)).not.toThrow();
    for (let at = 0; at < bytes.length; at++) {
      for (const change of [1, 2, 0x10, 0x80, 0xff]) {
        const changed = Buffer.from(bytes);
        changed[at]! ^= change;
        expect(read(changed, true), `byte ${at} changed by ${change}`).toThrow(damage);
      }
    }
  });

  test('A changed byte that plain mode lets pass leaves every page as it was', () => {
    const bytes = small();
    const original = textOf(readAll(LtxDecoder.fromBuffer(bytes)));
    for (let at = 0; at < bytes.length; at++) {
      const changed = Buffer.from(bytes);
      changed[at]! ^= 3;
      try {
        expect(textOf(readAll(LtxDecoder.fromBuffer(changed)))).toEqual(original);
      } catch (thrown) {
        expect(thrown).toEqual(damage);
      }
    }
  });

  test.each(['v1-raw', 'v1-lz4', 'v1-wal', 'v1-deletion', 'v2', 'v3a', 'v3b'])(
    'A %s file that was cut off anywhere, or has a byte too many, is noticed',
    (name) => {
      const bytes = fixture(`${name}.ltx`);
      expect(read(bytes, false)).not.toThrow();
      for (let length = 0; length < bytes.length; length += length < 140 ? 1 : 7)
        expect(read(bytes.subarray(0, length), false), `cut to ${length}`).toThrow(damage);
      expect(read(Buffer.concat([bytes, Buffer.alloc(1)]), false)).toThrow(damage);
    },
  );

  test.each(['v1-raw', 'v1-lz4', 'v2', 'v3a', 'v3b'])(
    'A changed byte of a %s file never yields other pages than the file had',
    (name) => {
      const bytes = fixture(`${name}.ltx`);
      const original = textOf(readAll(LtxDecoder.fromBuffer(bytes)));
      for (let at = 0; at < bytes.length; at += 3) {
        const changed = Buffer.from(bytes);
        changed[at]! ^= 0x41;
        try {
          const ltx = LtxDecoder.fromBuffer(changed);
          const pages: LtxPage[] = [];
          while (ltx.next()) pages.push({ pgno: ltx.pgno, data: Buffer.from(ltx.page) });
          expect(textOf(pages)).toEqual(original);
        } catch (thrown) {
          expect(thrown).toEqual(damage);
        }
      }
    },
  );

  test('A cut file on disk is noticed', () => {
    const path = join(directory, 'cut.ltx');
    writeFileSync(path, small().subarray(0, -5));
    const fd = openSync(path, 'r');
    const ltx = LtxDecoder.fromFile(fd);
    expect(() => {
      while (ltx.next());
    }).toThrow(damage);
    closeSync(fd);
  });

  test('A file that is no LTX file is foreign', () => {
    const foreign = expect.objectContaining({ code: 'ERR_LTX_FOREIGN' });
    expect(read(fixture('sample.db'), false)).toThrow(foreign);
  });
});

describe('what the writer refuses', () => {
  const refused = expect.objectContaining({ code: 'ERR_LTX_INVALID' });
  const header: LtxHeaderFields = {
    ...snapshotHeader(512, 9),
    minTxid: 4n,
    maxTxid: 4n,
    preApplyChecksum: FLAG,
  };
  const encode =
    (fields: Partial<LtxHeaderFields>, pgnos: number[], post = FLAG) =>
    () =>
      encodeLtx(
        { ...header, ...fields },
        pgnos.map((pgno) => pageOf(512, pgno)),
        post,
      );

  test('A header, a page or a checksum that the format forbids', () => {
    expect(encode({}, [2, 3])).not.toThrow();
    expect(encode({ pageSize: 1000 }, [])).toThrow(refused);
    expect(encode({ minTxid: 0n }, [])).toThrow(refused);
    expect(encode({ maxTxid: 3n }, [])).toThrow(refused);
    expect(encode({ preApplyChecksum: 5n }, [])).toThrow(refused);
    expect(encode({ walSizeBytes: 5 }, [])).toThrow(refused);
    expect(encode({ minTxid: 1n }, [])).toThrow(refused);
    expect(encode({ pageSize: 1024 }, [2])).toThrow(refused);
    expect(encode({}, [3, 2])).toThrow(refused);
    expect(encode({}, [3, 3])).toThrow(refused);
    expect(encode({}, [10])).toThrow(refused);
    expect(encode({}, [2], 0n)).toThrow(refused);
    expect(encode({ commitPages: 0 }, [], FLAG | 1n)).toThrow(refused);
    expect(encode({ noChecksum: true, preApplyChecksum: 0n }, [2], FLAG)).toThrow(refused);
  });

  test('A snapshot that lacks a page', () => {
    const snapshot = { minTxid: 1n, preApplyChecksum: 0n, commitPages: 3 };
    expect(encode(snapshot, [1, 2, 3])).not.toThrow();
    expect(encode(snapshot, [2, 3])).toThrow(refused);
    expect(encode(snapshot, [1, 3])).toThrow(refused);
    expect(encode(snapshot, [1, 2])).toThrow(refused);
  });

  test('The lock page, which a snapshot passes over', () => {
    const pageSize = 65536;
    const lock = lockPgno(pageSize);
    expect(lock).toBe(16385);
    const order = new PageOrder();
    order.begin(completeHeader(snapshotHeader(pageSize, lock + 2)));
    for (let pgno = 1; pgno < lock; pgno++) expect(order.add(pgno)).toBeUndefined();
    expect(order.add(lock)).toMatch(/lock page/);
    expect(order.add(lock + 2)).toMatch(/without page/);
    expect(order.add(lock + 1)).toBeUndefined();
    expect(order.end()).toMatch(/without page/);
    order.begin(completeHeader(snapshotHeader(pageSize, lock)));
    for (let pgno = 1; pgno < lock; pgno++) order.add(pgno);
    expect(order.end()).toBeUndefined();
  });

  test('An encoder that failed in one file writes the next as if nothing had been', () => {
    const encoder = new LtxEncoder();
    const pages = [pageOf(512, 1), pageOf(512, 4)];
    const expected = encodeLtx(header, pages, FLAG);
    encoder.begin(header, () => undefined);
    encoder.addPage(3, pageOf(512, 3).data);
    expect(() => encoder.addPage(2, pageOf(512, 2).data)).toThrow(refused);
    expect(encodeLtx(header, pages, FLAG, encoder)).toEqual(expected);
  });
});
