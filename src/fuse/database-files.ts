import fs from 'node:fs';

import type { DatabaseSlot } from '../capture/gate.js';
import { parseDatabaseHeader, DATABASE_HEADER_BYTES } from '../sqlite/database-header.js';
import { JOURNAL_HEADER_BYTES } from '../sqlite/journal.js';
import { parseWalIndexHeader } from '../sqlite/wal-index.js';
import { FRAME_HEADER_BYTES, WAL_HEADER_BYTES } from '../sqlite/wal.js';
import { databasePaths, type DatabasePaths } from '../store/data-directory.js';
import { isErrno, writeFully } from '../util/files.js';
import { MountState } from './control-block.js';
import { HeldWrite } from './held-write.js';
import { JournalTracker } from './journal-tracker.js';
import type { FsNode } from './nodes.js';
import { Errno, errnoOf, type Answer, type MountServices } from './services.js';
import { WalPages } from './wal-pages.js';
import { WalTracker } from './wal-tracker.js';

export type DatabaseFileKind = 'database' | 'wal' | 'journal';

/** A copy that is whole and at rest this long is adopted though its writer still has it open. */
const IDLE_MS = 1000;

/** Of a WAL that grew larger than this the rest is not worth its memory in the kernel. */
const WAL_KNOWN_MAX_BYTES = 16 << 20;

/** Who writes: the applier may change a replica. */
export interface Writer {
  readonly privileged: boolean;
  readonly pid: number;
  /** Number of the handle; 0 when there is none. */
  readonly handle: number;
}

/** A database that is being written without a journal, by one process, and is not captured yet. */
interface Adopting {
  readonly pid: number;
  lastWriteMs: number;
  running: boolean;
}

/**
 * One database's files: what may be written, and what capture has to know before and after. Everything
 * an application does to them comes through here, and the rules of its role are here.
 */
export class DatabaseFiles {
  readonly name: string;
  readonly paths: DatabasePaths;
  /** Files of it that the kernel may know. */
  readonly nodes = new Map<DatabaseFileKind | 'shm', FsNode>();
  /** Whether it has committed content that is (or will be) replicated. */
  live: boolean;
  /** Whether names in its folder were made or removed since that was last synced; `new`: it was never synced. */
  folder: 'new' | 'changed' | 'synced' = 'new';
  adopting: Adopting | undefined;
  readonly #services: MountServices;
  readonly #wal = new WalTracker();
  readonly #walPages: WalPages;
  readonly #journal = new JournalTracker();
  /** How much of `-wal` the kernel was made to know, bytes. */
  #walKnownBytes = 0;
  /** The application syncs: what destroys log bytes must be durable elsewhere first. */
  #durable = false;
  readonly #waitsForReplicas: boolean;
  /** The end of a commit that waits for replicas, until another write shows that it is over. */
  #held: HeldWrite | undefined;
  /** Whose the last write of the WAL was and where it ended, when that ended a commit. */
  #lastCommit: { readonly handle: number; readonly endBytes: number } | undefined;

  /** `dataDir/dbs/<encoded>` exists. Takes over what is in its files. */
  constructor(services: MountServices, name: string) {
    this.#services = services;
    this.name = name;
    this.paths = databasePaths(services.dataDir, name);
    this.#walPages = new WalPages(this.#wal, this.paths.wal);
    this.live = sizeOf(this.paths.database) > 0;
    this.#waitsForReplicas = services.waitsForReplicas(name);
    this.attach('wal');
    this.attach('journal');
  }

  folderChanged(): void {
    if (this.folder === 'synced') this.folder = 'changed';
  }

  get slot(): DatabaseSlot {
    return this.#services.gate.slotOf(this.name);
  }

  get exists(): boolean {
    return fs.existsSync(this.paths.database);
  }

  path(kind: DatabaseFileKind): string {
    return this.paths[kind];
  }

  /** Reads what the trackers must know of a file that was there before them. */
  attach(kind: 'wal' | 'journal'): void {
    let fd: number;
    try {
      fd = fs.openSync(this.paths[kind], 'r');
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return;
      throw error;
    }
    try {
      if (kind === 'wal') this.#attachWal(fd);
      else this.#journal.wrote(0, readStart(fd, 0, JOURNAL_HEADER_BYTES), () => sizeOf(this.paths.database));
    } finally {
      fs.closeSync(fd);
    }
  }

