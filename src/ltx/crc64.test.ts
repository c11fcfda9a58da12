import fc from 'fast-check';
import { expect, test } from 'vitest';
import { DatabaseChecksum, joinHalves, pageChecksum } from './checksum.js';
import { Crc64 } from './crc64.js';

/** The definition, bit by bit, over bigints: slow and plain. */
function slowCrc64(bytes: Uint8Array): bigint {
  let crc = 0xffffffffffffffffn;
  for (const byte of bytes) {
    crc ^= BigInt(byte);
    for (let bit = 0; bit < 8; bit++) crc = crc & 1n ? (crc >> 1n) ^ 0xd800000000000000n : crc >> 1n;
  }
  return crc ^ 0xffffffffffffffffn;
}

test('The CRC of 123456789 is the published check value', () => {
  const crc = new Crc64();
  crc.update(Buffer.from('123456789'), 0, 9);
  expect(joinHalves(crc.valueHigh, crc.valueLow)).toBe(0xb90956c775a41001n);
});

test('A page checksum is bit 63 and the CRC of the page number and the page, at every page size', () => {
  for (const pageSize of [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]) {
    const seed = fc.sample(fc.uint8Array({ minLength: 300, maxLength: 300 }), 1)[0]!;
    const page = Buffer.alloc(pageSize, seed);
    const pgno = 0x01020304;
    const named = Buffer.concat([Buffer.from([1, 2, 3, 4]), page]);
    expect(pageChecksum(pgno, page)).toBe((1n << 63n) | slowCrc64(named));
  }
});

test('A page of a buffer that does not lie on a word boundary has the same checksum', () => {
  const bytes = Buffer.alloc(4096 + 8);
  for (let i = 0; i < 4096; i++) bytes[i + 3] = (i * 131) >> 3;
  const page = bytes.subarray(3, 4099);
  expect(pageChecksum(7, page)).toBe(pageChecksum(7, Buffer.from(page)));
});

test('The checksum of page 1 of 4096 zero bytes is that of the Go implementation', () => {
  expect(pageChecksum(1, Buffer.alloc(4096))).toBe(0xd9328f592d9e733dn);
});

test('A database checksum is the XOR of its pages with bit 63 set, and forgets a page that is taken out', () => {
  const pages = fc.array(fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), { maxLength: 20 });
  fc.assert(
    fc.property(pages, fc.bigInt({ min: 1n << 63n, max: (1n << 64n) - 1n }), (checksums, extra) => {
      const database = new DatabaseChecksum();
      const toggle = (value: bigint): void =>
        database.toggle(Number(value >> 32n), Number(value & 0xffffffffn));
      let expected = 0n;
      for (const checksum of checksums) {
        toggle(checksum);
        expected = (1n << 63n) | (expected ^ checksum);
      }
      expect(database.value).toBe(expected | (1n << 63n));
      const before = database.value;
      toggle(extra);
      toggle(extra);
      expect(database.value).toBe(before);
      expect(new DatabaseChecksum(before).value).toBe(before);
    }),
  );
});
