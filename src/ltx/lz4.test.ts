import fc from 'fast-check';
import { expect, test } from 'vitest';
import { areaOf, blockBound, decompressBlock, SLACK_BYTES } from './lz4.js';
import { compressPage } from './page-codec.js';
import { Xxh32 } from './xxh32.js';

/** Bytes with what LZ4 looks for: runs, repeats from near and far, and noise between. */
const compressible = fc
  .array(
    fc.oneof(
      fc.uint8Array({ minLength: 1, maxLength: 90 }).map((bytes) => ({ noise: bytes })),
      fc.record({ back: fc.integer({ min: 1, max: 5000 }), length: fc.integer({ min: 1, max: 700 }) }),
    ),
    { maxLength: 40 },
  )
  .map((pieces) => {
    const bytes: number[] = [];
    for (const piece of pieces) {
      if ('noise' in piece) bytes.push(...piece.noise);
      else for (let i = 0; i < piece.length; i++) bytes.push(bytes.at(-piece.back) ?? 0);
    }
    return Buffer.from(bytes);
  });

function compress(bytes: Buffer): Buffer {
  const block = Buffer.from(compressPage(bytes));
  expect(block.length).toBeLessThanOrEqual(blockBound(bytes.length));
  return block;
}

function decompress(block: Buffer, size: number): Buffer | undefined {
  const to = areaOf(Buffer.alloc(5 + size + SLACK_BYTES));
  const end = decompressBlock(areaOf(block), 0, block.length, to, 5, 5 + size);
  expect(to.bytes.subarray(0, 5)).toEqual(Buffer.alloc(5));
  return end === 5 + size ? to.bytes.subarray(5, end) : undefined;
}

test('What was compressed decompresses to the same bytes', () => {
  fc.assert(
    fc.property(compressible, (bytes) => {
      expect(decompress(compress(bytes), bytes.length)?.equals(bytes)).toBe(true);
    }),
    { numRuns: 300 },
  );
});

test('A block does not depend on what was compressed before it', () => {
  fc.assert(
    fc.property(compressible, compressible, (first, second) => {
      const alone = Buffer.from(compress(first));
      for (let i = 0; i < 20; i++) compress(second);
      expect(compress(first).equals(alone)).toBe(true);
    }),
    { numRuns: 60 },
  );
});

test('Random bytes are stored as literals within the bound, at every page size', () => {
  for (let size = 512; size <= 65536; size *= 2) {
    const bytes = Buffer.from(
      Array.from({ length: size }, (_, i) => (Math.imul(i + size, 2654435761) >>> 21) & 0xff),
    );
    expect(decompress(compress(bytes), size)?.equals(bytes)).toBe(true);
  }
});

test('A changed or cut block never writes outside its area', () => {
  fc.assert(
    fc.property(
      compressible,
      fc.nat(),
      fc.integer({ min: 1, max: 255 }),
      fc.nat(),
      (bytes, at, change, cut) => {
        const block = Buffer.from(compress(bytes));
        block[at % block.length]! ^= change;
        decompress(block, bytes.length);
        const whole = compress(bytes);
        expect(decompress(whole.subarray(0, cut % whole.length), bytes.length + 1)).toBeUndefined();
      },
    ),
    { numRuns: 300 },
  );
});

test('xxHash32 gives the published values, in one piece and in many', () => {
  const digest = (text: string, step: number): number => {
    const hash = new Xxh32();
    const bytes = Buffer.from(text);
    for (let at = 0; at < bytes.length; at += step) hash.update(bytes, at, Math.min(bytes.length, at + step));
    return hash.digest();
  };
  expect(digest('', 1)).toBe(0x02cc5d05);
  expect(digest('abc', 3)).toBe(0x32d153ff);
  const long = 'Nobody inspects the spammish repetition';
  for (const step of [1, 5, 15, 16, 17, 39]) expect(digest(long, step)).toBe(0xe2293b2f);
});
