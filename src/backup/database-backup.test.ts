import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { KiteError } from '../errors.js';
import { pageChecksum } from '../ltx/checksum.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { encodeLtx } from '../ltx/encoder.js';
import { CHECKSUM_FLAG } from '../ltx/format.js';
import { Log } from '../store/log.js';
import { DatabaseBackup, RecentObjects, type BackupSource } from './database-backup.js';
import { readObject, type Destination } from './destination.js';
import { DirectoryDestination } from './directory.js';
import { changeHead, formatHead, HEAD_KEY, readHead } from './head.js';
import { databaseFolder, listLevel, SNAPSHOT_LEVEL, type BackupFile } from './layout.js';
import type { LevelSettings } from './levels.js';
import { stampOf } from './stamp.js';

const NAME = 'a.db';
const root = mkdtempSync(join(tmpdir(), 'kitefs-backup-test-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;
const fresh = (): string => {
  folders += 1;
  const path = join(root, String(folders));
  mkdirSync(path);
  return path;
};

/** Wall clock of a test; each use is a moment later. */
let clockMs = 1_000_000;

const SETTINGS: LevelSettings = {
  levelIntervalsMs: [3, 9],
  snapshotIntervalMs: 20,
  retentionMs: 40,
  l0RetentionMs: 5,
  retentionEnabled: true,
};

const pageOf = (byte: number, pageSize: number): Buffer => Buffer.alloc(pageSize, byte);

const checksumOf = (pages: readonly number[], pageSize: number): bigint =>
  pages.reduce(
    (sum, byte, i) => CHECKSUM_FLAG | (sum ^ pageChecksum(i + 1, pageOf(byte, pageSize))),
    CHECKSUM_FLAG,
  );

/** A node as far as its backups know it: a real log, and the database as one byte per page. */
class Model implements BackupSource {
  readonly dir = fresh();
  /** A few at a time, so that one round is several objects. */
  readonly filesPerRead = 3;
  readonly log: Log;
  pages: number[] = [];
  pageSize = 512;

  constructor(readonly epoch: bigint) {
    this.log = Log.open(join(this.dir, 'ltx'), { repair: true });
  }

  /** A successor that has lost the last `lost` transactions of this one. */
  successor(
    epoch: bigint,
    lost: number,
    states: ReadonlyMap<bigint, { pages: number[]; pageSize: number }>,
  ): Model {
    const next = new Model(epoch);
    const end = this.log.lastPosition?.txid ?? 0n;
    for (const file of this.log.filesAfter({
      txid: this.#begin(),
      checksum: this.log.firstFile?.preApplyChecksum ?? 0n,
    }) ?? []) {
      if (file.maxTxid > end - BigInt(lost)) break;
      next.log.append(readFileSync(file.path), file);
    }
    const state = states.get(next.log.lastPosition?.checksum ?? 0n);
    next.pages = [...(state?.pages ?? [])];
    next.pageSize = state?.pageSize ?? 512;
    return next;
  }

  #begin(): bigint {
    return (this.log.firstFile?.minTxid ?? 1n) - 1n;
  }

  commit(pages: number[], pageSize = this.pageSize): void {
    const last = this.log.lastPosition;
    const txid = (last?.txid ?? 0n) + 1n;
    const isNew = this.pages.length === 0 || pageSize !== this.pageSize;
    const changed = pages.flatMap((byte, i) =>
      isNew || this.pages[i] !== byte ? [{ pgno: i + 1, byte }] : [],
    );
    const postApplyChecksum = checksumOf(pages, pageSize);
    const meta = {
      pageSize,
      commitPages: pages.length,
      minTxid: txid,
      maxTxid: txid,
      preApplyChecksum: txid === 1n ? 0n : last!.checksum,
      epoch: this.epoch,
    };
    const bytes = encodeLtx(
      { ...meta, timestampMs: (clockMs += 1) },
      changed.map(({ pgno, byte }) => ({ pgno, data: pageOf(byte, pageSize) })),
      postApplyChecksum,
    );
    this.log.append(bytes, { ...meta, postApplyChecksum, sizeBytes: bytes.length });
    this.pages = pages;
    this.pageSize = pageSize;
  }

  filesAfter(_: string, position: Parameters<Log['contains']>[0]) {
    return Promise.resolve(this.log.rangesAfter(position, this.filesPerRead));
  }

  contains(_: string, position: Parameters<Log['contains']>[0]) {
    return Promise.resolve(this.log.contains(position));
  }

  copy() {
    const position = this.log.lastPosition;
    if (!position) return Promise.resolve(undefined);
    if (this.pages.length === 0) return Promise.resolve({ dropped: position });
    const { pages, pageSize } = this;
    const header = {
      pageSize,
      commitPages: pages.length,
      minTxid: 1n,
      maxTxid: position.txid,
      preApplyChecksum: 0n,
    };
    const data = pages.map((byte, i) => ({ pgno: i + 1, data: pageOf(byte, pageSize) }));
    const path = join(this.dir, `copy-${Math.random()}`);
    writeFileSync(path, encodeLtx({ ...header, timestampMs: (clockMs += 1) }, data, position.checksum));
    return Promise.resolve({ path, position });
  }

  async backup(destination: Destination): Promise<DatabaseBackup> {
    const writer = { clusterId: 'c', epoch: this.epoch, nodeId: 'n' };
    const backup = new DatabaseBackup({
      name: NAME,
      destination,
      settings: SETTINGS,
      writer,
      source: this,
      logDir: join(this.dir, 'ltx'),
      tmpDir: this.dir,
      recent: new RecentObjects(),
      check: () => undefined,
      onEvent: () => undefined,
      onPut: () => undefined,
    });
    await backup.open(await changeHead(destination, writer));
    return backup;
  }
}

async function levelsOf(destination: Destination): Promise<BackupFile[][]> {
  const levels: BackupFile[][] = [];
  for (let level = 0; level <= SNAPSHOT_LEVEL; level += 1) {
    levels[level] = [];
    for await (const file of listLevel(destination, databaseFolder(NAME), level)) levels[level]!.push(file);
  }
  return levels;
}

/** What `litestream restore` does (its plan: the last snapshot, then always what reaches furthest): the pages, and where they are by the stamp. */
async function restore(destination: Destination) {
  const levels = await levelsOf(destination);
  const plan: BackupFile[] = levels[SNAPSHOT_LEVEL]!.slice(-1);
  for (;;) {
    const reached = plan.at(-1)?.maxTxid ?? 0n;
    const next = levels
      .slice(0, SNAPSHOT_LEVEL)
      .flat()
      .filter((file) => file.minTxid <= reached + 1n && file.maxTxid > reached)
      .toSorted(
        (a, b) => Number(b.maxTxid - a.maxTxid) || Number(a.minTxid - b.minTxid) || b.level - a.level,
      )[0];
    if (!next) break;
    plan.push(next);
  }
  const end = levels[0]!.at(-1)?.maxTxid ?? 0n;
  expect(plan.at(-1)?.maxTxid ?? 0n, 'the plan reaches what was shipped').toBe(end);
  const inputs = await Promise.all(
    plan.map(async ({ key }) => LtxDecoder.fromBuffer(await readObject(destination, key))),
  );
  // Each is laid over those before it.
  const pages: number[] = [];
  for (const ltx of inputs) {
    expect(ltx.header.noChecksum).toBe(true);
    expect(ltx.header.pageSize, 'one page size in a plan').toBe(inputs[0]!.header.pageSize);
    while (ltx.next()) pages[ltx.pgno - 1] = ltx.page[0]!;
    pages.length = ltx.header.commitPages;
  }
  return {
    pages,
    pageSize: inputs.at(-1)?.header.pageSize,
    stamp: inputs.at(-1) && stampOf(inputs.at(-1)!.header),
  };
}

async function shipAll(backup: DatabaseBackup): Promise<void> {
  while (await backup.ship());
}

test('Every transaction arrives, by objects k-k, and levels above them say the same', async () => {
  const destination = new DirectoryDestination(fresh());
  const node = new Model(1n);
  const backup = await node.backup(destination);
  for (let i = 1; i <= 30; i += 1) {
    node.commit([i, i % 3, i % 7].slice(0, 1 + (i % 3)));
    if (i % 4 === 0) await shipAll(backup);
    if (i % 5 === 0) {
      clockMs += 5;
      // A snapshot waits until what it copied is shipped.
      await shipAll(backup);
      if (backup.isMaintenanceDue(clockMs)) await backup.maintain(clockMs);
    }
  }
  await shipAll(backup);
  const { pages, stamp } = await restore(destination);
  expect(pages).toEqual(node.pages);
  expect(stamp).toEqual({ ...node.log.lastPosition, epoch: 1n });
  const levels = await levelsOf(destination);
  expect(levels[0]!.every(({ minTxid, maxTxid }) => minTxid === maxTxid)).toBe(true);
  expect(levels.map((files) => files.length > 0)).toEqual([
    true,
    true,
    true,
    false,
    false,
    false,
    false,
    false,
    false,
    true,
  ]);
});

test('What is committed while an object is made waits for the next interval', async () => {
  const node = new Model(1n);
  node.commit([1]);
  const destination = new (class extends DirectoryDestination {
    override async create(...args: Parameters<DirectoryDestination['create']>) {
      // A database that is always written: there is something new after each upload.
      node.commit([node.pages[0]! + 1]);
      return await super.create(...args);
    }
  })(fresh());
  const backup = await node.backup(destination);
  expect(await backup.ship()).toBe(false);
  expect(await backup.ship()).toBe(false);
  expect((await levelsOf(destination))[0]).toHaveLength(2);
  for (let i = 0; i < 5; i += 1) node.commit([100 + i]);
  expect(await backup.ship(), 'there was more than one object takes').toBe(true);
});

test('A start finds in the bucket where it was, and makes nothing twice', async () => {
  const destination = new DirectoryDestination(fresh());
  const node = new Model(1n);
  node.commit([1, 2]);
  await shipAll(await node.backup(destination));
  const before = await levelsOf(destination);
  const again = await node.backup(destination);
  expect(again.position?.txid).toBe(1n);
  await shipAll(again);
  expect(await levelsOf(destination)).toEqual(before);
});

test('An upload whose answer was lost is recognised as ours', async () => {
  const destination = new DirectoryDestination(fresh());
  const node = new Model(1n);
  node.commit([1, 2]);
  const late = await node.backup(destination);
  const other = await node.backup(destination);
  await shipAll(late);
  await shipAll(other);
  expect(other.position?.txid).toBe(1n);
  expect((await levelsOf(destination))[0]).toHaveLength(1);
});

/** A primary of epoch 1 that has shipped its one transaction, and what a successor that has it begins with. */
async function shippedByOld() {
  const destination = new DirectoryDestination(fresh());
  const old = new Model(1n);
  old.commit([1, 2]);
  const states = new Map([[old.log.lastPosition!.checksum, { pages: [1, 2], pageSize: 512 }]]);
  const backup = await old.backup(destination);
  await shipAll(backup);
  return { destination, old, states, backup };
}

test('A fenced primary stops at the first object of its successor', async () => {
  const { destination, old, states, backup: late } = await shippedByOld();
  const next = old.successor(2n, 0, states);
  next.commit([1, 3]);
  await shipAll(await next.backup(destination));
  old.commit([9, 9, 9]);
  await expect(late.ship()).rejects.toMatchObject({ code: 'ERR_BACKUP_FENCED' });
  await expect(old.backup(destination)).rejects.toMatchObject({ code: 'ERR_BACKUP_FENCED' });
  expect((await restore(destination)).pages).toEqual([1, 3]);
});

test('What a fenced primary was faster with is followed by all pages of the one after it', async () => {
  const { destination, old, states, backup: late } = await shippedByOld();
  const next = old.successor(2n, 0, states);
  const backup = await next.backup(destination);
  old.commit([1, 2, 3, 4]);
  await shipAll(late);
  next.commit([5, 2]);
  await shipAll(backup);
  const levels = await levelsOf(destination);
  expect(levels.map((files) => files.map(({ maxTxid }) => Number(maxTxid)))).toEqual([
    [1, 2, 3],
    [],
    [],
    [],
    [],
    [],
    [],
    [],
    [],
    [3],
  ]);
  expect((await restore(destination)).pages).toEqual([5, 2]);
  await expect(late.ship()).resolves.toBe(false);
  old.commit([9]);
  await expect(late.ship()).rejects.toMatchObject({ code: 'ERR_BACKUP_FENCED' });
});

test('A takeover without a transaction decides the next name, so that a fenced primary cannot', async () => {
  const { destination, old, states, backup: late } = await shippedByOld();
  old.commit([1, 2, 3]);
  const next = old.successor(2n, 1, states);
  await shipAll(await next.backup(destination));
  await expect(late.ship()).rejects.toMatchObject({ code: 'ERR_BACKUP_FENCED' });
  const { pages, stamp } = await restore(destination);
  expect(pages).toEqual([1, 2]);
  expect(stamp).toEqual({ ...next.log.lastPosition, epoch: 2n });
  // Once an epoch.
  await shipAll(await next.backup(destination));
  expect((await levelsOf(destination))[0]).toHaveLength(2);
});

test('Another cluster’s backups are refused', async () => {
  const destination = new DirectoryDestination(fresh());
  await changeHead(destination, { clusterId: 'other', epoch: 1n, nodeId: 'x' });
  await expect(new Model(5n).backup(destination)).rejects.toMatchObject({ code: 'ERR_BACKUP_OTHER_CLUSTER' });
});

test('A lost object of the chain is mended by a snapshot', async () => {
  const destination = new DirectoryDestination(fresh());
  const node = new Model(1n);
  const first = await node.backup(destination);
  for (let i = 1; i <= 6; i += 1) {
    node.commit([i]);
    await shipAll(first);
  }
  const level0 = (await levelsOf(destination))[0]!;
  await destination.remove([level0[2]!.key]);
  const again = await node.backup(destination);
  await again.maintain(clockMs);
  expect((await restore(destination)).pages).toEqual([6]);
});

test('A dropped database goes when the retention has passed, and only if it was not made again', async () => {
  const destination = new DirectoryDestination(fresh());
  const node = new Model(1n);
  const backup = await node.backup(destination);
  node.commit([1, 2]);
  await shipAll(backup);
  node.commit([]);
  await shipAll(backup);
  expect((await restore(destination)).pages).toEqual([1, 2]);
  const after = Date.now() + 10 * SETTINGS.retentionMs;
  // The head says that it was dropped; a start finds that it was made again.
  const dropped = await readHead(destination);
  node.commit([3]);
  await shipAll(backup);
  await destination.compareAndSet(HEAD_KEY, (await destination.read(HEAD_KEY)).version, formatHead(dropped!));
  const again = await node.backup(destination);
  await shipAll(again);
  await again.maintain(after);
  expect((await restore(destination)).pages).toEqual([3]);
  expect((await readHead(destination))?.databases[NAME]?.droppedMs).toBeUndefined();
  node.commit([]);
  await shipAll(again);
  await again.maintain(after);
  expect((await levelsOf(destination)).flat()).toEqual([]);
  node.commit([4]);
  await shipAll(again);
  await again.maintain(clockMs);
  expect((await restore(destination)).pages).toEqual([4]);
});

/** Something that happens to the two nodes and the bucket. */
const step = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('commit'),
      who: fc.nat(1),
      pages: fc.array(fc.nat(255), { minLength: 1, maxLength: 5 }),
    }),
  },
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant('ship'),
      who: fc.nat(1),
      count: fc.integer({ min: 1, max: 4 }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('maintain'), who: fc.nat(1), laterMs: fc.nat(30) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('takeover'), lost: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('restart'), who: fc.nat(1) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('drop'), who: fc.nat(1) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('trim'), who: fc.nat(1) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('page-size'),
      who: fc.nat(1),
      pages: fc.array(fc.nat(255), { minLength: 1, maxLength: 5 }),
    }),
  },
);

