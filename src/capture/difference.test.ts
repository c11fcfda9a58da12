import { randomBytes } from 'node:crypto';

import { afterEach, expect, it } from 'vitest';

import { applyFile, CaptureDatabase } from '../../test/helpers/capture-database.js';
import { DatabaseChecksum, pageChecksumInto } from '../ltx/checksum.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { buildSnapshot, type CopyBase } from './first-copy.js';

const PAGE_BYTES = 4096;

let source: CaptureDatabase | undefined;
afterEach(() => {
  source?.remove();
  source = undefined;
});

/** What a replica says of its pages. */
function baseOf(image: Buffer, txid: bigint): CopyBase {
  const halves = new Uint32Array((image.length / PAGE_BYTES) * 2);
  const total = new DatabaseChecksum();
  for (let at = 0; at < halves.length; at += 2) {
    const page = image.subarray((at / 2) * PAGE_BYTES, (at / 2 + 1) * PAGE_BYTES);
    pageChecksumInto(at / 2 + 1, page, halves, at);
    total.toggle(halves[at]!, halves[at + 1]!);
  }
  return { txid, checksum: total.value, halves };
}

/** Another copy: some pages with other bytes, cut off, or with more at the end. */
function changed(image: Buffer): Buffer {
  const copy = Buffer.from(image);
  for (let i = 0; i < 3; i += 1) {
    const pgno = 1 + Math.floor((Math.random() * copy.length) / PAGE_BYTES);
    randomBytes(50).copy(copy, (pgno - 1) * PAGE_BYTES + 200);
  }
  const pages = Math.floor(Math.random() * 20);
  const shape = Math.random();
  if (shape < 0.3) return copy.subarray(0, copy.length - Math.min(pages, 5) * PAGE_BYTES);
  return shape < 0.6 ? Buffer.concat([copy, randomBytes(pages * PAGE_BYTES)]) : copy;
}

async function difference(
  from: CaptureDatabase,
  base: CopyBase,
  meanwhile: () => void,
): Promise<{ bytes: Buffer; ltx: LtxDecoder }> {
  const built = await buildSnapshot(
    {
      position: async () => from.capture.position,
      readCommittedPages: async (_name, pgnos) => {
        meanwhile();
        return from.capture.readCommitted(pgnos);
      },
      differingPages: async (_name, first, theirs) => {
        meanwhile();
        return from.capture.differing(first, theirs);
      },
    },
    'app.db',
    from.log,
    from.dataDir,
    base,
  );
  const chunks: Buffer[] = [];
  for await (const chunk of built.chunks()) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  const ltx = LtxDecoder.fromBuffer(bytes);
  while (ltx.next());
  expect(bytes.length).toBe(built.file.sizeBytes);
  return { bytes, ltx };
}

it('a difference makes any copy the database as it is, while that is written, grows and shrinks', async () => {
  source = new CaptureDatabase();
  const from = source;
  const db = from.connect();
  db.pragma('journal_mode = wal');
  db.exec('create table t(id integer primary key, x)');
  for (let i = 0; i < 100; i += 1) db.exec('insert into t(x) values (randomblob(3000))');
  from.walCommitted();
  const old = from.image;
  const oldTxid = 50n;
  for (let round = 0; round < 15; round += 1) {
    const copy = changed(round % 2 === 0 ? from.image : old);
    let writes = round % 3 === 0 ? 0 : 4;
    const meanwhile = (): void => {
      if (writes-- <= 0) return;
      if (Math.random() < 0.2) db.exec('delete from t where id % 7 = 1; vacuum');
      else if (Math.random() < 0.3) db.exec('insert into t(x) select randomblob(3000) from t limit 20');
      else db.exec('update t set x = randomblob(2000) where id = abs(random()) % 100');
      from.walCommitted();
    };
    const { bytes, ltx } = await difference(from, baseOf(copy, oldTxid), meanwhile);
    expect(applyFile(copy, bytes).equals(from.image)).toBe(true);
    expect(ltx.header).toMatchObject({
      minTxid: oldTxid + 1n,
      maxTxid: from.capture.position.txid,
      preApplyChecksum: baseOf(copy, 0n).checksum,
    });
    db.exec('update t set x = randomblob(2000) where id = 3');
    from.walCommitted();
  }
  db.close();
});

it('holds no page that is the same, and none at all for an equal copy', async () => {
  source = new CaptureDatabase();
  const db = source.connect();
  db.pragma('journal_mode = wal');
  db.exec('create table t(id integer primary key, x)');
  for (let i = 0; i < 50; i += 1) db.exec('insert into t(x) values (randomblob(3000))');
  source.walCommitted();
  const copy = Buffer.from(source.image);
  copy.fill(7, 5 * PAGE_BYTES + 100, 5 * PAGE_BYTES + 110);
  copy.fill(7, 9 * PAGE_BYTES + 100, 9 * PAGE_BYTES + 110);
  const nothing = (): void => undefined;
  const two = await difference(source, baseOf(copy, 0n), nothing);
  expect(two.ltx.pageCount).toBe(2);
  // What the copy is at is not known: it stands for the last transaction alone.
  expect(two.ltx.header.minTxid).toBe(source.capture.position.txid);
  const none = await difference(source, baseOf(source.image, 1n), nothing);
  expect(none.ltx.pageCount).toBe(0);
  expect(none.ltx.trailer.postApplyChecksum).toBe(none.ltx.header.preApplyChecksum);
  db.close();
});