  #attachWal(fd: number): void {
    const header = readStart(fd, 0, WAL_HEADER_BYTES);
    this.#wal.wrote(0, header);
    const step = FRAME_HEADER_BYTES + this.#wal.pageSize;
    const { size } = fs.fstatSync(fd);
    if (this.#wal.pageSize === 0) return;
    for (let at = WAL_HEADER_BYTES; at + step <= size; at += step) {
      const frame = readStart(fd, at, FRAME_HEADER_BYTES);
      // Frames with other salts are of a WAL before this one.
      if (frame.compare(header, 16, 24, 8, 16) !== 0) return;
      this.#wal.wrote(at, frame);
      this.#wal.wrote(at + step - 1, ONE_BYTE);
    }
  }

  /** Whether opens by others than `pid` wait: the file is half a copy (trap 24). */
  gates(pid: number): boolean {
    return this.adopting !== undefined && this.adopting.pid !== pid;
  }

  // --- Writing

  /** `data` is only valid during the call. */
  write(kind: DatabaseFileKind, fd: number, data: Buffer, offset: number, by: Writer, answer: Answer): void {
    if (kind === 'database') this.#writeDatabase(fd, data, offset, by, answer);
    else if (kind === 'wal') this.#writeWal(fd, data, offset, by, answer);
    else this.#writeJournal(fd, data, offset, by, answer);
  }

