import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import Database from 'better-sqlite3';
import { expect, it } from 'vitest';

import { LtxDecoder } from '../ltx/decoder.js';
import { encodeLtx } from '../ltx/encoder.js';
import { lockPgno } from '../ltx/format.js';
import { databasePaths } from '../store/data-directory.js';
import { Log } from '../store/log.js';
import { PageChecksums } from '../store/page-checksums.js';
import type { LogFile } from '../store/types.js';
import { DatabaseCapture } from './database-capture.js';

const PAGE_SIZE = 65_536;

it('leaves the lock page out of a database beyond 1 GiB, even when it is named as dirty', () => {
  const dataDir = mkdtempSync(join(tmpdir(), 'kitefs-capture-'));
  try {
    const paths = databasePaths(dataDir, 'large.db');
    mkdirSync(paths.directory, { recursive: true });
    const db = new Database(paths.database);
    db.pragma(`page_size = ${PAGE_SIZE}`);
    db.exec('create table t(x)');
    db.close();
    // Grown past the lock page, sparse; its log so far says that no page has content.
    const lock = lockPgno(PAGE_SIZE);
    const pages = lock + 2;
    const fd = openSync(paths.database, 'r+');
    const count = Buffer.alloc(4);
    count.writeUInt32BE(pages);
    writeSync(fd, count, 0, 4, 28);
    closeSync(fd);
    truncateSync(paths.database, pages * PAGE_SIZE);
    const log = Log.open(paths.ltx, { repair: true });
    const checksums = new PageChecksums();
    checksums.resize(pages);
    const position = { txid: 2n, checksum: checksums.checksum, epoch: 1n };
    const header = {
      pageSize: PAGE_SIZE,
      commitPages: pages,
      minTxid: 2n,
      maxTxid: 2n,
      timestampMs: 0,
      preApplyChecksum: position.checksum,
    };
    const bytes = encodeLtx({ ...header, epoch: 1n }, [], position.checksum);
    const postApplyChecksum = position.checksum;
    log.append(bytes, { ...header, epoch: 1n, postApplyChecksum, sizeBytes: bytes.length });
    const journalVersions = { write: 1, read: 1 };
    checksums.save(paths.checksums, { position, pageSize: PAGE_SIZE, journalVersions });

    const files: LogFile[] = [];
    const capture = new DatabaseCapture({
      name: 'large.db',
      paths,
      log,
      nodeId: 1n,
      epoch: 1n,
      mayAppend: () => {},
      onFile: ({ file }) => files.push(file),
      onCompensated: () => {},
      nowMs: () => 0,
    });
    expect(capture.load()).toEqual({ current: true });
    const dirtyPages = [1, lock - 1, lock, lock + 1];
    const oldSizeBytes = pages * PAGE_SIZE;
    capture.beforeJournalCommit({ kind: 'unlink', oldSizeBytes, dirtyPages, durable: false });
    const grown = files.at(-1)!;
    expect(grown.commitPages).toBe(pages);

    const ltx = LtxDecoder.fromBuffer(readFileSync(grown.path));
    const found: number[] = [];
    while (ltx.next()) found.push(ltx.pgno);
    expect(found).toEqual([1, lock - 1, lock + 1]);
    expect(capture.readCommitted([lock - 1, lock, lock + 1]).pages.map((page) => page.pgno)).toEqual([
      lock - 1,
      lock + 1,
    ]);
    capture.close();
  } finally {
    rmSync(dataDir, { recursive: true });
  }
});
