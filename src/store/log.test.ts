import fc from 'fast-check';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, expect, test } from 'vitest';
import { pageChecksum } from '../ltx/checksum.js';
import { encodeLtx } from '../ltx/encoder.js';
import { ltxFileName, NO_POSITION } from '../ltx/position.js';
import { Log, type LogFileMeta } from './log.js';
import { LostAndFound } from './lost-and-found.js';

const root = mkdtempSync(join(tmpdir(), 'kitefs-log-test-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

let folders = 0;
function freshData(): { data: string; directory: string } {
  folders += 1;
  const data = join(root, `${folders}`);
  const directory = join(data, 'dbs', 'a.db', 'ltx');
  mkdirSync(directory, { recursive: true });
  return { data, directory };
}

interface Made {
  bytes: Buffer;
  meta: LogFileMeta;
}

/** A transaction file of a database with one page, whose content is `seed`. */
function made(minTxid: number, maxTxid: number, before: bigint, seed: number, epoch = 1n): Made {
  const page = Buffer.alloc(512, seed);
  page.writeUInt32BE(seed, 0);
  const after = pageChecksum(1, page);
  const header = {
    pageSize: 512,
    commitPages: 1,
    minTxid: BigInt(minTxid),
    maxTxid: BigInt(maxTxid),
    timestampMs: 0,
    preApplyChecksum: before,
    epoch,
  };
  const bytes = encodeLtx(header, [{ pgno: 1, data: page }], after);
  const { timestampMs: _, ...said } = header;
  return { bytes, meta: { ...said, sizeBytes: bytes.length, postApplyChecksum: after } };
}

/** Files 1-1, 2-2, ... that follow one another. */
function chain(count: number, epoch = 1n): Made[] {
  const files: Made[] = [];
  for (let txid = 1; txid <= count; txid += 1) {
    files.push(made(txid, txid, files.at(-1)?.meta.postApplyChecksum ?? 0n, txid, epoch));
  }
  return files;
}

function logWith(files: readonly Made[]): { data: string; directory: string; log: Log } {
  const { data, directory } = freshData();
  const log = Log.open(directory, { repair: true });
  for (const { bytes, meta } of files) log.append(bytes, meta);
  return { data, directory, log };
}

const pathOf = (directory: string, { meta }: Made): string => join(directory, ltxFileName(meta));
const positionOf = ({ meta }: Made) => ({
  txid: meta.maxTxid,
  checksum: meta.postApplyChecksum,
  epoch: meta.epoch,
});
const names = (files: readonly { path: string }[] | undefined) => files?.map(({ path }) => basename(path));

test('what was appended is there after a start, with its positions', async () => {
  const files = chain(5);
  const { directory, log } = logWith(files);
  expect(log.lastPosition).toEqual(positionOf(files[4]!));
  await log.close();
  const again = Log.open(directory, { repair: true });
  expect(again.lastPosition).toEqual(positionOf(files[4]!));
  expect(again.fileCount).toBe(5);
  expect(again.setAside).toEqual([]);
  expect(again.filesAfter(NO_POSITION)).toEqual(
    files.map((file) => ({ ...file.meta, path: pathOf(directory, file) })),
  );
  for (const [i, file] of files.entries()) {
    expect(names(again.filesAfter(positionOf(file)))).toEqual(
      files.slice(i + 1).map(({ meta }) => ltxFileName(meta)),
    );
    expect(again.contains({ ...positionOf(file), checksum: 1n })).toBe(false);
  }
});

test('an empty log has no position and holds none', () => {
  const { log } = logWith([]);
  expect(log.lastPosition).toBeUndefined();
  expect(log.firstFile).toBeUndefined();
  expect(log.filesAfter(NO_POSITION)).toBeUndefined();
});

test('a file cut off anywhere by a crash is set aside at the next start, and its TXID can be written again', () => {
  const files = chain(4);
  const last = files[3]!;
  fc.assert(
    fc.property(fc.nat(last.bytes.length - 1), fc.boolean(), (size, flip) => {
      const { directory, log } = logWith(files);
      void log;
      const path = pathOf(directory, last);
      if (flip) {
        const bytes = Buffer.from(last.bytes);
        bytes[size]! ^= 0x40;
        writeFileSync(path, bytes);
      } else truncateSync(path, size);
      const again = Log.open(directory, { repair: true });
      expect(again.lastPosition).toEqual(positionOf(files[2]!));
      expect(again.setAside).toEqual([ltxFileName(last.meta)]);
      expect(existsSync(`${path}.torn`)).toBe(true);
      again.append(last.bytes, last.meta);
      expect(Log.open(directory, { repair: true }).lastPosition).toEqual(positionOf(last));
    }),
    { numRuns: 40 },
  );
});

test('after a power cut the log ends before the first file that is torn or missing', async () => {
  const files = chain(9);
  for (const damage of ['torn', 'missing'] as const) {
    const { directory, log } = logWith(files.slice(0, 3));
    await log.sync();
    for (const { bytes, meta } of files.slice(3)) log.append(bytes, meta);
    const path = pathOf(directory, files[5]!);
    if (damage === 'torn') truncateSync(path, 0);
    else unlinkSync(path);
    const again = Log.open(directory, { repair: true });
    expect(again.lastPosition).toEqual(positionOf(files[4]!));
    expect(again.setAside).toHaveLength(damage === 'torn' ? 4 : 3);
  }
});

test('a durable file that is missing or whose end is unreadable stops the database, and nothing is changed', async () => {
  const files = chain(5);
  const last = files[4]!;
  const refused = async (damage: (directory: string) => void): Promise<void> => {
    const { directory, log } = logWith(files);
    await log.close();
    damage(directory);
    const before = readdirSync(directory);
    expect(() => Log.open(directory, { repair: true })).toThrow(
      expect.objectContaining({ code: 'ERR_STORE_LOG_DAMAGED' }),
    );
    expect(readdirSync(directory)).toEqual(before);
  };
  await refused((directory) => unlinkSync(pathOf(directory, files[2]!)));
  for (let size = 0; size < last.bytes.length; size += 1)
    await refused((directory) => truncateSync(pathOf(directory, last), size));
});

test('a file that does not follow is refused, and nothing of it is left', () => {
  const files = chain(3);
  const { directory, log } = logWith(files);
  const end = files[2]!.meta.postApplyChecksum;
  const wrong = [
    made(5, 5, end, 9),
    made(3, 3, end, 9),
    made(4, 4, end ^ 1n, 9),
    made(4, 4, end, 9, 0n),
    made(1, 3, 0n, 9),
    made(1, 8, 0n, 9, 0n),
  ];
  for (const { bytes, meta } of wrong) {
    expect(() => log.append(bytes, meta)).toThrow(expect.objectContaining({ code: 'ERR_STORE_LOG_ORDER' }));
    const temporary = log.temporaryPath();
    writeFileSync(temporary, bytes);
    expect(() => log.appendPrepared(temporary, meta)).toThrow(
      expect.objectContaining({ code: 'ERR_STORE_LOG_ORDER' }),
    );
    expect(existsSync(temporary)).toBe(true);
    unlinkSync(temporary);
  }
  expect(readdirSync(directory)).toHaveLength(3);
  expect(log.lastPosition).toEqual(positionOf(files[2]!));
});

test('a prepared file is in the log once it is renamed; one whose rename is missing is removed at the next start', () => {
  const [first, second] = chain(2) as [Made, Made];
  const { directory, log } = logWith([first]);
  const temporary = log.temporaryPath();
  writeFileSync(temporary, second.bytes);
  const crashed = log.temporaryPath();
  writeFileSync(crashed, second.bytes.subarray(0, 30));
  log.appendPrepared(temporary, second.meta);
  expect(log.lastPosition).toEqual(positionOf(second));
  const again = Log.open(directory, { repair: true });
  expect(again.lastPosition).toEqual(positionOf(second));
  expect(existsSync(crashed)).toBe(false);
});

test('a snapshot takes the place of older files, which go once it is durable', async () => {
  const files = chain(3);
  const { directory, log } = logWith(files);
  await log.sync();
  const snapshot = made(1, 7, 0n, 70, 2n);
  log.append(snapshot.bytes, snapshot.meta);
  expect(log.fileCount).toBe(1);
  expect(existsSync(pathOf(directory, files[0]!))).toBe(true);
  // A crash before it is durable may tear it: then the older files count.
  truncateSync(pathOf(directory, snapshot), 200);
  expect(Log.open(directory, { repair: true }).lastPosition).toEqual(positionOf(files[2]!));
  const again = Log.open(directory, { repair: true });
  again.append(snapshot.bytes, snapshot.meta);
  const next = made(8, 8, snapshot.meta.postApplyChecksum, 8, 2n);
  again.append(next.bytes, next.meta);
  await again.close();
  expect(readdirSync(directory).filter((name) => name.endsWith('.ltx'))).toEqual([
    ltxFileName(snapshot.meta),
    ltxFileName(next.meta),
  ]);
  expect(names(again.filesAfter(NO_POSITION))).toEqual([ltxFileName(snapshot.meta), ltxFileName(next.meta)]);
  // The snapshot may have swallowed the position of somebody inside it: that is a case for difference.
  expect(again.filesAfter(positionOf(files[1]!))).toBeUndefined();
});

test('retention removes what nobody holds, oldest first, and never the last file', async () => {
  const files = chain(10);
  const { directory, log } = logWith(files);
  const hold = log.hold(4n);
  expect(log.removeBefore(9n)).toHaveLength(4);
  expect(names(log.filesAfter(positionOf(files[3]!)))).toHaveLength(6);
  hold.move(6n);
  expect(log.removeBefore(9n)).toHaveLength(2);
  hold.release();
  expect(log.removeBefore(100n)).toHaveLength(3);
  expect(log.fileCount).toBe(1);
  expect(log.filesAfter(positionOf(files[3]!))).toBeUndefined();
  expect(log.filesAfter(positionOf(files[8]!))).toHaveLength(1);
  await log.close();
  expect(Log.open(directory, { repair: true }).firstFile?.minTxid).toBe(10n);
});

test('a log that is too large is cut, whoever holds it, but never before what has to be applied, nor its last file', () => {
  const files = chain(10);
  const { log } = logWith(files);
  const bytes = files.slice(4).reduce((sum, { meta }) => sum + meta.sizeBytes, 0);
  expect(log.trimTo(1 << 30, 10n)).toEqual({ count: 0, wasHeld: false });
  const hold = log.hold(4n);
  expect(log.trimTo(bytes, 2n)).toEqual({ count: 2, wasHeld: false });
  expect(log.trimTo(bytes, 10n)).toEqual({ count: 2, wasHeld: false });
  expect(log.firstFile?.minTxid).toBe(5n);
  expect(log.trimTo(0, 10n)).toEqual({ count: 5, wasHeld: true });
  expect(log.fileCount).toBe(1);
  expect(log.filesAfter(positionOf(files[8]!))).toHaveLength(1);
  hold.release();
});

test('an epoch ends where the first file of a later one begins', () => {
  const old = chain(3, 1n);
  const { log } = logWith(old);
  expect(log.endOfEpoch(1n)).toEqual(positionOf(old[2]!));
  const next = made(4, 6, old[2]!.meta.postApplyChecksum, 50, 3n);
  log.append(next.bytes, next.meta);
  expect(log.endOfEpoch(1n)).toEqual(positionOf(old[2]!));
  expect(log.endOfEpoch(2n)).toEqual(positionOf(old[2]!));
  expect(log.endOfEpoch(3n)).toEqual(positionOf(next));
  expect(log.endOfEpoch(0n)).toBeUndefined();
});

test('a log that is replaced is what it was, or the new file alone, wherever a crash comes', async () => {
  const files = chain(3);
  const difference = made(3, 5, 1n << 63n, 60, 2n);
  const prepare = async (): Promise<{ directory: string; log: Log; path: string }> => {
    const { directory, log } = logWith(files);
    await log.sync();
    const path = log.temporaryPath();
    writeFileSync(path, difference.bytes);
    return { directory, log, path };
  };
  const whole = await prepare();
  await whole.log.replaceWith(whole.path, difference.meta);
  await whole.log.close();
  const again = Log.open(whole.directory, { repair: true });
  expect(again.lastPosition).toEqual(positionOf(difference));
  expect(again.filesAfter({ txid: 2n, checksum: 1n << 63n })).toHaveLength(1);
  expect(again.fileCount).toBe(1);

  const before = await prepare();
  expect(Log.open(before.directory, { repair: true }).lastPosition).toEqual(positionOf(files[2]!));

  // It counts from its rename on, whatever is left of the others: they go newest first.
  for (let left = 0; left <= 3; left += 1) {
    const { directory, path } = await prepare();
    renameSync(path, `${pathOf(directory, difference)}.next`);
    for (const file of files.slice(left)) unlinkSync(pathOf(directory, file));
    const found = Log.open(directory, { repair: true });
    expect(found.lastPosition).toEqual(positionOf(difference));
    expect(found.fileCount).toBe(1);
    expect(readdirSync(directory).filter((name) => name !== 'synced')).toEqual([
      ltxFileName(difference.meta),
    ]);
  }
});

test('transactions that are given up go to lost+found, and others may take their TXIDs', async () => {
  const files = chain(6);
  const { data, directory, log } = logWith(files);
  await log.sync();
  const lostAndFound = new LostAndFound(data);
  const folder = log.setAsideAfter(4n, lostAndFound, 'diverged at 4')!;
  expect(log.lastPosition).toEqual(positionOf(files[3]!));
  expect(readFileSync(join(folder, ltxFileName(files[5]!.meta))).equals(files[5]!.bytes)).toBe(true);
  expect(lostAndFound.list()).toMatchObject([
    {
      directory: folder,
      manifest: {
        name: 'a.db',
        reason: 'diverged at 4',
        files: [ltxFileName(files[4]!.meta), ltxFileName(files[5]!.meta)],
      },
    },
  ]);
  expect(log.setAsideAfter(4n, lostAndFound, 'again')).toBeUndefined();
  // A torn new file 5 is noticed, although a durable file 5 was there before.
  const other = made(5, 5, files[3]!.meta.postApplyChecksum, 55, 2n);
  log.append(other.bytes, other.meta);
  truncateSync(pathOf(directory, other), 100);
  const again = Log.open(directory, { repair: true });
  expect(again.lastPosition).toEqual(positionOf(files[3]!));
  expect(again.setAsideAfter(0n, lostAndFound, 'all')).not.toBe(folder);
  expect(again.lastPosition).toBeUndefined();
  expect(again.fileCount).toBe(0);
  expect(lostAndFound.list()).toHaveLength(2);
});

test('callers of sync that meet share rounds, and each finds its file durable', async () => {
  const files = chain(60);
  const { directory, log } = logWith(files.slice(0, 20));
  const synced = () => BigInt(`0x${readFileSync(join(directory, 'synced'), 'latin1')}`);
  const first = log.sync().then(synced);
  for (const { bytes, meta } of files.slice(20)) log.append(bytes, meta);
  const later = [log.sync().then(synced), log.sync().then(synced)];
  expect(await first).toBeGreaterThanOrEqual(20n);
  expect(await Promise.all(later)).toEqual([60n, 60n]);
  await log.sync();
});

test('another Log on the same folder sees what is there and is told of what comes', () => {
  const files = chain(3);
  const { directory, log } = logWith(files.slice(0, 1));
  writeFileSync(pathOf(directory, files[1]!), files[1]!.bytes.subarray(0, 40));
  const view = Log.open(directory, { repair: false });
  // The other thread is in the middle of writing file 2.
  expect(view.lastPosition).toEqual(positionOf(files[0]!));
  unlinkSync(pathOf(directory, files[1]!));
  for (const { bytes, meta } of files.slice(1)) view.noted(log.append(bytes, meta));
  view.noted(log.lastFile!);
  expect(view.filesAfter(NO_POSITION)).toEqual(log.filesAfter(NO_POSITION));
});

test('a Log that is opened as another one goes on where that is', async () => {
  const files = chain(4);
  const { directory, log } = logWith(files.slice(0, 3));
  await log.sync();
  const other = Log.openAs(directory, log.contents);
  expect(other.contents).toEqual(log.contents);
  expect(other.lastPosition).toEqual(positionOf(files[2]!));
  expect(other.filesAfter(NO_POSITION)).toEqual(log.filesAfter(NO_POSITION));
  other.append(files[3]!.bytes, files[3]!.meta);
  await other.close();
  expect(Log.open(directory, { repair: true }).fileCount).toBe(4);
  expect(Log.openAs(directory, logWith([]).log.contents).lastPosition).toBeUndefined();
});

test('a Log that lists files which another one has removed says that it does not hold them', async () => {
  const files = chain(6);
  const { directory, log } = logWith(files);
  await log.sync();
  const view = Log.open(directory, { repair: false });
  log.removeBefore(4n);
  await log.close();
  expect(view.filesAfter(positionOf(files[0]!))).toBeUndefined();
  expect(view.filesAfter(positionOf(files[2]!))).toHaveLength(3);
  expect(view.filesAfter(positionOf(files[3]!), 1)).toHaveLength(1);
});

test('a position inside a file that holds several transactions is not one to go on from', () => {
  const first = made(1, 1, 0n, 1);
  const group = made(2, 5, first.meta.postApplyChecksum, 2);
  const { log } = logWith([first, group]);
  expect(log.filesAfter({ txid: 3n, checksum: group.meta.postApplyChecksum })).toBeUndefined();
  expect(log.contains(positionOf(group))).toBe(true);
});

test('what a snapshot has replaced does not come back when the snapshot is given up', async () => {
  const files = chain(20);
  const { data, directory, log } = logWith(files);
  const snapshot = made(1, 21, 0n, 1);
  log.append(snapshot.bytes, snapshot.meta);
  await log.sync(); // what it replaced is being removed
  log.setAsideAfter(0n, new LostAndFound(data), 'test');
  expect(Log.open(directory, { repair: true }).lastPosition).toBeUndefined();
  await log.close();
});

test('whatever happens in whatever order, a start finds the chain that was left', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.constantFrom('append', 'group', 'sync', 'retain', 'snapshot', 'giveUp', 'reopen', 'tear'), {
        maxLength: 25,
      }),
      async (steps) => {
        const { data, directory } = freshData();
        const lostAndFound = new LostAndFound(data);
        let log = Log.open(directory, { repair: true });
        let history: Made[] = [];
        let seed = 0;
        let synced = 0;
        const add = (file: Made): void => {
          log.append(file.bytes, file.meta);
          if (file.meta.minTxid === 1n) history = [];
          history.push(file);
        };
        for (const step of steps) {
          const end = history.at(-1)?.meta;
          const at = Number(end?.maxTxid ?? 0n);
          seed += 1;
          if (step === 'append') add(made(at + 1, at + 1, end?.postApplyChecksum ?? 0n, seed));
          else if (step === 'group') add(made(at + 1, at + 3, end?.postApplyChecksum ?? 0n, seed));
          else if (step === 'snapshot') {
            add(made(1, at + 2, 0n, seed));
            await log.sync();
            synced = at + 2;
          } else if (step === 'sync') {
            await log.sync();
            synced = at;
          } else if (step === 'retain') {
            log.removeBefore(BigInt(Math.max(at - 2, 0)));
            await log.close();
            synced = at;
            while (history.length > 1 && history[0]!.meta.maxTxid < at - 2) history.shift();
          } else if (step === 'giveUp') {
            log.setAsideAfter(BigInt(at - 1), lostAndFound, 'test');
            history = history.filter(({ meta }) => meta.maxTxid <= at - 1);
            synced = Math.min(synced, Number(history.at(-1)?.meta.maxTxid ?? 0n));
          } else {
            if (step === 'tear' && end && at > synced) {
              truncateSync(pathOf(directory, history.pop()!), 90);
            }
            log = Log.open(directory, { repair: true });
          }
          expect(log.lastPosition).toEqual(history.length > 0 ? positionOf(history.at(-1)!) : undefined);
          expect(log.fileCount).toBe(history.length);
        }
      },
    ),
    { numRuns: 60 },
  );
});

test.each([true, false])(
  'a log that is opened while another thread removes its oldest files has no hole',
  async (synced) => {
    const { data, directory, log } = logWith(chain(synced ? 1500 : 300));
    if (synced) await log.sync();
    const end = log.lastPosition;
    const removing = new Worker(
      `const { readdirSync, unlinkSync } = require('node:fs');
     const names = readdirSync(process.argv[2]).filter((name) => name.endsWith('.ltx')).toSorted();
     const never = new Int32Array(new SharedArrayBuffer(4));
     for (const name of names.slice(0, -1)) {
       unlinkSync(process.argv[2] + '/' + name);
       // So slowly that the log is opened many times meanwhile.
       Atomics.wait(never, 0, 0, 500 / names.length);
     }`,
      { eval: true, argv: [directory] },
    );
    const exited = once(removing, 'exit');
    let opened = 0;
    while (removing.threadId !== -1) {
      for (const repair of [false, true]) {
        const other = Log.open(directory, { repair });
        expect(other.setAside).toEqual([]);
        expect(other.lastPosition).toEqual(end);
        opened += 1;
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
    await exited;
    expect(opened).toBeGreaterThan(2);
    rmSync(data, { recursive: true });
  },
);
