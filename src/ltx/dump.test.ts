import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { dumpLtxFile, formatLtxDump, verifyLtxFile } from './dump.js';

const fixture = (name: string): string =>
  fileURLToPath(new URL(`../../test/fixtures/ltx/${name}`, import.meta.url));

test('A file is summed up once all of it was checked', async () => {
  const path = fixture('v1-wal.ltx');
  expect(await verifyLtxFile(path)).toMatchObject({ path, version: 'v1', pageCount: 2, sizeBytes: 652 });
  expect(await verifyLtxFile(fixture('v3b.ltx'), { exact: true })).toMatchObject({ pageCount: 7 });
});

test('A dump says what the header, the trailer and each page hold, as JSON and as text', async () => {
  const dump = await dumpLtxFile(fixture('v1-wal.ltx'));
  expect(JSON.parse(JSON.stringify(dump))).toMatchObject({
    version: 'v1',
    pageSize: 512,
    commitPages: 7,
    minTxid: '000000000000000d',
    maxTxid: '000000000000000d',
    timestamp: '1970-01-01T00:00:01.000Z',
    walSalts: ['01020304', '05060708'],
    nodeId: '1122334455667788',
    epoch: 0,
    pages: [{ pgno: 1 }, { pgno: 3 }],
  });
  const text = formatLtxDump(dump);
  expect(text).toMatch(/^TXIDs +000000000000000d to 000000000000000d$/m);
  expect(text).toMatch(/^ {2}3 +[89a-f][0-9a-f]{15}$/m);
});

test('A file that is none of LTX is refused', async () => {
  await expect(dumpLtxFile(fixture('sample.db'))).rejects.toMatchObject({ code: 'ERR_LTX_FOREIGN' });
});
