import { afterEach, expect, test } from 'vitest';

import { Rig } from './rig.js';

const rigs: Rig[] = [];
const start = async (options: Parameters<typeof Rig.start>[0] = {}): Promise<Rig> => {
  const rig = await Rig.start(options);
  rigs.push(rig);
  return rig;
};

const insertRows = (count: number, bytes: number): string =>
  `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count})
   INSERT INTO t(x) SELECT randomblob(${bytes}) FROM n`;

afterEach(async () => {
  for (const rig of rigs.splice(0)) await rig.stop();
});

for (const pageSize of [512, 1024, 4096, 65_536]) {
  for (const journalMode of ['wal', 'delete'] as const) {
    test(`A ${journalMode} primary with pages of ${pageSize} bytes comes over byte by byte`, async () => {
      const rig = await start({ pageSize, journalMode });
      const { source, applier, name } = rig;
      expect(await applier.open(name)).toMatchObject({ position: { txid: 0n }, pageCount: 0 });
      await applier.apply(name, [source.run('CREATE TABLE t(id INTEGER PRIMARY KEY, x)')]);
      await rig.assertSame();
      for (let i = 0; i < 20; i += 1) {
        const file = source.run(insertRows(i, i * 100));
        const applied = await applier.apply(name, [file]);
        expect(applied.position).toEqual({ txid: file.maxTxid, checksum: file.postApplyChecksum, epoch: 1n });
      }
      await rig.assertSame();
      source.database.exec('DELETE FROM t WHERE id % 3 > 0');
      await applier.apply(name, [source.commit(), source.run('VACUUM')]);
      await rig.assertSame();
      const position = await applier.close(name);
      expect(await applier.open(name)).toMatchObject({ position });
      await rig.assertSame();
    });
  }
}