  #writeDatabase(fd: number, data: Buffer, offset: number, by: Writer, answer: Answer): void {
    const { control, gate } = this.#services;
    const perform = (bytes: Buffer): void => {
      writeFully(fd, bytes, offset);
      if (this.#journal.live) this.#journal.wroteDatabase(offset, bytes.length);
    };
    if (this.#mayChange(by)) {
      if (control.state === MountState.primary) {
        if (!this.#journal.live && this.#wal.committedEnd === 0) {
          if (this.live) return this.#refuseNoJournal(answer);
          this.#adoptLater(by);
        }
      } else if (data.length > 0) {
        this.live = true;
      }
      perform(data);
      // Asked again: the lease may have ended while this thread was stopped in between (trap 10).
      return answer(this.#mayChange(by) ? 0 : Errno.EIO);
    }
    if (this.#journal.live) {
      // Rolling back is allowed without a lease, or nobody could read the database any more (trap 14).
      const copy = Buffer.from(data);
      return gate.restoresCommitted(this.slot, offset, copy, (errno) => {
        if (errno !== 0) return this.#refuse(answer, Errno.EIO);
        guarded(answer, () => {
          perform(copy);
          answer(0);
        });
      });
    }
    if (this.#wal.committedEnd > 0 && this.#walPages.holds(offset, data)) {
      perform(data);
      return answer(0);
    }
    this.#refuse(answer, Errno.EIO);
  }

  #writeWal(fd: number, data: Buffer, offset: number, by: Writer, answer: Answer): void {
    const { gate } = this.#services;
    if (!this.#mayChangeWal(by)) return this.#refuse(answer, Errno.EIO);
    if (this.#held) {
      if (this.#held.isRepeatedBy(offset, data)) return this.#hold(this.#held, by, answer);
      this.#held = undefined;
    }
    const perform = (bytes: Buffer): void => {
      writeFully(fd, bytes, offset);
      if (offset < WAL_HEADER_BYTES) this.#walReused(fd);
      const end = this.#wal.wrote(offset, bytes);
      this.#lastCommit = end > 0 ? { handle: by.handle, endBytes: offset + bytes.length } : undefined;
      // Asked again before the answer: a commit that is answered after the deadline could be lost (trap 10).
      if (!this.#mayChangeWal(by)) return answer(Errno.EIO);
      if (end > 0) {
        this.live = true;
        if (this.#isCaptured) {
          gate.walCommitted(this.slot, end);
          // With HALT the primary commits it first, whatever else is waited for there.
          if (this.#waitsForReplicas || this.#isHalted)
            return this.#holdCommit(offset, bytes, end, by, answer);
        }
      }
      answer(0);
    };
    if (!this.#isCaptured) return perform(data);
    const destroyed = this.#wal.destroys(offset, data.length, this.#wal.pageSize === 0 ? 0 : 1);
    if (!destroyed) return perform(data);
    const copy = Buffer.from(data);
    gate.beforeWalChange(this.slot, { ...destroyed, durable: this.#takeDurable() }, (errno) =>
      errno === 0 ? guarded(answer, () => perform(copy)) : answer(errno),
    );
  }

  /** A WAL begins again from its start: what is behind that will be written over, and is worth being known to the kernel. */
  #walReused(fd: number): void {
    const sizeBytes = Math.min(fs.fstatSync(fd).size, WAL_KNOWN_MAX_BYTES);
    if (sizeBytes <= Math.max(this.#walKnownBytes, WAL_HEADER_BYTES)) return;
    this.#walKnownBytes = sizeBytes;
    this.#services.walReused(this.name, sizeBytes);
  }

  /** The last write of a commit is not answered before replicas have it: no reader sees the commit until then. */
  #holdCommit(offset: number, bytes: Buffer, end: number, by: Writer, answer: Answer): void {
    const { slot } = this;
    const ask = (then: Answer): void => this.#services.gate.awaitReplicas(slot, end, then);
    this.#held = new HeldWrite(offset, Buffer.from(bytes), ask);
    this.#hold(this.#held, by, answer);
  }

  #hold(held: HeldWrite, by: Writer, answer: Answer): void {
    held.hold((errno) => {
      if (errno !== Errno.EINTR && this.#held === held) this.#held = undefined;
      // Asked again, as after every wait: after the deadline nothing is answered as done (trap 10).
      answer(errno === Errno.EINTR || this.#mayChangeWal(by) ? errno : Errno.EIO);
    });
  }

  /** As long as a journal is there, SQLite lets nobody read: it is held until replicas have the commit. */
  #awaitReplicas(by: Writer, answer: Answer, then: () => void): void {
    this.#services.gate.awaitReplicas(this.slot, 0, (errno) => {
      if (errno === 0) return then();
      if (errno !== Errno.EINTR) return answer(errno);
      // Nobody but a dying process is let go of with EINTR here: SQLite would take it for an error. Its journal
      // stays, and who opens the database next rolls back what replicas may have got (trap 13).
      if (isDying(by.pid)) return answer(Errno.EINTR);
      if (!this.#mayChange(by)) return answer(Errno.EIO);
      this.#awaitReplicas(by, answer, then);
    });
  }

  #writeJournal(fd: number, data: Buffer, offset: number, by: Writer, answer: Answer): void {
    const perform = (bytes: Buffer): void => {
      writeFully(fd, bytes, offset);
      this.#journal.wrote(offset, bytes, () => sizeOf(this.paths.database));
      answer(0);
    };
    if (this.#journal.endsBy(offset, data)) {
      const copy = Buffer.from(data);
      return this.#endJournal('header', by, answer, () => perform(copy));
    }
    if (!this.#mayChange(by)) return this.#refuse(answer, Errno.EIO);
    perform(data);
  }

  // --- Cutting off and removing

  #walCut(sizeBytes: number): void {
    this.#wal.truncated(sizeBytes);
    this.#walKnownBytes = Math.min(this.#walKnownBytes, sizeBytes);
  }

  truncate(kind: DatabaseFileKind, sizeBytes: number, by: Writer, answer: Answer): void {
    const current = sizeOf(this.path(kind));
    if (kind === 'database') return this.#truncateDatabase(current, sizeBytes, by, answer);
    const perform = (): void => {
      fs.truncateSync(this.path(kind), sizeBytes);
      if (kind === 'wal') this.#walCut(sizeBytes);
      else this.#journal.truncated(sizeBytes);
      answer(0);
    };
    if (kind === 'wal') return this.#shortenWal('truncate', sizeBytes, by, answer, perform);
    if (sizeBytes < JOURNAL_HEADER_BYTES && this.#journal.live) {
      return this.#endJournal('truncate', by, answer, perform);
    }
    if (!this.#mayChange(by) && this.#journal.live) return this.#refuse(answer, Errno.EIO);
    perform();
  }

  #truncateDatabase(current: number, sizeBytes: number, by: Writer, answer: Answer): void {
    const perform = (): void => {
      fs.truncateSync(this.paths.database, sizeBytes);
      answer(0);
    };
    if (sizeBytes === current) return answer(0);
    // A rollback-mode commit that shrinks the database cuts the file after the journal's end, when page
    // 1 says the new size already (pager_end_transaction): nothing that is committed goes.
    // With SQLITE_FCNTL_CHUNK_SIZE it leaves the file longer than that.
    const settled = !this.#journal.live && this.#wal.committedEnd === 0;
    if (settled && this.live && sizeBytes >= (this.#header()?.bytes ?? Infinity)) return perform();
    if (!this.#mayChange(by)) {
      const committed = this.#journal.live ? this.#journal.oldSizeBytes : this.#walPagesBytes();
      return committed >= 0 && sizeBytes >= committed ? perform() : this.#refuse(answer, Errno.EACCES);
    }
    if (this.#services.control.state === MountState.primary) {
      // The checkpoint of a WAL cuts the file to what a commit said, which is a page at least.
      const emptiesWal = !this.#journal.live && !settled && sizeBytes < this.#wal.pageSize;
      if (this.live && (settled || emptiesWal)) {
        this.#services.refused(this.name, 'truncate-live', 'cutting off a database in use is refused');
        return answer(Errno.EBUSY);
      }
      if (settled) this.#adoptLater(by);
    }
    perform();
  }

  /** Before a file is removed from the mount; `perform` removes it. */
  remove(kind: DatabaseFileKind, by: Writer, answer: Answer, perform: () => void): void {
    if (kind === 'journal') {
      const unlink = (): void => {
        perform();
        this.#journal.truncated(0);
        answer(0);
      };
      if (this.#journal.live) return this.#endJournal('unlink', by, answer, unlink);
      return unlink();
    }
    if (kind === 'wal') {
      return this.#shortenWal('unlink', 0, by, answer, () => {
        perform();
        this.#walCut(0);
        answer(0);
      });
    }
    // One that is out of service may go: that is how another one takes its place.
    const { control, stopped } = this.#services;
    const isOut = stopped.has(this.name) && control.state === MountState.primary && control.mayWrite();
    if (!isOut && !this.#mayChange(by)) return this.#refuse(answer, Errno.EROFS);
    this.#ifPrimary(
      (then) => this.#services.gate.beforeDrop(this.slot, then),
      answer,
      () => {
        stopped.delete(this.name);
        perform();
      },
    );
  }

  /** Before `database` moves to another name; `perform` moves it. */
  rename(newName: string, by: Writer, answer: Answer, perform: () => void): void {
    if (!this.#mayChange(by)) return this.#refuse(answer, Errno.EROFS);
    this.#ifPrimary((then) => this.#services.gate.beforeRename(this.slot, newName, then), answer, perform);
  }

  #ifPrimary(ask: (then: Answer) => void, answer: Answer, perform: () => void): void {
    if (this.#services.control.state !== MountState.primary) return perform();
    ask((errno) => (errno === 0 ? guarded(answer, perform) : answer(errno)));
  }

  #shortenWal(
    kind: 'truncate' | 'unlink',
    sizeBytes: number,
    by: Writer,
    answer: Answer,
    perform: () => void,
  ): void {
    const { gate } = this.#services;
    if (sizeBytes >= this.#wal.committedEnd && this.#wal.committedEnd > 0) return perform();
    // A checkpoint of any connection may end by emptying the WAL, once nothing is in it alone.
    if (!this.#mayChangeWal(by) && !this.#walPages.backfilledInto(this.paths.database)) {
      return this.#refuse(answer, Errno.EACCES);
    }
    // Also of a fenced primary: a renewal may succeed after all, and capture would go on looking into the WAL that is gone.
    const { stopped } = this.#services;
    if (!this.#isCaptured || stopped.has(this.name) || this.#wal.pageSize === 0) return perform();
    const change = { kind, fromBytes: sizeBytes, durable: this.#takeDurable() };
    gate.beforeWalChange(this.slot, change, (errno) =>
      errno === 0 ? guarded(answer, perform) : answer(errno),
    );
  }

  /** The commit point of a rollback journal: capture reads the pages before it is passed (trap 9). */
  #endJournal(kind: 'unlink' | 'truncate' | 'header', by: Writer, answer: Answer, perform: () => void): void {
    const { control, gate } = this.#services;
    if (!this.#mayChange(by)) return this.#ifRestored(answer, perform);
    if (control.state !== MountState.primary) return perform();
    const { oldSizeBytes, dirtyPages, durable } = this.#journal;
    const commit = { kind, oldSizeBytes, dirtyPages, durable, waits: this.#waitsForReplicas };
    const finish = (): void => {
      // Asked again: what is answered after the deadline may have been lost to another primary (trap 10).
      if (!this.#mayChange(by)) return answer(Errno.EIO);
      this.live = sizeOf(this.paths.database) > 0;
      this.adopting = undefined;
      guarded(answer, perform);
    };
    gate.beforeJournalCommit(this.slot, commit, (errno) => {
      if (errno === Errno.EINTR) return this.#awaitReplicas(by, answer, finish);
      if (errno !== 0) return answer(errno);
      finish();
    });
  }

  /** Without a lease a journal may go only when every page that it covers is as it was committed (trap 14). */
  #ifRestored(answer: Answer, perform: () => void): void {
    const { oldSizeBytes, dirtyPages, pageSize } = this.#journal;
    if (sizeOf(this.paths.database) !== oldSizeBytes) return this.#refuse(answer, Errno.EIO);
    const left = dirtyPages.filter((pgno) => pgno * pageSize <= oldSizeBytes);
    const next = (): void => {
      const pgno = left.pop();
      if (pgno === undefined) return perform();
      const page = this.#readPage(pgno, pageSize);
      this.#services.gate.restoresCommitted(this.slot, (pgno - 1) * pageSize, page, (errno) =>
        errno === 0 ? guarded(answer, next) : this.#refuse(answer, Errno.EIO),
      );
    };
    next();
  }

  #readPage(pgno: number, pageSize: number): Buffer {
    const fd = fs.openSync(this.paths.database, 'r');
    try {
      return readStart(fd, (pgno - 1) * pageSize, pageSize);
    } finally {
      fs.closeSync(fd);
    }
  }

  /**
   * A descriptor of the WAL is gone for good, and others have the WAL open. When it wrote the commit that is the last thing in
   * the WAL and the wal-index lacks it, its writer is dead: SQLite updates the index before anything else, and nobody is
   * left who could (trap 1). `index` asks for the header of the wal-index as it is in the memory that connections share:
   * what the kernel has written back may be from before a commit that returned (decision 008).
   */
  walReleased(handle: number, index: (then: (bytes: Buffer) => void) => void): void {
    const commit = this.#lastCommit;
    if (commit?.handle !== handle || this.#services.control.state !== MountState.primary) return;
    index((bytes) => {
      // Somebody has written since: what that does to the commit is decided there.
      if (this.#lastCommit !== commit) return;
      this.#lastCommit = undefined;
      // A header that is no header is made anew by the next reader, from the WAL: then the commit counts.
      const header = parseWalIndexHeader(bytes);
      if (header && this.#wal.isMissingIn(header, commit.endBytes)) this.#services.deadCommit(this.name);
    });
  }

  // --- Syncing and adopting

  /** The application synced one of the files. */
  synced(kind: DatabaseFileKind): void {
    this.#durable = true;
    if (kind === 'database') this.#journal.syncedDatabase();
  }

  #takeDurable(): boolean {
    const durable = this.#durable;
    this.#durable = false;
    return durable;
  }

  #adoptLater(by: Writer): void {
    if (this.adopting) {
      this.adopting.lastWriteMs = performance.now();
      return;
    }
    this.adopting = { pid: by.pid, lastWriteMs: performance.now(), running: false };
    this.#services.wantTicks();
  }

  /** A handle that wrote is being closed: a whole copy becomes a replicated database. `last`: no other try. */
  adoptIfWhole(last: boolean, answer: Answer): void {
    const { adopting } = this;
    if (!adopting || adopting.running || this.#journal.live) return answer(0);
    if (!this.#isWhole()) {
      if (last) this.adopting = undefined;
      return answer(0);
    }
    adopting.running = true;
    this.#services.gate.adopt(this.slot, (errno) => {
      this.adopting = undefined;
      if (errno === 0) this.live = true;
      answer(errno);
    });
  }

  /** Now and then while `adopting`: a session without journal that is at rest is adopted as it is. */
  adoptIfIdle(answer: Answer): void {
    if (this.adopting && performance.now() - this.adopting.lastWriteMs > IDLE_MS) {
      this.adoptIfWhole(false, answer);
    }
  }

  /** After a change of role: what is on disk counts. */
  roleChanged(): void {
    this.live = sizeOf(this.paths.database) > 0;
    this.adopting = undefined;
  }

  #isWhole(): boolean {
    const header = this.#header();
    const sizeBytes = sizeOf(this.paths.database);
    if (!header || sizeBytes === 0 || sizeBytes % header.pageSize !== 0) return false;
    return header.bytes === undefined || header.bytes === sizeBytes;
  }

  /** What page 1 says: page size, and the database's size, if it does. */
  #header(): { readonly pageSize: number; readonly bytes: number | undefined } | undefined {
    const fd = fs.openSync(this.paths.database, 'r');
    try {
      const header = parseDatabaseHeader(readStart(fd, 0, DATABASE_HEADER_BYTES));
      if (!header) return undefined;
      const { pageSize, pageCount } = header;
      return { pageSize, bytes: pageCount === undefined ? undefined : pageCount * pageSize };
    } finally {
      fs.closeSync(fd);
    }
  }

  #walPagesBytes(): number {
    return this.#wal.committedEnd > 0 ? this.#walPages.databaseBytes : -1;
  }

  // --- Roles

  /** The applier outside of the primary's role, an application in it while the lease lasts. */
  #mayChange(by: Writer): boolean {
    const { control, stopped } = this.#services;
    if (control.state !== MountState.primary) return by.privileged;
    return control.mayWrite() && !stopped.has(this.name);
  }

  /** The applications of this replica write it (HALT), and nobody else does: the applier has let go of it. */
  get #isHalted(): boolean {
    const { control, halted } = this.#services;
    return halted.has(this.name) && control.state === MountState.replica;
  }

  /** Whether commits here are this node's own: then capture has to see them. */
  get #isCaptured(): boolean {
    return this.#services.control.state === MountState.primary || this.#isHalted;
  }

  /**
   * With HALT an application changes the WAL and nothing else: all its commits come that way, and what a checkpoint writes
   * into `database` is committed content, which any connection of a replica may write.
   */
  #mayChangeWal(by: Writer): boolean {
    return this.#isHalted || this.#mayChange(by);
  }

