import { afterEach, beforeEach, expect, it } from 'vitest';
import Database from 'better-sqlite3';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { WalConnection } from '../../src/applier/wal-connection.js';
import { WalTransaction } from '../../src/applier/wal-writer.js';
import { BackgroundCheck } from '../../src/store/background-check.js';
import { Checkpointer } from '../../src/applier/checkpointer.js';

/**
 * One connection of the applier over many turns, beside an application, in a plain folder. In a cluster the applier opens
 * a database again when it finds something wrong, which hides that a turn must not spoil the next one (traps 11 and 15).
 */
const PAGE_SIZE = 4096;
let dir: string;
let application: Database.Database;
let connection: WalConnection;

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-turn-'));
  writeFileSync(join(dir, 'a.db'), image(100));
  connection = await WalConnection.open(
    {
      mountDir: dir,
      dataDir: dir,
      arm: undefined,
      checkpointer: new Checkpointer(),
      check: new BackgroundCheck(0),
      emit: () => undefined,
    },
    'a.db',
    new AbortController().signal,
  );
  application = new Database(join(dir, 'a.db'));
  application.pragma('wal_autocheckpoint = 0');
});

afterEach(() => {
  application.close();
  connection.close();
  rmSync(dir, { recursive: true });
});

/** A database in WAL mode with that many rows, about two to a page. */
function image(rows: number): Buffer {
  const path = join(dir, 'source.db');
  rmSync(path, { force: true });
  const source = new Database(path);
  source.exec('CREATE TABLE t(x)');
  const insert = source.prepare('INSERT INTO t VALUES (randomblob(1900))');
  source.transaction(() => {
    for (let i = 0; i < rows; i += 1) insert.run();
  })();
  source.close();
  const bytes = readFileSync(path);
  bytes.set([2, 2], 18);
  return bytes;
}

/** Applies a whole database as one transaction. */
async function apply(bytes: Buffer): Promise<void> {
  await connection.writing(() => {
    const pages = bytes.length / PAGE_SIZE;
    const wal = WalTransaction.begin(connection.files, PAGE_SIZE, pages);
    for (let at = 0; at < bytes.length; at += PAGE_SIZE) {
      wal?.add(at / PAGE_SIZE + 1, bytes.subarray(at, at + PAGE_SIZE));
    }
    wal?.commit(pages);
  }, false);
}

const rowsSeen = (): unknown => application.prepare('SELECT count(*) FROM t').pluck().get();

it('applies on after a transaction that shrinks the database (trap 11)', async () => {
  for (const rows of [5, 100, 5, 100]) {
    await apply(image(rows));
    expect(rowsSeen()).toBe(rows);
    expect(application.pragma('integrity_check', { simple: true })).toBe('ok');
  }
});

it('applies on after an application has restarted the WAL (trap 15)', async () => {
  for (const rows of [50, 60, 70, 80]) {
    await apply(image(rows));
    expect(application.pragma('wal_checkpoint(TRUNCATE)')).toEqual([{ busy: 0, log: 0, checkpointed: 0 }]);
    await apply(image(rows + 1));
    expect(rowsSeen()).toBe(rows + 1);
    expect(application.pragma('integrity_check', { simple: true })).toBe('ok');
  }
});