test('Whatever two primaries do to one bucket, what is restored is the database of the one with the higher epoch', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const destination = new DirectoryDestination(fresh());
      const states = new Map<bigint, { pages: number[]; pageSize: number }>();
      let epoch = 1n;
      /** The primary, and the one before it, which may not know. */
      const nodes: (Model | undefined)[] = [new Model(epoch), undefined];
      const backups = new Map<Model, DatabaseBackup | undefined>([
        [nodes[0]!, await nodes[0]!.backup(destination)],
      ]);
      const fencedOnly = (model: Model) => (error: unknown) => {
        if (!(error instanceof KiteError) || error.code !== 'ERR_BACKUP_FENCED' || model === nodes[0])
          throw error;
        backups.set(model, undefined);
      };
      const maintain = async (model: Model, laterMs: number): Promise<void> => {
        clockMs += laterMs;
        try {
          // A snapshot waits for what is shipped.
          while (await backups.get(model)?.ship());
          if (backups.get(model)?.isMaintenanceDue(clockMs)) await backups.get(model)?.maintain(clockMs);
        } catch (error) {
          // The other one has removed what this one has seen.
          if (!(error instanceof KiteError) || error.code !== 'ERR_BACKUP_MISSING')
            return fencedOnly(model)(error);
          expect(backups.get(model)?.isOpen).toBe(false);
          await model.backup(destination).then((again) => backups.set(model, again), fencedOnly(model));
          await maintain(model, 0);
        }
      };
      for (const { kind, ...args } of steps) {
        const {
          who = 0,
          pages = [],
          count = 0,
          laterMs = 0,
          lost = 0,
        } = args as {
          who?: number;
          pages?: number[];
          count?: number;
          laterMs?: number;
          lost?: number;
        };
        const model = nodes[who];
        if (!model) continue;
        const backup = backups.get(model);
        const commit = (next: number[], pageSize?: number): void => {
          model.commit(next, pageSize);
          states.set(model.log.lastPosition!.checksum, { pages: next, pageSize: model.pageSize });
        };
        if (kind === 'commit') commit(pages);
        if (kind === 'page-size') commit(pages, model.pageSize === 512 ? 1024 : 512);
        if (kind === 'drop' && model.pages.length > 0) commit([]);
        if (kind === 'trim' && model.log.lastPosition)
          model.log.removeBefore(model.log.lastPosition.txid - 1n);
        if (kind === 'ship') for (let i = 0; i < count; i += 1) await backup?.ship().catch(fencedOnly(model));
        if (kind === 'restart' && backup)
          await model.backup(destination).then((fresh) => backups.set(model, fresh), fencedOnly(model));
        if (kind === 'maintain') await maintain(model, laterMs);
        if (kind === 'takeover') {
          epoch += 1n;
          const next = model.successor(epoch, lost, states);
          nodes[1] = nodes[0];
          nodes[0] = next;
          backups.set(next, await next.backup(destination));
        }
      }
      const primary = nodes[0]!;
      if (primary.pages.length === 0) return;
      await maintain(primary, 0);
      const found = await restore(destination);
      expect(found.pages).toEqual(primary.pages);
      expect(found.pageSize).toBe(primary.pageSize);
      expect(found.stamp?.checksum).toBe(primary.log.lastPosition?.checksum);
    }),
    { numRuns: Number(process.env['RUNS'] ?? 60) },
  );
});
