import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, unlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MessageChannel } from 'node:worker_threads';

import Database from 'better-sqlite3';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

import { ControlBlock, MountState } from '../fuse/control-block.js';
import { databasePaths } from '../store/data-directory.js';
import { Log } from '../store/log.js';
import { CaptureService } from './capture-service.js';
import { ChangeMark, ChangeMarkReader } from '../util/change-mark.js';
import { CommitSignal } from './commit-signal.js';
import { buildSnapshot } from './first-copy.js';
import { GateClient } from './gate-client.js';
import type { CaptureNotice, GateRequest } from './messages.js';
import { LtxDecoder } from '../ltx/decoder.js';

/** The service and the gate together, as the threads put them, but on one event loop. */

let dataDir: string;
let control: ControlBlock;
let service: CaptureService;
let mark: ChangeMark;
let gate: GateClient;
let running: Promise<void>;
let notices: CaptureNotice[];
let close: () => void;

beforeEach(() => {
  dataDir = mkdtempSync(join(tmpdir(), 'kitefs-capture-'));
  notices = [];
  start();
});
afterEach(async () => {
  await stop();
  rmSync(dataDir, { recursive: true });
});

function start(): void {
  control = new ControlBlock();
  control.epoch = 1n;
  control.state = MountState.primary;
  const signal = new CommitSignal();
  service = new CaptureService({
    dataDir,
    nodeId: 'node1',
    control,
    signal,
    checkBytesPerSecond: 0,
    notify: (notice) => notices.push(notice),
  });
  const { port1, port2 } = new MessageChannel();
  port2.on('message', (request: GateRequest) => {
    void service.answer(request).then((errno) => {
      if (request.op !== 'slot') port2.postMessage({ id: request.id, errno });
    });
  });
  mark = ChangeMark.create()!;
  gate = new GateClient({ port: port1, signal: signal.buffer, mark: mark.buffer }, { events: true });
  close = () => port2.close();
  running = service.run();
}

async function stop(): Promise<void> {
  await service.stop();
  await running;
  close();
}

function makeDatabase(name: string): { db: Database.Database; paths: ReturnType<typeof databasePaths> } {
  const paths = databasePaths(dataDir, name);
  mkdirSync(paths.directory, { recursive: true });
  const db = new Database(paths.database);
  db.pragma('journal_mode = wal');
  db.pragma('wal_autocheckpoint = 0');
  db.exec('create table if not exists t(id integer primary key, x)');
  return { db, paths };
}

const ask = (question: (answer: (errno: number) => void) => void): Promise<number> =>
  new Promise((resolve) => question(resolve));

