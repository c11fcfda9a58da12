import fs from 'node:fs';
import path from 'node:path';

import { WAL_INDEX_HEADER_BYTES } from '../sqlite/wal-index.js';
import { parseWalHeader, WAL_HEADER_BYTES } from '../sqlite/wal.js';
import { storedDatabaseNames } from '../store/data-directory.js';
import { classifyPath } from '../store/database-name.js';
import { writeFully } from '../util/files.js';
import { MountState } from './control-block.js';
import { DatabaseFiles, type DatabaseFileKind, type Writer } from './database-files.js';
import { FsNode, MemoryFile, ROOT_NODE_ID } from './nodes.js';
import type { Attributes, DirectoryEntry, FileSystemStats } from './protocol.js';
import { Errno, errnoOf, Refusal, type Answer, type MountServices } from './services.js';
import { isSpecialPath, specialEntries, specialExists } from './special-files.js';
import { WAKE_NODE_ID } from './waker.js';

const { O_ACCMODE, O_TRUNC, O_EXCL, O_SYNC, O_RDWR, O_RDONLY } = { O_ACCMODE: 3, ...fs.constants };
const RENAME_NOREPLACE = 1;
const RENAME_EXCHANGE = 2;
const ARMED_MS = 5000;

const DATABASE_MAGIC = Buffer.from('SQLite format 3\0', 'latin1');
const JOURNAL_MAGIC = Buffer.from('d9d505f920a163d7', 'hex');

/** Who asks. `pid` is 0 where the driver does not know it. One object per request. */
export interface Caller {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** An open file. */
export interface Handle {
  readonly id: number;
  readonly node: FsNode;
  readonly pid: number;
  /** The applier's: it may change a replica. */
  readonly applier: boolean;
  /** Of a special file: what it held when it was opened. */
  readonly content: Buffer | undefined;
  wrote: boolean;
}

/** Result of something that may have to wait: errno, and the value when that is 0. */
export type Reply<T> = (errno: number, value?: T) => void;

interface Waiting {
  readonly caller: Caller;
  readonly retry: () => void;
  readonly fail: (errno: number) => void;
}

/** New attributes; what is undefined stays. Times in ms. */
export interface AttributeChange {
  readonly mode?: number | undefined;
  readonly uid?: number | undefined;
  readonly gid?: number | undefined;
  readonly size?: number | undefined;
  readonly atimeMs?: number | undefined;
  readonly mtimeMs?: number | undefined;
}

/**
 * The file system behind both drivers: names, attributes and open files. What a database's files may be
 * used for is decided in database-files.ts. Synchronous methods throw a Refusal or an error of node:fs;
 * those with a Reply may answer later, from the capture gate or when the role changes. Nothing waits.
 */
export class FileSystem {
  readonly root: FsNode;
  /**
   * Asks the kernel for the start of what it has cached of a file, which may be newer than what was written back; less or
   * nothing when that is not cached. Set by a driver that can; `bytes` are valid during the call only.
   */
  cached: ((node: FsNode, sizeBytes: number, then: (bytes: Buffer) => void) => void) | undefined;
  readonly #services: MountServices;
  readonly #tree: string;
  readonly #nodes = new Map<number, FsNode>();
  readonly #handles = new Map<number, Handle>();
  readonly #databases = new Map<string, DatabaseFiles>();
  readonly #waiting = new Set<Waiting>();
  readonly #armed = new Map<string, number>();
  /** Folders of the tree in which no name changed since they were synced. */
  readonly #syncedFolders = new Set<string>();
  /** Databases that the applier recovers, where the driver does not tell who calls. */
  readonly #recovering = new Set<string>();
  #applierPid = -1;
  #nextHandle = 1;

