import { expect, it } from 'vitest';
import type { BackupFile } from '../backup/layout.js';
import type { LtxHeader } from '../ltx/format.js';
import { newestWhere } from './moments.js';

const files: BackupFile[] = [];
for (let txid = 1n; txid <= 1000n; txid += 1n)
  files.push({ level: 0, minTxid: txid, maxTxid: txid, key: `${txid}`, sizeBytes: 1, modifiedMs: 0 });
for (let end = 30n; end <= 990n; end += 30n)
  files.push({ level: 1, minTxid: end - 29n, maxTxid: end, key: `1-${end}`, sizeBytes: 1, modifiedMs: 0 });

it('finds the newest file before a moment with few requests, also where some cannot be read', async () => {
  for (const gone of [[], ['500', '501', '502'], ['1-480']]) {
    const read: string[] = [];
    const header = async (file: BackupFile): Promise<LtxHeader | undefined> => {
      read.push(file.key);
      await Promise.resolve();
      return gone.includes(file.key)
        ? undefined
        : ({ timestampMs: 10 * Number(file.maxTxid) } as unknown as LtxHeader);
    };
    const at = async (ms: number): Promise<bigint | undefined> =>
      (await newestWhere(files, header, ({ timestampMs }) => timestampMs <= ms))?.file.maxTxid;
    expect(await at(5019)).toBe(gone.includes('501') ? 499n : 501n);
    expect(await at(9)).toBeUndefined();
    expect(await at(99_999)).toBe(1000n);
    expect(read.length).toBeLessThan(60);
  }
});