  #refuse(answer: Answer, errno: number): void {
    const services = this.#services;
    if (services.control.state !== MountState.primary) {
      services.refused(this.name, 'replica', 'this node is a replica: write on the primary');
    } else if (services.stopped.has(this.name)) {
      services.refused(this.name, 'stopped', 'this database is out of service: see the status of the node');
    } else {
      services.refused(this.name, 'fenced', 'this node may not write any more: its lease ended');
    }
    answer(errno);
  }

  #refuseNoJournal(answer: Answer): void {
    this.#services.refused(
      this.name,
      'no-journal',
      'written without a journal (journal_mode=OFF or MEMORY), which cannot be replicated: use WAL or DELETE',
    );
    answer(Errno.EIO);
  }
}

/** For what runs after an answer of the gate: nobody above would catch what it throws. */
function guarded(answer: Answer, work: () => void): void {
  try {
    work();
  } catch (error) {
    answer(errnoOf(error) ?? Errno.EIO);
  }
}

const SIGKILL_BIT = 0x100n;

/** Whether a thread is being killed: then SIGKILL is pending, also when another deadly signal has begun it (proc(5)). */
function isDying(pid: number): boolean {
  try {
    const status = fs.readFileSync(`/proc/${pid}/status`, 'latin1');
    const pending = /^SigPnd:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0';
    return (BigInt(`0x${pending}`) & SIGKILL_BIT) !== 0n;
  } catch {
    return false; // of another pid namespace
  }
}

const ONE_BYTE = Buffer.alloc(1);

function readStart(fd: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  return bytes.subarray(0, fs.readSync(fd, bytes, 0, length, offset));
}

function sizeOf(path: string): number {
  return fs.statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}