  constructor(services: MountServices) {
    this.#services = services;
    this.#tree = path.join(services.dataDir, 'tree');
    fs.mkdirSync(this.#tree, { recursive: true });
    fs.mkdirSync(path.join(services.dataDir, 'dbs'), { recursive: true });
    // The top folder belongs to whom new files belong to: an application that is not root creates files in it.
    const { uid, gid, dirMode } = services;
    if (uid !== undefined || gid !== undefined) {
      const now = fs.statSync(this.#tree);
      fs.chownSync(this.#tree, uid ?? now.uid, gid ?? now.gid);
    }
    if (dirMode !== undefined) fs.chmodSync(this.#tree, dirMode);
    this.root = new FsNode('folder', undefined, '', ROOT_NODE_ID);
    this.#nodes.set(ROOT_NODE_ID, this.root);
    this.#nodes.set(WAKE_NODE_ID, new FsNode('wake', undefined, '.wake', WAKE_NODE_ID));
    for (const name of storedDatabaseNames(services.dataDir)) this.#addDatabase(name);
  }

  // --- The applier and the role

  setApplier(pid: number): void {
    this.#applierPid = pid;
  }

  /**
   * The next open of each of these files with O_SYNC and O_RDWR is the applier's. While the node is closed:
   * nobody waits for these databases where the driver knows no process, or SQLite could not recover them.
   */
  arm(names: readonly string[]): void {
    for (const name of names) this.#armed.set(name, performance.now() + ARMED_MS);
    if (this.#services.control.state !== MountState.closed) return;
    for (const name of names) this.#recovering.add(classifyPath(name).name);
  }

  /** The role has changed: opens that wait are looked at again. */
  roleChanged(): void {
    this.#recovering.clear();
    for (const database of this.#databases.values()) database.roleChanged();
    this.#retryWaiting();
  }

  /** Now and then, once MountServices.wantTicks was called. Returns whether it is wanted on. */
  tick(): boolean {
    let wanted = false;
    for (const database of this.#databases.values()) {
      database.adoptIfIdle(() => this.#retryWaiting());
      wanted ||= database.adopting !== undefined;
    }
    return wanted;
  }

  /** The process gave up (a signal): an open that waits is answered. */
  interrupt(caller: Caller): void {
    for (const waiting of this.#waiting) {
      if (waiting.caller !== caller) continue;
      this.#waiting.delete(waiting);
      waiting.fail(Errno.EINTR);
    }
  }

  #retryWaiting(): void {
    const all = [...this.#waiting];
    this.#waiting.clear();
    for (const waiting of all) {
      try {
        waiting.retry();
      } catch (error) {
        waiting.fail(errnoOf(error) ?? Errno.EIO);
      }
    }
  }

  /** Whether this request has to wait until the node is open; then it is asked again by `retry`. */
  #waits(
    full: string,
    caller: Caller,
    applier: boolean,
    retry: () => void,
    fail: (errno: number) => void,
  ): boolean {
    if (this.#services.control.state !== MountState.closed || applier) return false;
    if (this.#isApplierThread(caller)) return false;
    if (caller.pid === 0 && this.#recovering.has(classifyPath(full).name)) return false;
    this.#waiting.add({ caller, retry, fail });
    return true;
  }

  /**
   * The kernel names the thread that calls. The applier's checkpoint thread would wait for the mount to open, and closing a database, which
   * comes before that, for the checkpoint. Asked only where somebody is about to wait.
   */
  #isApplierThread({ pid }: Caller): boolean {
    return this.#applierPid > 0 && pid > 0 && fs.existsSync(`/proc/${this.#applierPid}/task/${pid}`);
  }

  #isApplier(caller: Caller, handle?: Handle): boolean {
    return (caller.pid !== 0 && caller.pid === this.#applierPid) || handle?.applier === true;
  }

  #writer(caller: Caller, handle?: Handle): Writer {
    // While the node is closed only the applier gets to open anything.
    const closed = this.#services.control.state === MountState.closed;
    const privileged = closed || this.#isApplier(caller, handle);
    return { privileged, pid: caller.pid, handle: handle?.id ?? 0 };
  }

  // --- Names

  node(id: number): FsNode {
    const node = this.#nodes.get(id);
    if (!node) throw new Refusal(Errno.ENOENT);
    return node;
  }

  /** The file of this name, or undefined. */
  lookup(parent: FsNode, name: string): FsNode | undefined {
    const known = parent.children.get(name);
    if (known && known.kind !== 'special') return known;
    const full = joined(parent, name);
    if (isSpecialPath(full)) {
      if (!specialExists(full, this.#services.control, (db) => this.#databases.get(db)?.exists === true)) {
        return undefined;
      }
      if (known) return known;
      if (full === '.kitefs/wake') return this.node(WAKE_NODE_ID);
      return this.#register(new FsNode(full === '.kitefs' ? 'folder' : 'special', parent, name));
    }
    const { kind, name: database } = classifyPath(full);
    const files = this.#databases.get(database);
    if (files && (kind === 'database' || kind === 'wal' || kind === 'journal')) {
      if (fs.existsSync(files.path(kind))) return this.#databaseNode(files, kind, parent, name);
    }
    const stats = fs.lstatSync(this.#treePath(full), { throwIfNoEntry: false });
    if (stats?.isDirectory()) return this.#register(new FsNode('folder', parent, name));
    if (stats?.isFile()) return this.#register(new FsNode('file', parent, name));
    return undefined;
  }

  /** Finds a path; for drivers that know paths only. */
  resolve(full: string): FsNode | undefined {
    let node: FsNode | undefined = this.root;
    for (const part of full.split('/')) {
      if (part !== '' && node) node = this.lookup(node, part);
    }
    return node;
  }

  /** The node of a path that has been looked up; asks no disk. */
  #known(full: string): FsNode | undefined {
    let node: FsNode | undefined = this.root;
    for (const part of full.split('/')) node = node?.children.get(part);
    return node;
  }

  /** The kernel keeps what it is told, except of files that the main thread makes. */
  isLasting(node: FsNode): boolean {
    return node.kind !== 'special';
  }

  isLastingAbsence(parent: FsNode, name: string): boolean {
    return !isSpecialPath(joined(parent, name));
  }

  forget(id: number, count: number): void {
    const node = this.#nodes.get(id);
    if (!node || id <= WAKE_NODE_ID) return;
    node.lookups = Math.max(0, node.lookups - count);
    if (node.unlinked && node.lookups === 0 && node.opens === 0) this.#nodes.delete(id);
  }

  #register(node: FsNode): FsNode {
    this.#nodes.set(node.id, node);
    return node;
  }

  #databaseNode(files: DatabaseFiles, kind: DatabaseFileKind, parent: FsNode, name: string): FsNode {
    const node = this.#register(new FsNode(kind, parent, name));
    node.database = files;
    files.nodes.set(kind, node);
    return node;
  }

  #addDatabase(name: string): DatabaseFiles {
    const files = new DatabaseFiles(this.#services, name);
    this.#databases.set(name, files);
    // A database's folders exist in the tree too, so that every folder is a real one.
    fs.mkdirSync(path.dirname(this.#treePath(name)), { recursive: true });
    return files;
  }

  #treePath(full: string): string {
    return path.join(this.#tree, full);
  }

  #treeChanged(...folders: readonly (FsNode | undefined)[]): void {
    for (const folder of folders) if (folder) this.#syncedFolders.delete(this.#treePath(folder.path));
  }

  /** The file behind a node. */
  #diskPath(node: FsNode): string {
    if (node.database && node.kind !== 'shm') return node.database.path(node.kind as DatabaseFileKind);
    return this.#treePath(node.path);
  }

  list(folder: FsNode): DirectoryEntry[] {
    const names = new Map<string, boolean>();
    if (folder.path === '.kitefs') {
      names.set('status.json', false);
    } else {
      for (const entry of fs.readdirSync(this.#treePath(folder.path), { withFileTypes: true })) {
        names.set(entry.name, entry.isDirectory());
      }
      for (const files of this.#databases.values()) {
        if (folderOf(files.name) !== folder.path) continue;
        const base = files.name.slice(files.name.lastIndexOf('/') + 1);
        for (const kind of ['database', 'wal', 'journal'] as const) {
          if (fs.existsSync(files.path(kind))) names.set(base + SUFFIX[kind], false);
        }
        if (files.nodes.has('shm')) names.set(base + SUFFIX.shm, false);
      }
      if (folder === this.root)
        for (const [name, isFolder] of specialEntries(this.#services.control)) names.set(name, isFolder);
    }
    const entries: DirectoryEntry[] = [
      { node: folder.id, name: '.', folder: true },
      { node: folder.parent?.id ?? ROOT_NODE_ID, name: '..', folder: true },
    ];
    for (const [name, isFolder] of names) {
      entries.push({ node: folder.children.get(name)?.id ?? UNKNOWN_NODE, name, folder: isFolder });
    }
    return entries;
  }

  // --- Attributes

  attributes(node: FsNode): Attributes {
    if (node.memory) return node.memory.attributes;
    if (node.kind === 'special' || node.kind === 'wake') return SPECIAL_ATTRIBUTES;
    if (node.kind === 'folder' && node.path === '.kitefs') return SPECIAL_FOLDER_ATTRIBUTES;
    if (node.fd >= 0) return fs.fstatSync(node.fd);
    if (node.unlinked) throw new Refusal(Errno.ENOENT);
    return fs.statSync(this.#diskPath(node));
  }

  setAttributes(
    node: FsNode,
    change: AttributeChange,
    caller: Caller,
    handle: Handle | undefined,
    reply: Reply<void>,
  ): void {
    if (node.kind === 'special' || node.kind === 'wake') throw new Refusal(Errno.EACCES);
    const applier = this.#isApplier(caller, handle);
    const again = (): void => this.setAttributes(node, change, caller, handle, reply);
    if (
      change.size !== undefined &&
      node.kind !== 'shm' &&
      this.#waits(node.path, caller, applier, again, reply)
    )
      return;
    const rest = (errno: number): void => {
      if (errno !== 0) return reply(errno);
      try {
        this.#setPlainAttributes(node, change);
      } catch (error) {
        return reply(errnoOf(error) ?? Errno.EIO);
      }
      reply(0);
    };
    if (change.size === undefined) return rest(0);
    if (handle) handle.wrote = true;
    this.#truncate(node, change.size, this.#writer(caller, handle), rest);
  }

  #truncate(node: FsNode, sizeBytes: number, by: Writer, answer: Answer): void {
    if (node.memory) node.memory.resize(sizeBytes);
    else if (node.database && !node.unlinked) {
      return node.database.truncate(node.kind as DatabaseFileKind, sizeBytes, by, answer);
    } else if (node.fd >= 0) fs.ftruncateSync(node.fd, sizeBytes);
    else fs.truncateSync(this.#diskPath(node), sizeBytes);
    answer(0);
  }

  #setPlainAttributes(node: FsNode, change: AttributeChange): void {
    if (node.memory) {
      if (change.mode !== undefined) node.memory.mode = change.mode & 0o7777;
      if (change.uid !== undefined) node.memory.uid = change.uid;
      if (change.gid !== undefined) node.memory.gid = change.gid;
      return;
    }
    const target = node.fd >= 0 ? `/proc/self/fd/${node.fd}` : this.#diskPath(node);
    if (change.mode !== undefined) fs.chmodSync(target, change.mode & 0o7777);
    if (change.uid !== undefined || change.gid !== undefined) {
      const now = fs.statSync(target);
      const [uid, gid] = [change.uid ?? now.uid, change.gid ?? now.gid];
      // SQLite as root gives each new journal to the owner of the database, who mostly has it already.
      if (uid !== now.uid || gid !== now.gid) fs.chownSync(target, uid, gid);
    }
    if (change.atimeMs !== undefined || change.mtimeMs !== undefined) {
      const now = fs.statSync(target);
      fs.utimesSync(target, (change.atimeMs ?? now.atimeMs) / 1000, (change.mtimeMs ?? now.mtimeMs) / 1000);
    }
  }

  statfs(): FileSystemStats {
    return fs.statfsSync(this.#services.dataDir);
  }

  // --- Opening

  handle(id: number): Handle {
    const handle = this.#handles.get(id);
    if (!handle) throw new Refusal(Errno.EBADF);
    return handle;
  }

  open(node: FsNode, flags: number, caller: Caller, reply: Reply<Handle>): void {
    if (node.kind === 'special') return this.#openSpecial(node, flags, caller, reply);
    if (node.kind === 'wake') return reply(0, this.#newHandle(node, caller, false));
    const full = node.path;
    const applier = this.#isApplier(caller) || this.#takeArmed(full, flags);
    const again = (): void => this.open(node, flags, caller, reply);
    if (this.#waits(full, caller, applier, again, reply)) return;
    if (node.kind === 'database' && !applier && node.database?.gates(caller.pid) === true) {
      this.#waiting.add({ caller, retry: again, fail: reply });
      return;
    }
    const writes = (flags & O_ACCMODE) !== O_RDONLY;
    if (
      writes &&
      !applier &&
      node.database &&
      node.kind !== 'shm' &&
      this.#isReadOnlyFor(caller, node.database)
    ) {
      this.#services.refused(full, 'replica', 'this node can never be primary: open the database read-only');
      return reply(Errno.EACCES);
    }
    const cut = (flags & O_TRUNC) !== 0 && writes;
    if (cut && node.kind === 'database' && node.database?.live === true) {
      this.#services.refused(
        full,
        'truncate-live',
        'writing a file over a database in use: remove it first, or restore through SQLite',
      );
      return reply(Errno.EBUSY);
    }
    const handle = this.#openHandle(node, caller, applier);
    if (!cut) return reply(0, handle);
    this.#truncate(node, 0, this.#writer(caller, handle), (errno) => {
      if (errno === 0) return reply(0, handle);
      this.#close(handle);
      reply(errno);
    });
  }

  create(
    parent: FsNode,
    name: string,
    flags: number,
    mode: number,
    caller: Caller,
    reply: Reply<Handle>,
  ): void {
    const existing = this.lookup(parent, name);
    if (existing) {
      if ((flags & O_EXCL) !== 0) return reply(Errno.EEXIST);
      return this.open(existing, flags, caller, reply);
    }
    const full = joined(parent, name);
    const applier = this.#isApplier(caller) || this.#takeArmed(full, flags);
    const again = (): void => this.create(parent, name, flags, mode, caller, reply);
    if (this.#waits(full, caller, applier, again, reply)) return;
    const node = this.#make(parent, name, full, mode, caller, applier);
    reply(0, this.#openHandle(node, caller, applier));
  }

  #make(parent: FsNode, name: string, full: string, mode: number, caller: Caller, applier: boolean): FsNode {
    const { kind, name: databaseName } = classifyPath(full);
    const { control, otherFiles } = this.#services;
    const readOnly = control.state === MountState.replica && !applier;
    if (isSpecialPath(full) || kind === 'position') throw new Refusal(Errno.EACCES);
    if (kind === 'invalid') throw new Refusal(Errno.ENAMETOOLONG);
    const beside =
      kind === 'wal' || kind === 'journal' || kind === 'shm' ? this.#claim(databaseName) : undefined;
    if (
      readOnly &&
      (kind === 'journal' ||
        kind === 'super-journal' ||
        (kind === 'wal' && this.#isReadOnlyFor(caller, beside)))
    ) {
      // EACCES is what makes SQLite say "attempt to write a readonly database".
      this.#services.refused(databaseName, 'replica', 'this node is a replica: write on the primary');
      throw new Refusal(Errno.EACCES);
    }
    if (beside && kind === 'shm') {
      const node = this.#register(new FsNode('shm', parent, name));
      const { uid, gid } = this.#owner(caller);
      node.memory = new MemoryFile(this.#services.fileMode ?? mode & 0o7777, uid, gid);
      node.database = beside;
      beside.nodes.set('shm', node);
      return node;
    }
    if (beside) {
      const companion = kind as DatabaseFileKind;
      this.#makeFile(beside.path(companion), mode, caller);
      beside.folderChanged();
      return this.#databaseNode(beside, companion, parent, name);
    }
    if (readOnly && otherFiles === 'refuse') {
      this.#services.refused(full, 'replica', 'this node is a replica: create databases on the primary');
      throw new Refusal(Errno.EROFS);
    }
    this.#makeFile(this.#treePath(full), mode, caller);
    this.#treeChanged(parent);
    return this.#register(new FsNode('file', parent, name));
  }

  #makeFile(target: string, mode: number, caller: Caller): void {
    const bits = this.#services.fileMode ?? mode & 0o7777;
    fs.closeSync(fs.openSync(target, 'wx', bits));
    // The daemon's umask must not take part: the kernel has applied the caller's.
    if ((bits & DAEMON_UMASK) !== 0) fs.chmodSync(target, bits);
    this.#setOwner(target, caller);
  }

  #owner(caller: Caller): { uid: number; gid: number } {
    return { uid: this.#services.uid ?? caller.uid, gid: this.#services.gid ?? caller.gid };
  }

  #setOwner(target: string, caller: Caller): void {
    const { uid, gid } = this.#owner(caller);
    if (uid !== process.getuid?.() || gid !== process.getgid?.()) fs.chownSync(target, uid, gid);
  }

  /**
   * On a node that can never be primary nobody but the applier opens anything for writing. Where the driver knows
   * no process, the applier's SQLite connections look like any other: there writes are refused one by one.
   */
  #isReadOnlyFor(caller: Caller, files: DatabaseFiles | undefined): boolean {
    if (files && this.#services.halted.has(files.name)) return false;
    return !this.#services.candidate && caller.pid !== 0;
  }

  #takeArmed(full: string, flags: number): boolean {
    const until = this.#armed.get(full);
    if (until === undefined || (flags & O_SYNC) !== O_SYNC || (flags & O_ACCMODE) !== O_RDWR) return false;
    this.#armed.delete(full);
    return performance.now() < until;
  }

  #openHandle(node: FsNode, caller: Caller, applier: boolean): Handle {
    if (!node.memory && node.fd < 0) node.fd = openBoth(this.#diskPath(node));
    return this.#newHandle(node, caller, applier);
  }

  #newHandle(node: FsNode, caller: Caller, applier: boolean, content?: Buffer): Handle {
    const handle: Handle = { id: this.#nextHandle++, node, pid: caller.pid, applier, content, wrote: false };
    this.#handles.set(handle.id, handle);
    node.opens += 1;
    return handle;
  }

  #openSpecial(node: FsNode, flags: number, caller: Caller, reply: Reply<Handle>): void {
    if ((flags & O_ACCMODE) !== O_RDONLY) return reply(Errno.EACCES);
    this.#services.special(node.path, (content) => {
      if (!content) return reply(Errno.ENOENT);
      reply(0, this.#newHandle(node, caller, false, content));
    });
  }

  // --- Open files

  /** What a read of this handle reads from: memory, or a descriptor. */
  source(handle: Handle): { readonly memory: Buffer } | { readonly fd: number } {
    if (handle.content) return { memory: handle.content };
    if (handle.node.memory) return { memory: handle.node.memory.read(0, Number.MAX_SAFE_INTEGER) };
    return { fd: handle.node.fd };
  }

  /** `data` is only valid during the call. */
  write(handle: Handle, data: Buffer, offset: number, caller: Caller, answer: Answer): void {
    const { node } = handle;
    handle.wrote = true;
    if (node.memory) {
      node.memory.write(offset, data);
      return answer(0);
    }
    if (node.kind === 'file' && !node.unlinked) this.#decideWhatItIs(node, data, offset, caller, handle);
    if (node.database && !node.unlinked) {
      const kind = node.kind as DatabaseFileKind;
      return node.database.write(kind, node.fd, data, offset, this.#writer(caller, handle), answer);
    }
    writeFully(node.fd, data, offset);
    answer(0);
  }

  /** By its first bytes a new file shows whether it is a database. */
  #decideWhatItIs(node: FsNode, data: Buffer, offset: number, caller: Caller, handle: Handle): void {
    if (offset !== 0) return;
    const { control, otherFiles } = this.#services;
    const full = node.path;
    const { kind } = classifyPath(full);
    if (startsWith(data, DATABASE_MAGIC) && kind === 'database') {
      if (control.state === MountState.replica && !this.#isApplier(caller, handle)) {
        this.#services.refused(full, 'replica', 'this node is a replica: create databases on the primary');
        throw new Refusal(Errno.EROFS);
      }
      const written = fs.fstatSync(node.fd).size > 0;
      const files = this.#claim(full, true);
      // Its end came first: what is there is a part of the copy, and no database that is replicated already.
      if (written && files) files.live = false;
      return;
    }
    const known =
      startsWith(data, JOURNAL_MAGIC) ||
      startsWith(data, DATABASE_MAGIC) ||
      parseWalHeader(data.subarray(0, WAL_HEADER_BYTES)) !== undefined ||
      kind !== 'database';
    if (known || otherFiles === 'local') return;
    this.#services.refused(
      full,
      'other-file',
      'not a SQLite database; `fuse.other-files: local` keeps other files on this node',
    );
    throw new Refusal(Errno.EPERM);
  }

  /**
   * The database of this name: one that exists, or a file of the tree that becomes one now, with what is
   * beside it. Undefined when there is no such file, or when it is something else, unless it is known to be a
   * database (its header is about to be written).
   */
  #claim(name: string, isDatabase = false): DatabaseFiles | undefined {
    const known = this.#databases.get(name);
    if (known?.exists === true) return known;
    const source = this.#treePath(name);
    if (!isDatabase && !isPossibleDatabase(source)) return undefined;
    const files = known ?? this.#newDatabase(name);
    for (const kind of ['database', 'wal', 'journal'] as const) {
      const from = source + SUFFIX[kind];
      if (fs.lstatSync(from, { throwIfNoEntry: false })?.isFile() !== true) continue;
      fs.renameSync(from, files.path(kind));
      this.#syncedFolders.delete(path.dirname(from));
      if (kind !== 'database') files.attach(kind);
      const node = this.#known(name + SUFFIX[kind]);
      if (!node) continue;
      node.kind = kind;
      node.database = files;
      files.nodes.set(kind, node);
    }
    files.folderChanged();
    files.roleChanged();
    this.#services.created(name);
    return files;
  }

  #newDatabase(name: string): DatabaseFiles {
    fs.mkdirSync(path.join(this.#services.dataDir, 'dbs', encodeURIComponent(name)), { recursive: true });
    return this.#addDatabase(name);
  }

  /** The descriptor to sync for this handle; -1 when there is none. */
  syncTarget(handle: Handle): number {
    const { node } = handle;
    if (node.database && node.kind !== 'shm') node.database.synced(node.kind as DatabaseFileKind);
    return node.fd;
  }

  /**
   * Folders of the data directory behind a folder of the mount whose names changed since they were last synced
   * (trap 26). No others: each is a flush of the disk, which every rollback-mode transaction would pay. The kernel
   * syncs a folder of the mount for one caller at a time, so nobody is told that a change is durable while it is still being synced.
   */
  foldersToSync(folder: FsNode): string[] {
    const above = folder.path;
    const tree = this.#treePath(above);
    const folders = this.#syncedFolders.has(tree) ? [] : [tree];
    this.#syncedFolders.add(tree);
    for (const files of this.#databases.values()) {
      if (files.folder === 'synced' || folderOf(files.name) !== above) continue;
      // The name of its own folder is in `dbs`, and never changes.
      if (files.folder === 'new') folders.push(path.join(this.#services.dataDir, 'dbs'));
      files.folder = 'synced';
      folders.push(files.paths.directory);
    }
    return folders;
  }

  flush(handle: Handle, answer: Answer): void {
    const files = handle.node.database;
    if (!handle.wrote || handle.node.kind !== 'database' || !files?.adopting) return answer(0);
    files.adoptIfWhole(false, (errno) => {
      this.#retryWaiting();
      answer(errno);
    });
  }

  release(handle: Handle): void {
    const files = handle.node.database;
    this.#close(handle);
    // Where nobody else has the WAL open, the next one to open it recovers what is in it.
    if (handle.node.kind === 'wal' && handle.node.opens > 0) {
      files?.walReleased(handle.id, (then) => this.#walIndex(files, then));
    }
    if (!handle.wrote || handle.node.kind !== 'database' || !files?.adopting) return;
    files.adoptIfWhole(true, () => this.#retryWaiting());
  }

  /** The header of a wal-index as connections see it, if that can be known. */
  #walIndex(files: DatabaseFiles, then: (bytes: Buffer) => void): void {
    const shm = files.nodes.get('shm');
    if (!shm?.memory) return;
    const bytes = 2 * WAL_INDEX_HEADER_BYTES;
    this.cached?.(shm, bytes, (cached) =>
      // What is not cached has been written back.
      then(cached.length === bytes ? cached : (shm.memory?.read(0, bytes) ?? cached)),
    );
  }

  #close(handle: Handle): void {
    const { node } = handle;
    this.#handles.delete(handle.id);
    node.opens -= 1;
    if (node.opens > 0) return;
    if (node.fd >= 0) fs.closeSync(node.fd);
    node.fd = -1;
    if (node.unlinked && node.lookups === 0) this.#nodes.delete(node.id);
  }

  // --- Changing names

  mkdir(parent: FsNode, name: string, mode: number, caller: Caller): FsNode {
    const full = joined(parent, name);
    if (isSpecialPath(full)) throw new Refusal(Errno.EACCES);
    if (this.lookup(parent, name)) throw new Refusal(Errno.EEXIST);
    const target = this.#treePath(full);
    const bits = this.#services.dirMode ?? mode & 0o7777;
    fs.mkdirSync(target);
    this.#treeChanged(parent);
    fs.chmodSync(target, bits);
    this.#setOwner(target, caller);
    return this.#register(new FsNode('folder', parent, name));
  }

  rmdir(parent: FsNode, name: string): void {
    const node = this.#existing(parent, name);
    if (node.kind !== 'folder') throw new Refusal(Errno.ENOTDIR);
    if (this.#holdsDatabases(node.path)) throw new Refusal(Errno.ENOTEMPTY);
    fs.rmdirSync(this.#treePath(node.path));
    this.#treeChanged(parent);
    this.#detach(node);
  }

  unlink(parent: FsNode, name: string, caller: Caller, reply: Reply<void>): void {
    const node = this.#existing(parent, name);
    if (node.kind === 'folder') return reply(Errno.EISDIR);
    if (node.kind === 'special' || node.kind === 'wake') return reply(Errno.EACCES);
    const applier = this.#isApplier(caller) || this.#takeArmed(node.path, O_SYNC | O_RDWR);
    if (this.#waits(node.path, caller, applier, () => this.unlink(parent, name, caller, reply), reply))
      return;
    const files = node.database;
    if (!files || node.kind === 'shm') {
      if (!node.memory) {
        fs.unlinkSync(this.#diskPath(node));
        this.#treeChanged(parent);
      }
      this.#detach(node);
      if (node.kind === 'shm') files?.nodes.delete('shm');
      return reply(0);
    }
    const kind = node.kind as DatabaseFileKind;
    const privileged = applier || this.#services.control.state === MountState.closed;
    const by = { privileged, pid: caller.pid, handle: 0 };
    files.remove(kind, by, reply, () => {
      fs.unlinkSync(files.path(kind));
      this.#forgetFile(files, kind);
      if (kind !== 'database') return;
      this.#services.dropped(files.name);
      reply(0);
    });
  }

  #detach(node: FsNode): void {
    node.detach();
    this.forget(node.id, 0);
  }

  #forgetFile(files: DatabaseFiles, kind: DatabaseFileKind): void {
    const node = files.nodes.get(kind);
    if (node) this.#detach(node);
    files.nodes.delete(kind);
    files.folderChanged();
    if (kind === 'database') files.roleChanged();
  }

  rename(
    parent: FsNode,
    name: string,
    newParent: FsNode,
    newName: string,
    flags: number,
    caller: Caller,
    reply: Reply<void>,
  ): void {
    const node = this.#existing(parent, name);
    const target = this.lookup(newParent, newName);
    const to = joined(newParent, newName);
    if ((flags & RENAME_EXCHANGE) !== 0) return reply(Errno.EINVAL);
    if ((flags & RENAME_NOREPLACE) !== 0 && target) return reply(Errno.EEXIST);
    if (node === target) return reply(0);
    if (node.kind === 'special' || target?.kind === 'special' || isSpecialPath(to))
      return reply(Errno.EACCES);
    const again = (): void => this.rename(parent, name, newParent, newName, flags, caller, reply);
    if (this.#waits(node.path, caller, this.#isApplier(caller), again, reply)) return;
    if (node.kind === 'folder') return reply(this.#renameFolder(node, newParent, newName, target));
    const { kind } = classifyPath(to);
    if (kind === 'invalid') return reply(Errno.ENAMETOOLONG);
    // Companions move with SQLite's own calls only; another name would lose what is in them.
    if (node.kind !== 'file' && (node.kind !== 'database' || kind !== 'database')) return reply(Errno.EBUSY);
    if (target?.kind === 'folder') return reply(Errno.EISDIR);
    const move = (errno: number): void => {
      if (errno !== 0) return reply(errno);
      if (node.kind === 'database') this.#renameDatabase(node, newParent, newName, caller, reply);
      else this.#renameFile(node, newParent, newName, reply);
    };
    if (target) this.unlink(newParent, newName, caller, move);
    else move(0);
  }

  #renameFolder(node: FsNode, newParent: FsNode, newName: string, target: FsNode | undefined): number {
    // EXDEV makes mv copy and remove one by one, which is what replication can follow.
    if (this.#holdsDatabases(node.path)) return Errno.EXDEV;
    if (target && this.#holdsDatabases(target.path)) return Errno.ENOTEMPTY;
    fs.renameSync(this.#treePath(node.path), this.#treePath(joined(newParent, newName)));
    this.#treeChanged(node.parent, newParent);
    if (target) this.#detach(target);
    moveNode(node, newParent, newName);
    return 0;
  }

  #renameFile(node: FsNode, newParent: FsNode, newName: string, reply: Reply<void>): void {
    fs.renameSync(this.#treePath(node.path), this.#treePath(joined(newParent, newName)));
    this.#treeChanged(node.parent, newParent);
    moveNode(node, newParent, newName);
    const { kind, name: database } = classifyPath(node.path);
    const files = this.#databases.get(database);
    if (files?.exists === true && (kind === 'wal' || kind === 'journal')) {
      fs.renameSync(this.#treePath(node.path), files.path(kind));
      node.kind = kind;
      node.database = files;
      files.nodes.set(kind, node);
      files.folderChanged();
      files.attach(kind);
    }
    reply(0);
  }

  #renameDatabase(
    node: FsNode,
    newParent: FsNode,
    newName: string,
    caller: Caller,
    reply: Reply<void>,
  ): void {
    const from = node.database!;
    const to = joined(newParent, newName);
    from.rename(to, this.#writer(caller), reply, () => {
      const files = this.#databases.get(to) ?? this.#newDatabase(to);
      fs.renameSync(from.paths.database, files.paths.database);
      from.nodes.delete('database');
      from.folderChanged();
      from.roleChanged();
      moveNode(node, newParent, newName);
      node.database = files;
      files.nodes.set('database', node);
      files.folderChanged();
      files.roleChanged();
      this.#services.renamed(from.name, to);
      if (this.#services.control.state !== MountState.primary || !files.live) return reply(0);
      this.#services.gate.adopt(files.slot, reply);
    });
  }

  #existing(parent: FsNode, name: string): FsNode {
    const node = this.lookup(parent, name);
    if (!node) throw new Refusal(Errno.ENOENT);
    return node;
  }

  #holdsDatabases(folder: string): boolean {
    for (const files of this.#databases.values()) {
      if (files.name.startsWith(`${folder}/`) && files.exists) return true;
    }
    return false;
  }
}

/** Read once: reading it means setting it for a moment, for all threads. */
const DAEMON_UMASK = process.umask();

const SUFFIX = { database: '', wal: '-wal', journal: '-journal', shm: '-shm' } as const;
/** What `ls -i` shows for a file that the kernel has not looked up. */
const UNKNOWN_NODE = 0xffff_ffff;

const SPECIAL_ATTRIBUTES: Attributes = {
  size: 0,
  blocks: 0,
  mode: 0o100444,
  nlink: 1,
  uid: 0,
  gid: 0,
  atimeMs: 0,
  mtimeMs: 0,
  ctimeMs: 0,
};
const SPECIAL_FOLDER_ATTRIBUTES: Attributes = { ...SPECIAL_ATTRIBUTES, mode: 0o040555, nlink: 2 };

const joined = (parent: FsNode, name: string): string => {
  const above = parent.path;
  return above === '' ? name : `${above}/${name}`;
};

const folderOf = (name: string): string => name.slice(0, Math.max(0, name.lastIndexOf('/')));

const startsWith = (data: Buffer, magic: Buffer): boolean =>
  data.length >= magic.length && data.compare(magic, 0, magic.length, 0, magic.length) === 0;

function moveNode(node: FsNode, newParent: FsNode, newName: string): void {
  node.parent?.children.delete(node.name);
  node.parent = newParent;
  node.name = newName;
  newParent.children.set(newName, node);
}

/** An empty file, or one that starts as a database does. */
function isPossibleDatabase(target: string): boolean {
  if (fs.lstatSync(target, { throwIfNoEntry: false })?.isFile() !== true) return false;
  const fd = fs.openSync(target, 'r');
  try {
    const start = Buffer.alloc(DATABASE_MAGIC.length);
    const read = fs.readSync(fd, start, 0, start.length, 0);
    return read === 0 || start.equals(DATABASE_MAGIC);
  } finally {
    fs.closeSync(fd);
  }
}

/** One descriptor serves all handles of a file; the kernel has checked who may do what. */
function openBoth(target: string): number {
  try {
    return fs.openSync(target, 'r+');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EACCES') throw error;
    return fs.openSync(target, 'r');
  }
}
