import fs from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from 'vitest';

import type { CaptureGate } from '../capture/gate.js';
import { buildWalHeader } from '../sqlite/wal.js';
import { ControlBlock, MountState } from './control-block.js';
import { FileSystem, type Handle } from './file-system.js';
import { Errno, type MountServices } from './services.js';

const CALLER = { pid: 1, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
const SECOND_NS = 1_000_000_000n;

let dataDir: string;
let control: ControlBlock;
let services: MountServices;
let files: FileSystem;
/** Called by capture before it answers. */
let reused: number[];
let captured: () => void;

beforeEach(() => {
  dataDir = fs.mkdtempSync(path.join(tmpdir(), 'kitefs-files-'));
  control = new ControlBlock();
  control.state = MountState.primary;
  control.deadlineNs = process.hrtime.bigint() + 3600n * SECOND_NS;
  captured = () => undefined;
  reused = [];
  const gate: CaptureGate = {
    slotOf: () => 0,
    walCommitted: () => captured(),
    beforeWalChange: (_slot, _change, answer) => (captured(), answer(0)),
    beforeJournalCommit: (_slot, _commit, answer) => (captured(), answer(0)),
    awaitReplicas: (_slot, _endBytes, answer) => answer(0),
    adopt: (_slot, answer) => answer(0),
    beforeDrop: (_slot, answer) => answer(0),
    beforeRename: (_slot, _name, answer) => answer(0),
    restoresCommitted: (_slot, _offset, _bytes, answer) => answer(Errno.EIO),
  };
  const nothing = (): undefined => undefined;
  services = {
    dataDir,
    control,
    gate,
    candidate: true,
    waitsForReplicas: () => false,
    stopped: new Set<string>(),
    halted: new Set<string>(),
    otherFiles: 'refuse',
    uid: undefined,
    gid: undefined,
    fileMode: undefined,
    dirMode: undefined,
    special: (_path, answer) => answer(undefined),
    refused: nothing,
    created: nothing,
    dropped: nothing,
    deadCommit: nothing,
    renamed: nothing,
    walReused: (_name, sizeBytes) => reused.push(sizeBytes),
    wantTicks: nothing,
    error: nothing,
  };
  files = new FileSystem(services);
});
afterEach(() => fs.rmSync(dataDir, { recursive: true }));

function create(name: string): Handle {
  let made: Handle | undefined;
  files.create(files.root, name, fs.constants.O_RDWR, 0o644, CALLER, (_errno, handle) => (made = handle));
  if (!made) throw new Error(`${name} was not created`);
  return made;
}

function write(handle: Handle, data: Buffer, offset = 0): number {
  let answered = -1;
  files.write(handle, data, offset, CALLER, (errno) => (answered = errno));
  return answered;
}

const fence = (): void => {
  control.deadlineNs = 0n;
};

describe('the file system', () => {
  it('takes no notice of what somebody put among its databases', () => {
    create('a.db');
    write(create('b.db'), Buffer.from('SQLite format 3\0'.padEnd(100, '\0'), 'latin1'));
    fs.writeFileSync(path.join(dataDir, 'dbs', 'notes.txt'), 'a file');
    fs.mkdirSync(path.join(dataDir, 'dbs', 'not encoded'));
    const again = new FileSystem(services);
    expect(again.list(again.root).map(({ name }) => name)).toEqual([
      '.',
      '..',
      'a.db',
      'b.db',
      '.lag',
      '.kitefs',
    ]);
  });

  it('syncs the folder of a database whose journal was made, and then not again (trap 26)', () => {
    create('a.db');
    create('a.db-journal');
    const folder = path.join(dataDir, 'dbs', 'a.db');
    expect(files.foldersToSync(files.root)).toContain(folder);
    expect(files.foldersToSync(files.root)).not.toContain(folder);
    files.unlink(files.root, 'a.db-journal', CALLER, () => undefined);
    expect(files.foldersToSync(files.root)).toContain(folder);
  });

  it('syncs only folders whose names changed, and each only for the folder of the mount that is behind it', () => {
    const folder = files.mkdir(files.root, 'tenants', 0o755, CALLER);
    create('a.db');
    const own = (name: string): string => path.join(dataDir, 'dbs', encodeURIComponent(name));
    expect(files.foldersToSync(files.root)).toContain(path.join(dataDir, 'tree'));
    expect(files.foldersToSync(files.root)).toEqual([]);
    let made: Handle | undefined;
    files.create(folder, 'b.db', fs.constants.O_RDWR, 0o644, CALLER, (_errno, handle) => (made = handle));
    write(made!, Buffer.from('SQLite format 3\0'.padEnd(100, '\0'), 'latin1'));
    expect(files.foldersToSync(files.root)).toEqual([]);
    const synced = files.foldersToSync(folder);
    expect(synced).toContain(path.join(dataDir, 'tree', 'tenants'));
    expect(synced).toContain(path.join(dataDir, 'dbs'));
    expect(synced).toContain(own('tenants/b.db'));
    files.create(folder, 'b.db-journal', fs.constants.O_RDWR, 0o644, CALLER, () => undefined);
    expect(files.foldersToSync(folder)).toEqual([own('tenants/b.db')]);
  });

  it('never uses a node id again', () => {
    create('a.db');
    const ids = new Set<number>();
    for (let i = 0; i < 5; i += 1) {
      const handle = create('a.db-wal');
      ids.add(handle.node.id);
      files.release(handle);
      files.unlink(files.root, 'a.db-wal', CALLER, () => undefined);
    }
    expect(ids.size).toBe(5);
  });

  it('asks for the lease again before it answers a commit (trap 10)', () => {
    const database = create('a.db');
    const journal = create('a.db-journal');
    expect(write(journal, journalHeader())).toBe(0);
    expect(write(database, Buffer.alloc(4096, 1))).toBe(0);
    captured = fence;
    let answered = -1;
    files.unlink(files.root, 'a.db-journal', CALLER, (errno) => (answered = errno));
    expect(answered).toBe(Errno.EIO);
    expect(fs.existsSync(path.join(dataDir, 'dbs', 'a.db', 'database-journal'))).toBe(true);
  });

  it('says that a WAL is used again from its start, once for each size that it had', () => {
    create('a.db');
    const wal = create('a.db-wal');
    const bytes = walHeader();
    const restart = (grownTo: number): number[] => {
      write(wal, Buffer.alloc(24), grownTo - 24);
      write(wal, bytes);
      return reused.splice(0);
    };
    write(wal, bytes);
    expect(reused).toEqual([]);
    expect(restart(5000)).toEqual([5000]);
    expect(restart(5000)).toEqual([]);
    expect(restart(9000)).toEqual([9000]);
    files.setAttributes(wal.node, { size: 0 }, CALLER, wal, () => undefined);
    write(wal, bytes);
    expect(restart(5000)).toEqual([5000]);
  });

  it('asks for the lease again before it answers a write that restarts the WAL (trap 10)', () => {
    create('a.db');
    const wal = create('a.db-wal');
    const bytes = walHeader();
    expect(write(wal, bytes)).toBe(0);
    captured = fence;
    expect(write(wal, bytes)).toBe(Errno.EIO);
  });

  it('tells capture of a WAL that goes while the primary is fenced, which may be primary again', () => {
    for (const cut of ['unlink', 'truncate']) {
      control.deadlineNs = process.hrtime.bigint() + 3600n * SECOND_NS;
      create(`${cut}.db`);
      const wal = create(`${cut}.db-wal`);
      expect(write(wal, walHeader())).toBe(0);
      fence();
      let told = 0;
      captured = () => (told += 1);
      let answered = -1;
      if (cut === 'unlink') files.unlink(files.root, 'unlink.db-wal', CALLER, (errno) => (answered = errno));
      else files.setAttributes(wal.node, { size: 0 }, CALLER, wal, (errno) => (answered = errno));
      expect({ cut, answered, told }).toEqual({ cut, answered: 0, told: 1 });
    }
  });
});

function walHeader(): Buffer {
  return buildWalHeader({
    bigEndianChecksum: false,
    pageSize: 4096,
    checkpointSequence: 0,
    salt1: 1,
    salt2: 2,
  }).bytes;
}

function journalHeader(): Buffer {
  const header = Buffer.alloc(512);
  Buffer.from('d9d505f920a163d7', 'hex').copy(header);
  header.writeUInt32BE(512, 20);
  header.writeUInt32BE(4096, 24);
  return header;
}
