import fs from 'node:fs';

import { IoOp, type IoQueue } from './io-queue.js';
import type { AttributeChange, Caller, FileSystem, Handle } from './file-system.js';
import type { FsNode } from './nodes.js';
import * as wire from './protocol.js';
import {
  Opcode,
  OUT_HEADER_BYTES,
  readName,
  readNames,
  readU64,
  retrievedData,
  SetAttr,
} from './protocol.js';
import { Errno, errnoOf } from './services.js';
import { WAKE_NODE_ID, type Waker } from './waker.js';

const AT = wire.IN_HEADER_BYTES;
/** Reads up to this size of a log are made at once: they were written a moment ago and are in memory. */
const INLINE_READ_BYTES = 16_384;
/** errno of a read of /dev/fuse: unmounted. */
const ENODEV = 19;
/** Nobody waits for the answer any more: the process was killed. */
const ENOENT = 2;

export interface KernelDriverOptions {
  readonly fd: number;
  readonly fileSystem: FileSystem;
  readonly waker: Waker;
  readonly queues: readonly IoQueue[];
  /** Handles what other threads sent; returns false when the loop has to end. */
  readonly drain: () => boolean;
  /** The kernel knows the wake file: from now on this thread can be woken. */
  readonly ready: () => void;
  readonly error: (message: string) => void;
}

/**
 * The FUSE loop: one thread that blocks in reads of /dev/fuse, which is three times as fast as reads on
 * an event loop (DESIGN §1). An answer may be written later, by this or by another thread.
 */
export class KernelDriver {
  readonly #o: KernelDriverOptions;
  readonly #files: FileSystem;
  readonly #request = Buffer.alloc(wire.REQUEST_BUFFER_BYTES);
  readonly #reply = Buffer.alloc(OUT_HEADER_BYTES + wire.MAX_WRITE_BYTES);
  /** Requests without an answer yet, for FUSE_INTERRUPT. */
  readonly #pending = new Map<number, Caller>();
  /** What the kernel was asked for and has not sent yet, by a number of ours; the waker's is 0. */
  readonly #retrieving = new Map<number, (bytes: Buffer) => void>();
  #nextRetrieve = 1;

  constructor(options: KernelDriverOptions) {
    this.#o = options;
    this.#files = options.fileSystem;
    this.#files.cached = (node, sizeBytes, then) => this.#retrieve(node, sizeBytes, then);
  }

  /** Serves until the mount is gone (returns false) or `drain` said to end (returns true). */
  run(): boolean {
    for (;;) {
      let length: number;
      try {
        length = fs.readSync(this.#o.fd, this.#request, 0, this.#request.length, null);
      } catch (error) {
        if (errnoOf(error) === ENODEV) return false;
        continue; // EINTR, EAGAIN; ENOENT: a request was taken back before it was read
      }
      this.#handle(this.#request.subarray(0, length));
      if (this.#o.waker.taken() && !this.#o.drain()) return true;
    }
  }

  #handle(request: Buffer): void {
    const header = wire.parseHeader(request);
    const { unique } = header;
    try {
      this.#dispatch(header, request);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined) {
        this.#o.error(`request ${header.opcode} failed: ${(error as Error).stack ?? String(error)}`);
      }
      this.#fail(unique, errno ?? Errno.EIO);
    }
  }

  #send(length: number): void {
    try {
      fs.writeSync(this.#o.fd, this.#reply, 0, length);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno !== ENOENT && errno !== ENODEV) this.#o.error(`an answer was refused: ${String(error)}`);
    }
  }

