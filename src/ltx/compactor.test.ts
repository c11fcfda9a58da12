import fc from 'fast-check';
import { expect, test } from 'vitest';
import { pageChecksum } from './checksum.js';
import { compactLtx, LtxCompactor, type CompactOptions } from './compactor.js';
import { LtxDecoder } from './decoder.js';
import { encodeLtx, LtxEncoder } from './encoder.js';

const FLAG = 1n << 63n;
const PAGE_SIZE = 512;

/** A transaction as a model: pages written (to a byte) and the size after it. */
interface Step {
  readonly commitPages: number;
  readonly writes: readonly { readonly pgno: number; readonly byte: number }[];
}

const steps = fc.array(
  fc.record({
    commitPages: fc.integer({ min: 0, max: 8 }),
    writes: fc.array(fc.record({ pgno: fc.integer({ min: 1, max: 8 }), byte: fc.nat(255) }), {
      maxLength: 8,
    }),
  }),
  { minLength: 1, maxLength: 6 },
);

const pageOf = (byte: number): Buffer => Buffer.alloc(PAGE_SIZE, byte);

const checksumOf = (database: readonly number[]): bigint =>
  database.reduce((sum, byte, i) => FLAG | (sum ^ pageChecksum(i + 1, pageOf(byte))), FLAG);

/** Plays the steps from `firstTxid`; returns the files, the database after each, and where it began. */
function play(model: readonly Step[], firstTxid: bigint) {
  let database: number[] = firstTxid === 1n ? [] : [1, 2, 3];
  const states = [database];
  const files = model.map((step, i) => {
    const before = checksumOf(database);
    const written = new Map(step.writes.map((write) => [write.pgno, write.byte]));
    // A transaction writes every page by which the database grows.
    for (let pgno = database.length + 1; pgno <= step.commitPages; pgno++)
      if (!written.has(pgno)) written.set(pgno, 0x77);
    database = Array.from({ length: step.commitPages }, (_, at) => written.get(at + 1) ?? database[at]!);
    states.push(database);
    const txid = firstTxid + BigInt(i);
    return encodeLtx(
      {
        pageSize: PAGE_SIZE,
        commitPages: step.commitPages,
        minTxid: txid,
        maxTxid: txid,
        timestampMs: i,
        preApplyChecksum: txid === 1n ? 0n : before,
        epoch: BigInt(i),
      },
      [...written]
        .filter(([pgno]) => pgno <= step.commitPages)
        .toSorted(([a], [b]) => a - b)
        .map(([pgno, byte]) => ({ pgno, data: pageOf(byte) })),
      checksumOf(database),
    );
  });
  return { files, states };
}

function compact(files: readonly Buffer[], options?: CompactOptions): Buffer {
  const chunks: Buffer[] = [];
  const inputs = files.map((file) => LtxDecoder.fromBuffer(file));
  compactLtx(inputs, new LtxEncoder(), (chunk) => chunks.push(Buffer.from(chunk)), options);
  return Buffer.concat(chunks);
}

/** Applies a file to a database of the model and checks what it claims. */
function apply(file: Buffer, before: readonly number[]): { database: number[]; ltx: LtxDecoder } {
  const ltx = LtxDecoder.fromBuffer(file, { exact: true });
  const database: number[] = before.slice(0, ltx.header.commitPages);
  while (ltx.next()) database[ltx.pgno - 1] = ltx.page[0]!;
  return { database, ltx };
}

test('Files of a range compacted in any grouping give the same database as one after another', () => {
  fc.assert(
    fc.property(steps, fc.boolean(), fc.nat(), (model, snapshot, cut) => {
      const { files, states } = play(model, snapshot ? 1n : 5n);
      const all = compact(files);
      const { database, ltx } = apply(all, states[0]!);
      expect(database).toEqual(states.at(-1));
      expect(ltx.trailer.postApplyChecksum).toBe(checksumOf(states.at(-1)!));
      expect(ltx.header).toMatchObject({
        minTxid: snapshot ? 1n : 5n,
        maxTxid: (snapshot ? 0n : 4n) + BigInt(files.length),
        preApplyChecksum: snapshot ? 0n : checksumOf(states[0]!),
        epoch: BigInt(files.length - 1),
      });
      const at = cut % files.length;
      if (at > 0)
        expect(compact([compact(files.slice(0, at)), compact(files.slice(at))]).equals(all)).toBe(true);
    }),
    { numRuns: 150 },
  );
});

test('Without checksums the pages are the same and no database checksum is written', () => {
  fc.assert(
    fc.property(
      steps.filter((model) => model.at(-1)!.commitPages > 0),
      (model) => {
        const { files, states } = play(model, 5n);
        const { database, ltx } = apply(compact(files, { noChecksum: true }), states[0]!);
        expect(database).toEqual(states.at(-1));
        expect(ltx.header).toMatchObject({ noChecksum: true, preApplyChecksum: 0n });
        expect(ltx.trailer.postApplyChecksum).toBe(0n);
      },
    ),
    { numRuns: 50 },
  );
});

const three: Step[] = [3, 4, 5].map((commitPages) => ({
  commitPages,
  writes: [{ pgno: 1, byte: commitPages }],
}));

test('Work goes in steps of as many pages as asked for', () => {
  const { files } = play(three, 1n);
  const chunks: Buffer[] = [];
  const inputs = files.map((file) => LtxDecoder.fromBuffer(file));
  const compactor = new LtxCompactor(inputs, new LtxEncoder(), (chunk) => chunks.push(Buffer.from(chunk)));
  let pauses = 0;
  while (!compactor.step(1)) pauses++;
  expect(pauses).toBe(5);
  expect(Buffer.concat(chunks).equals(compact(files))).toBe(true);
});

test('A gap, an overlap, another history, another page size or nothing at all is refused', () => {
  const refused = expect.objectContaining({ code: 'ERR_LTX_NOT_CONTIGUOUS' });
  const { files } = play(three, 5n);
  const other = play([{ commitPages: 3, writes: [{ pgno: 2, byte: 9 }] }, ...three.slice(1)], 5n).files;
  const header = LtxDecoder.fromBuffer(files[1]!).header;
  const larger = encodeLtx({ ...header, pageSize: 1024 }, [], FLAG | 1n);
  expect(() => compact([])).toThrow(refused);
  expect(() => compact([files[0]!, files[2]!])).toThrow(refused);
  expect(() => compact([files[0]!, files[0]!])).toThrow(refused);
  expect(() => compact([files[1]!, files[0]!])).toThrow(refused);
  expect(() => compact([other[0]!, files[1]!])).toThrow(refused);
  expect(() => compact([files[0]!, larger])).toThrow(refused);
});

test('A damaged input stops the compaction', () => {
  const { files } = play(three, 5n);
  const broken = Buffer.from(files[1]!);
  broken[broken.length - 1]! ^= 1;
  expect(() => compact([files[0]!, broken, files[2]!])).toThrow(
    expect.objectContaining({ code: 'ERR_LTX_DAMAGED' }),
  );
});
