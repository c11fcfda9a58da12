import fs from 'node:fs';

import { LtxEncoder } from '../ltx/encoder.js';
import { lockPgno } from '../ltx/format.js';
import { READ_VERSION_OFFSET, WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import type { JournalVersions, PageChecksums } from '../store/page-checksums.js';
import type { EpochPosition } from '../store/types.js';
import type { PageReader } from './page-reader.js';

/** Pages between two turns for others. */
const TURN_PAGES = 256;

/** Writes a whole database as its pages are now, durably, as the snapshot LTX of its position. */
export async function writeSnapshot(
  path: string,
  pages: PageReader,
  at: {
    readonly position: EpochPosition;
    readonly checksums: PageChecksums;
    readonly journalVersions: JournalVersions;
  },
): Promise<void> {
  const { position, checksums, journalVersions } = at;
  const { pageSize, pageCount } = pages;
  const lock = lockPgno(pageSize);
  const encoder = new LtxEncoder();
  const fd = fs.openSync(path, 'w');
  try {
    encoder.begin(
      {
        pageSize,
        commitPages: pageCount,
        minTxid: 1n,
        maxTxid: position.txid > 0n ? position.txid : 1n,
        timestampMs: Date.now(),
        preApplyChecksum: 0n,
        epoch: position.epoch,
      },
      (chunk) => {
        for (let done = 0; done < chunk.length;) done += fs.writeSync(fd, chunk, done);
      },
    );
    for (let pgno = 1; pgno <= pageCount; pgno += 1) {
      if (pgno !== lock) {
        const page = pages.read(pgno);
        if (pgno === 1) {
          page[WRITE_VERSION_OFFSET] = journalVersions.write;
          page[READ_VERSION_OFFSET] = journalVersions.read;
        }
        encoder.addPage(pgno, page);
      }
      if (pgno % TURN_PAGES === 0) await new Promise(setImmediate);
    }
    encoder.end(checksums.checksum);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}