async function until(done: () => boolean): Promise<void> {
  for (const end = Date.now() + 20_000; !done();) {
    if (Date.now() > end) throw new Error('waited for too long');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

describe('the capture service', () => {
  it('adopts what is there at a promotion and captures several databases side by side', async () => {
    const a = makeDatabase('a.db');
    const b = makeDatabase('folder/b.db');
    const promoted = service.promote(1n);
    expect(promoted.map(({ name, position }) => [name, position.txid])).toEqual([
      ['a.db', 1n],
      ['folder/b.db', 1n],
    ]);
    const slots = [gate.slotOf('a.db'), gate.slotOf('folder/b.db')] as const;
    for (let i = 0; i < 50; i++) {
      for (const [slot, { db, paths }] of [[slots[0], a] as const, [slots[1], b] as const]) {
        db.exec('insert into t(x) values (randomblob(100))');
        gate.walCommitted(slot, statSync(paths.wal).size);
      }
      if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await until(() => ['a.db', 'folder/b.db'].every((name) => service.database(name).position.txid === 51n));
    expect(notices.filter((notice) => notice.kind === 'created').length).toBe(2);
    a.db.close();
    b.db.close();
  });

  it('takes a database that is named only with its first commit, and notes its epoch in each file', async () => {
    service.promote(1n);
    const { db, paths } = makeDatabase('new.db');
    const slot = gate.slotOf('new.db');
    gate.walCommitted(slot, statSync(paths.wal).size);
    await until(() => service.position('new.db')?.txid === 1n);
    expect(Log.open(paths.ltx, { repair: false }).lastFile).toMatchObject({ epoch: 1n, minTxid: 1n });
    db.close();
  });

  it('says that readers may see more before they can, when whoever asks then hears of it', async () => {
    const { db, paths } = makeDatabase('a.db');
    service.promote(1n);
    const slot = gate.slotOf('a.db');
    const reader = ChangeMarkReader.open(mark.path)!;
    // The slot's name goes by message: with the answer to this it is known.
    await ask((answer) => gate.restoresCommitted(slot, 0, Buffer.alloc(0), answer));
    const before = reader.read();
    mark.watch();
    db.exec('insert into t(x) values (1)');
    gate.walCommitted(slot, statSync(paths.wal).size);
    const after = reader.read();
    expect([after === before, service.position('a.db')?.txid]).toEqual([false, 2n]);
    mark.watch();
    // Of what is asked the mount goes on with the answer: by then the mark has moved.
    const change = { kind: 'truncate', fromBytes: 0, durable: false } as const;
    const moved = await new Promise((resolve) =>
      gate.beforeWalChange(slot, change, () => resolve(reader.read() !== after)),
    );
    expect(moved).toBe(true);
    db.close();
  });

  it('refuses to log under an epoch that is over, and answers with an error', async () => {
    const { db } = makeDatabase('a.db');
    service.promote(1n);
    const slot = gate.slotOf('a.db');
    db.exec('insert into t(x) values (1)');
    control.epoch = 2n;
    const change = { kind: 'header', fromBytes: 0, durable: true } as const;
    expect(await ask((answer) => gate.beforeWalChange(slot, change, answer))).not.toBe(0);
    expect(service.position('a.db')?.txid).toBe(1n);
    db.close();
  });

  it('keeps one database’s trouble from the others', async () => {
    const bad = databasePaths(dataDir, 'bad.db');
    mkdirSync(bad.directory, { recursive: true });
    const { writeFileSync } = await import('node:fs');
    writeFileSync(bad.database, 'this is no database');
    const { db, paths } = makeDatabase('good.db');
    const promoted = service.promote(1n);
    expect(promoted[0]).toMatchObject({ name: 'bad.db', error: { code: 'ERR_CAPTURE_DAMAGED' } });
    expect(await ask((answer) => gate.adopt(gate.slotOf('bad.db'), answer))).not.toBe(0);
    db.exec('insert into t(x) values (1)');
    gate.walCommitted(gate.slotOf('good.db'), statSync(paths.wal).size);
    await until(() => service.position('good.db')?.txid === 2n);
    db.close();
  });

  it('captures sessions that are over before it has looked at them once', async () => {
    const slot = gate.slotOf('a.db');
    makeDatabase('a.db').db.close();
    service.promote(1n);
    for (let session = 1; session <= 3; session++) {
      const { db, paths } = makeDatabase('a.db');
      db.exec('insert into t(x) values (randomblob(100))');
      db.pragma('wal_checkpoint(PASSIVE)');
      // In one turn of the event loop: capture is not called between the commit and the end of the WAL.
      gate.walCommitted(slot, statSync(paths.wal).size);
      const change = { kind: 'unlink', fromBytes: 0, durable: false } as const;
      expect(await ask((answer) => gate.beforeWalChange(slot, change, answer))).toBe(0);
      db.close();
      expect(service.position('a.db')?.txid).toBe(1n + BigInt(session));
    }
  });

  it('does not ask about frames that capture has not read, and asks about those it has', async () => {
    const { db, paths } = makeDatabase('a.db');
    service.promote(1n);
    const slot = gate.slotOf('a.db');
    db.exec('insert into t(x) values (1)');
    const end = statSync(paths.wal).size;
    gate.walCommitted(slot, end);
    await until(() => service.position('a.db')?.txid === 2n);
    let errno = -1;
    const at = (fromBytes: number): void =>
      gate.beforeWalChange(slot, { kind: 'overwrite', fromBytes, durable: false }, (got) => (errno = got));
    at(end);
    expect(errno).toBe(0);
    errno = -1;
    at(end - 4096);
    expect(errno).toBe(-1);
    await until(() => errno === 0);
    expect(notices).toContainEqual({ kind: 'compensated', name: 'a.db' });
    db.close();
  });

  it('hands over at a demotion and takes over again without reading the database', async () => {
    const { db, paths } = makeDatabase('a.db');
    service.promote(1n);
    db.exec('insert into t(x) values (1)');
    await service.demote();
    expect(service.position('a.db')).toBeUndefined();
    control.epoch = 2n;
    expect(service.promote(2n)).toMatchObject([{ name: 'a.db', position: { txid: 2n, epoch: 1n } }]);
    db.close();
    // As after kill -9: the marker says that every page has to be compared.
    expect(statSync(join(paths.directory, 'open')).isFile()).toBe(true);
  });

  it('moves a database to another name as a deletion and a new history', async () => {
    const { db, paths } = makeDatabase('a.db');
    service.promote(1n);
    db.pragma('journal_mode = delete');
    db.close();
    const slot = gate.slotOf('a.db');
    expect(await ask((answer) => gate.beforeRename(slot, 'b.db', answer))).toBe(0);
    expect(service.position('b.db')?.txid).toBe(1n);
    expect(Log.open(paths.ltx, { repair: false }).lastFile).toMatchObject({ commitPages: 0 });
    unlinkSync(paths.database);
  });

  it('makes a first copy of a database that is written all the time', async () => {
    const { db, paths } = makeDatabase('a.db');
    for (let i = 0; i < 300; i++) db.exec('insert into t(x) values (randomblob(3000))');
    service.promote(1n);
    const slot = gate.slotOf('a.db');
    const log = Log.open(paths.ltx, { repair: false });
    const source = await buildSnapshot(
      {
        position: async (name) => service.position(name),
        readCommittedPages: async (name, pgnos) => {
          db.exec('update t set x = randomblob(2000) where id = abs(random()) % 300');
          gate.walCommitted(slot, statSync(paths.wal).size);
          const pages = service.database(name).readCommitted(pgnos);
          for (const notice of notices.splice(0)) {
            if (notice.kind === 'transaction') log.noted(notice.file);
          }
          return pages;
        },
        differingPages: async (name, first, theirs) => service.database(name).differing(first, theirs),
      },
      'a.db',
      log,
      dataDir,
    );
    expect(source.file).toMatchObject({ minTxid: 1n, preApplyChecksum: 0n });
    const chunks: Buffer[] = [];
    for await (const chunk of source.chunks()) chunks.push(chunk);
    const ltx = LtxDecoder.fromBuffer(Buffer.concat(chunks));
    while (ltx.next());
    expect(ltx.trailer.postApplyChecksum).toBe(source.file.postApplyChecksum);
    expect(log.contains({ txid: source.file.maxTxid, checksum: source.file.postApplyChecksum })).toBe(true);
    db.close();
  });
});

describe('a first copy while a rollback-mode transaction runs', () => {
  it('has no page of it when it is rolled back (trap 8)', async () => {
    const { db, paths } = makeDatabase('a.db');
    for (let i = 0; i < 50; i++) db.exec('insert into t(x) values (randomblob(3000))');
    db.pragma('journal_mode = delete');
    service.promote(1n);
    const committed = readFileSync(paths.database);
    db.pragma('cache_size = 5');
    db.exec('begin; update t set x = randomblob(3000)');
    expect(readFileSync(paths.database).equals(committed)).toBe(false);
    const source = await buildSnapshot(
      {
        position: async (name) => service.position(name),
        readCommittedPages: async (name, pgnos) => {
          const pages = service.database(name).readCommitted(pgnos);
          // All pages were read once, most of them as the transaction has written them.
          if (pages.commitPages <= Math.max(...pgnos) && db.inTransaction) db.exec('rollback');
          return pages;
        },
        differingPages: async (name, first, theirs) => service.database(name).differing(first, theirs),
      },
      'a.db',
      Log.open(paths.ltx, { repair: false }),
      dataDir,
    );
    const chunks: Buffer[] = [];
    for await (const chunk of source.chunks()) chunks.push(chunk);
    const ltx = LtxDecoder.fromBuffer(Buffer.concat(chunks));
    while (ltx.next()) {
      const at = (ltx.pgno - 1) * ltx.page.length;
      expect(committed.subarray(at, at + ltx.page.length).equals(ltx.page)).toBe(true);
    }
    db.close();
  });
});