  #fail(unique: number, errno: number): void {
    this.#pending.delete(unique);
    this.#send(wire.putHeader(this.#reply, unique, errno, 0));
  }

  /** An answer without content. Answers that come later may throw nowhere: they are guarded here. */
  #plain(unique: number): (errno: number) => void {
    return (errno) => this.#fail(unique, errno);
  }

  /** For answers with content: `put` writes it and returns its length. */
  #later<T>(unique: number, put: (value: T) => number): (errno: number, value?: T) => void {
    return (errno, value) => {
      if (errno !== 0) return this.#fail(unique, errno);
      this.#pending.delete(unique);
      let length: number;
      try {
        length = put(value as T);
      } catch (error) {
        return this.#fail(unique, errnoOf(error) ?? Errno.EIO);
      }
      this.#send(length);
    };
  }

  #dispatch(header: wire.RequestHeader, request: Buffer): void {
    const { opcode, unique, node: id } = header;
    const files = this.#files;
    switch (opcode) {
      case Opcode.write:
        return this.#write(header, request);
      case Opcode.read:
        return this.#read(unique, request);
      case Opcode.getattr:
        return this.#getattr(unique, id, request);
      case Opcode.lookup:
        return this.#lookup(unique, files.node(id), readName(request, AT));
      case Opcode.open:
        return files.open(
          files.node(id),
          request.readUInt32LE(AT),
          this.#caller(header),
          this.#later(unique, (handle: Handle) => {
            if (id === WAKE_NODE_ID) this.#armWaker();
            return wire.putOpenAnswer(this.#reply, unique, handle.id, openFlags(handle));
          }),
        );
      case Opcode.create:
        return this.#create(header, request);
      case Opcode.flush:
        this.#caller(header);
        return files.flush(files.handle(readU64(request, AT)), this.#plain(unique));
      case Opcode.release:
        files.release(files.handle(readU64(request, AT)));
        return this.#fail(unique, 0);
      case Opcode.fsync:
        return this.#fsync(unique, files.handle(readU64(request, AT)));
      case Opcode.fsyncdir:
        return this.#fsyncdir(unique, files.node(id));
      case Opcode.setattr:
        return this.#setattr(header, request);
      case Opcode.unlink:
        return files.unlink(files.node(id), readName(request, AT), this.#caller(header), this.#plain(unique));
      case Opcode.mkdir: {
        const node = files.mkdir(
          files.node(id),
          readName(request, AT + 8),
          request.readUInt32LE(AT),
          this.#caller(header),
        );
        this.#pending.delete(unique);
        return this.#send(this.#entry(unique, node));
      }
      case Opcode.rmdir:
        files.rmdir(files.node(id), readName(request, AT));
        return this.#fail(unique, 0);
      case Opcode.rename:
      case Opcode.rename2:
        return this.#rename(header, request);
      case Opcode.statfs:
        return this.#send(wire.putStatfsAnswer(this.#reply, unique, files.statfs()));
      case Opcode.opendir:
        return this.#send(wire.putOpenAnswer(this.#reply, unique, 0, 0));
      case Opcode.readdir:
        return this.#readdir(unique, id, request);
      case Opcode.releasedir:
        return this.#fail(unique, 0);
      case Opcode.fallocate:
        return this.#fallocate(header, request);
      case Opcode.forget:
        return files.forget(id, readU64(request, AT));
      case Opcode.batchForget:
        return this.#batchForget(request);
      case Opcode.interrupt: {
        const caller = this.#pending.get(readU64(request, AT));
        if (caller) files.interrupt(caller);
        return;
      }
      case Opcode.init:
        return this.#init(unique, request);
      case Opcode.notifyReply: {
        const then = this.#retrieving.get(unique); // none: somebody woke this thread, `run` looks
        this.#retrieving.delete(unique);
        return then?.(retrievedData(request));
      }
      case Opcode.destroy:
        return;
      case Opcode.symlink:
      case Opcode.link:
      case Opcode.mknod:
        return this.#fail(unique, Errno.EPERM);
      default:
        return this.#fail(unique, Errno.ENOSYS);
    }
  }

  /** Also notes the request as unanswered. */
  #caller(header: wire.RequestHeader): Caller {
    this.#pending.set(header.unique, header);
    return header;
  }

  /**
   * The one notification that this thread may send (trap 17): the kernel takes references to cached pages for it and
   * waits for no lock and no answer.
   */
  #retrieve(node: FsNode, sizeBytes: number, then: (bytes: Buffer) => void): void {
    const unique = this.#nextRetrieve++;
    this.#retrieving.set(unique, then);
    try {
      fs.writeSync(this.#o.fd, this.#reply, 0, wire.putRetrieve(this.#reply, unique, node.id, sizeBytes));
    } catch {
      // The kernel does not know the file any more: nothing of it is cached.
      this.#retrieving.delete(unique);
      then(this.#reply.subarray(0, 0));
    }
  }

  #init(unique: number, request: Buffer): void {
    const length = wire.putInitAnswer(this.#reply, request, unique);
    if (length === undefined) return this.#fail(unique, 71); // EPROTO
    this.#send(length);
  }

  #armWaker(): void {
    this.#o.waker.arm(this.#o.fd);
    this.#o.ready();
  }

  #entry(unique: number, node: FsNode): number {
    node.lookups += 1;
    return wire.putEntryAnswer(
      this.#reply,
      unique,
      node.id,
      this.#files.attributes(node),
      this.#files.isLasting(node),
    );
  }

  #lookup(unique: number, parent: FsNode, name: string): void {
    const node = this.#files.lookup(parent, name);
    if (node) return this.#send(this.#entry(unique, node));
    this.#send(wire.putNoEntryAnswer(this.#reply, unique, this.#files.isLastingAbsence(parent, name)));
  }

  #getattr(unique: number, id: number, _request: Buffer): void {
    const node = this.#files.node(id);
    const attributes = this.#files.attributes(node);
    this.#send(wire.putAttrAnswer(this.#reply, unique, id, attributes, this.#files.isLasting(node)));
  }

  #setattr(header: wire.RequestHeader, request: Buffer): void {
    const { unique, node: id } = header;
    const valid = request.readUInt32LE(AT);
    const has = (bit: number): boolean => (valid & bit) !== 0;
    const time = (set: number, now: number, seconds: number, nanoseconds: number): number | undefined => {
      if (has(now)) return Date.now();
      if (!has(set)) return undefined;
      return readU64(request, AT + seconds) * 1000 + request.readUInt32LE(AT + nanoseconds) / 1e6;
    };
    const change: AttributeChange = {
      mode: has(SetAttr.mode) ? request.readUInt32LE(AT + 68) : undefined,
      uid: has(SetAttr.uid) ? request.readUInt32LE(AT + 76) : undefined,
      gid: has(SetAttr.gid) ? request.readUInt32LE(AT + 80) : undefined,
      size: has(SetAttr.size) ? readU64(request, AT + 16) : undefined,
      atimeMs: time(SetAttr.atime, SetAttr.atimeNow, 32, 56),
      mtimeMs: time(SetAttr.mtime, SetAttr.mtimeNow, 40, 60),
    };
    const node = this.#files.node(id);
    const handle = has(SetAttr.handle) ? this.#files.handle(readU64(request, AT + 8)) : undefined;
    this.#files.setAttributes(node, change, this.#caller(header), handle, this.#attrAnswer(unique, node));
  }

  #attrAnswer(unique: number, node: FsNode): (errno: number) => void {
    return this.#later<void>(unique, () =>
      wire.putAttrAnswer(this.#reply, unique, node.id, this.#files.attributes(node), true),
    );
  }

  #create(header: wire.RequestHeader, request: Buffer): void {
    const { unique, node: id } = header;
    const flags = request.readUInt32LE(AT);
    const mode = request.readUInt32LE(AT + 4);
    const name = readName(request, AT + 16);
    const reply = this.#later(unique, (handle: Handle) => {
      const { node } = handle;
      node.lookups += 1;
      const attributes = this.#files.attributes(node);
      return wire.putCreateAnswer(
        this.#reply,
        unique,
        node.id,
        attributes,
        true,
        handle.id,
        openFlags(handle),
      );
    });
    this.#files.create(this.#files.node(id), name, flags, mode, this.#caller(header), reply);
  }

  #write(header: wire.RequestHeader, request: Buffer): void {
    const { unique } = header;
    const handle = this.#files.handle(readU64(request, AT));
    const offset = readU64(request, AT + 8);
    const sizeBytes = request.readUInt32LE(AT + 16);
    const data = request.subarray(wire.WRITE_DATA_OFFSET, wire.WRITE_DATA_OFFSET + sizeBytes);
    this.#files.write(handle, data, offset, header, (errno) => {
      if (errno !== 0) return this.#fail(unique, errno);
      this.#send(wire.putWriteAnswer(this.#reply, unique, sizeBytes));
    });
  }

  #read(unique: number, request: Buffer): void {
    const handle = this.#files.handle(readU64(request, AT));
    const offset = readU64(request, AT + 8);
    const sizeBytes = Math.min(request.readUInt32LE(AT + 16), wire.MAX_WRITE_BYTES);
    const source = this.#files.source(handle);
    if ('memory' in source) {
      const read = source.memory.copy(
        this.#reply,
        OUT_HEADER_BYTES,
        Math.min(offset, source.memory.length),
        offset + sizeBytes,
      );
      return this.#send(wire.putHeader(this.#reply, unique, 0, read));
    }
    const inline = handle.node.kind !== 'database' && sizeBytes <= INLINE_READ_BYTES;
    if (!inline && this.#queue().put(IoOp.read, source.fd, unique, offset, sizeBytes)) return;
    const read = fs.readSync(source.fd, this.#reply, OUT_HEADER_BYTES, sizeBytes, offset);
    this.#send(wire.putHeader(this.#reply, unique, 0, read));
  }

  #fsync(unique: number, handle: Handle): void {
    const fd = this.#files.syncTarget(handle);
    if (fd < 0) return this.#fail(unique, 0);
    if (this.#queue().put(IoOp.sync, fd, unique, 0, 0)) return;
    fs.fsyncSync(fd);
    this.#fail(unique, 0);
  }

  #fsyncdir(unique: number, folder: FsNode): void {
    const folders = this.#files.foldersToSync(folder);
    if (folders.length === 0) return this.#fail(unique, 0);
    // All to one thread, in order: the last one answers for all of them.
    const queue = this.#queue();
    for (const [i, folder] of folders.entries()) {
      const fd = fs.openSync(folder, 'r');
      const last = i === folders.length - 1;
      if (queue.put(last ? IoOp.syncFolderLast : IoOp.syncFolder, fd, unique, 0, 0)) continue;
      fs.fsyncSync(fd);
      fs.closeSync(fd);
      if (last) this.#fail(unique, 0);
    }
  }

  /** The I/O thread with the least to do. */
  #queue(): IoQueue {
    return this.#o.queues.reduce((least, queue) => (queue.length < least.length ? queue : least));
  }

  #rename(header: wire.RequestHeader, request: Buffer): void {
    const { unique, node: id, opcode } = header;
    const isNew = opcode === Opcode.rename2;
    const newParent = this.#files.node(readU64(request, AT));
    const flags = isNew ? request.readUInt32LE(AT + 8) : 0;
    const [name, newName] = readNames(request, AT + (isNew ? 16 : 8));
    this.#files.rename(
      this.#files.node(id),
      name,
      newParent,
      newName,
      flags,
      this.#caller(header),
      this.#plain(unique),
    );
  }

  #readdir(unique: number, id: number, request: Buffer): void {
    const entries = this.#files.list(this.#files.node(id));
    const offset = readU64(request, AT + 8);
    this.#send(wire.putDirectoryAnswer(this.#reply, unique, entries, offset, request.readUInt32LE(AT + 16)));
  }

  /** Plain growth only; for the rest callers have another way (posix_fallocate writes zeros). */
  #fallocate(header: wire.RequestHeader, request: Buffer): void {
    const { unique } = header;
    const handle = this.#files.handle(readU64(request, AT));
    const end = readU64(request, AT + 8) + readU64(request, AT + 16);
    if (request.readUInt32LE(AT + 24) !== 0) return this.#fail(unique, Errno.EOPNOTSUPP);
    if (this.#files.attributes(handle.node).size >= end) return this.#fail(unique, 0);
    this.#files.setAttributes(handle.node, { size: end }, this.#caller(header), handle, this.#plain(unique));
  }

  #batchForget(request: Buffer): void {
    const count = request.readUInt32LE(AT);
    for (let i = 0; i < count; i += 1) {
      const at = AT + 8 + i * 16;
      this.#files.forget(readU64(request, at), readU64(request, at + 8));
    }
  }
}

function openFlags({ node: { kind } }: Handle): number {
  if (kind === 'special') return wire.FOPEN_DIRECT_IO;
  // Closing a journal, which a transaction does, means nothing here. Of other files it may: a copy becomes whole (trap
  // 24), a mapping of `-shm` is written back.
  return kind === 'journal' ? wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH : wire.FOPEN_KEEP_CACHE;
}
