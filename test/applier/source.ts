import fs from 'node:fs';
import { join } from 'node:path';

import Database from 'better-sqlite3';

import { DatabaseChecksum, pageChecksumInto } from '../../src/ltx/checksum.js';
import { encodeLtx, type LtxPage } from '../../src/ltx/encoder.js';
import { lockPgno } from '../../src/ltx/format.js';
import { databasePaths } from '../../src/store/data-directory.js';
import { Log } from '../../src/store/log.js';
import type { LogFile } from '../../src/store/types.js';

export interface SourceOptions {
  readonly pageSize?: number;
  readonly journalMode?: 'wal' | 'delete';
}

/**
 * A primary without a mount: an ordinary SQLite database, of which each `commit` puts the pages that changed since the last
 * one into the log of a replica's data directory.
 */
export class Source {
  readonly database: Database.Database;
  readonly log: Log;
  #pages: Buffer[] = [];
  #checksum = new DatabaseChecksum();
  #txid = 0n;

  constructor(dir: string, dataDir: string, name: string, options: SourceOptions = {}) {
    fs.mkdirSync(dir, { recursive: true });
    this.database = new Database(join(dir, 'source.db'));
    this.database.pragma(`page_size = ${options.pageSize ?? 4096}`);
    this.database.pragma(`journal_mode = ${options.journalMode ?? 'wal'}`);
    // What a power cut would do to it does not matter here.
    this.database.pragma('synchronous = OFF');
    this.log = Log.open(databasePaths(dataDir, name).ltx, { repair: false });
  }

  /** Runs SQL and commits it; returns the log file. */
  run(sql: string): LogFile {
    this.database.exec(sql);
    return this.commit();
  }

  /** The pages that differ from the last commit, as the next file of the log. `snapshot`: all of them. */
  commit(options: { snapshot?: boolean; epoch?: bigint } = {}): LogFile {
    const bytes = this.database.serialize();
    const pageSize = Number(this.database.pragma('page_size', { simple: true }));
    const next: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += pageSize) next.push(bytes.subarray(at, at + pageSize));
    this.#txid += 1n;
    const snapshot = this.#txid === 1n || options.snapshot === true || this.#pages[0]?.length !== pageSize;
    const before = snapshot ? 0n : this.#checksum.value;
    if (snapshot) {
      this.#pages = [];
      this.#checksum = new DatabaseChecksum();
    }
    const changed = this.#take(next, pageSize);
    const header = {
      pageSize,
      commitPages: next.length,
      minTxid: snapshot ? 1n : this.#txid,
      maxTxid: this.#txid,
      timestampMs: 0,
      preApplyChecksum: before,
      epoch: options.epoch ?? 1n,
    };
    return this.#append(header, changed);
  }

  /** The database is deleted: a file without pages. */
  drop(): LogFile {
    const before = this.#checksum.value;
    this.#txid += 1n;
    this.#pages = [];
    this.#checksum = new DatabaseChecksum();
    const pageSize = Number(this.database.pragma('page_size', { simple: true }));
    const txids = { minTxid: this.#txid, maxTxid: this.#txid };
    return this.#append(
      { pageSize, commitPages: 0, ...txids, timestampMs: 0, preApplyChecksum: before, epoch: 1n },
      [],
    );
  }

  /** The bytes as replicas must have them, journal-mode bytes aside. */
  bytes(): Buffer {
    return withoutJournalMode(this.database.serialize());
  }

  #take(next: readonly Buffer[], pageSize: number): LtxPage[] {
    const halves = new Uint32Array(2);
    const toggle = (pgno: number, page: Buffer): void => {
      pageChecksumInto(pgno, page, halves, 0);
      this.#checksum.toggle(halves[0]!, halves[1]!);
    };
    const changed: LtxPage[] = [];
    for (let pgno = 1; pgno <= Math.max(next.length, this.#pages.length); pgno += 1) {
      const [old, page] = [this.#pages[pgno - 1], next[pgno - 1]];
      if (pgno === lockPgno(pageSize) || (old && page && old.equals(page))) continue;
      if (old) toggle(pgno, old);
      if (page) toggle(pgno, page);
      if (page) changed.push({ pgno, data: page });
    }
    this.#pages = [...next];
    return changed;
  }

  #append(header: Parameters<typeof encodeLtx>[0], pages: readonly LtxPage[]): LogFile {
    const postApplyChecksum = this.#checksum.value;
    const bytes = encodeLtx(header, pages, postApplyChecksum);
    const { minTxid, maxTxid, preApplyChecksum, pageSize, commitPages, epoch } = header;
    return this.log.append(bytes, {
      minTxid,
      maxTxid,
      preApplyChecksum,
      postApplyChecksum,
      pageSize,
      commitPages,
      epoch: epoch ?? 0n,
      sizeBytes: bytes.length,
    });
  }
}

export function withoutJournalMode(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  if (copy.length > 0) copy.fill(0, 18, 20);
  return copy;
}
