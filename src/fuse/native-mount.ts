import fs from 'node:fs';
import type { MessagePort } from 'node:worker_threads';

import { KiteError } from '../errors.js';
import type { Caller, Handle } from './file-system.js';
import type { ServingOptions } from './mail.js';
import { abortConnection, MOUNT_SOURCE, mountAt, unmount } from './mount-point.js';
import type { MountOptions, Server } from './mount.js';
import type { FsNode } from './nodes.js';
import type { Attributes } from './protocol.js';
import { Errno, errnoOf, Refusal } from './services.js';
import { Serving } from './serving.js';
import { SpecialCopies } from './special-copies.js';

/** What fuse-native calls with: a negative errno, or 0 (a count, for read and write), and the result. */
type Callback = (result: number, value?: unknown) => void;
type Operation = (...args: never[]) => void;

/** The part of fuse-native that is used; the package has no types. */
type FuseNative = new (
  mountDir: string,
  operations: Record<string, Operation>,
  options: Record<string, unknown>,
) => { mount(done: (error: Error | null) => void): void };

const { O_RDWR, O_SYNC, O_ACCMODE } = { O_ACCMODE: 3, ...fs.constants };

const LINK_MODE = 0o120444;
const ID_MAX = 0x7fff_ffff;

/**
 * Mounts with fuse-native (libfuse 2.9, the setuid `fusermount`), for hosts where mount(2) is not
 * allowed. Its callbacks run on this, the main, thread: slower, and a thread that blocks stalls the mount.
 * It tells neither who calls nor how a new file is opened. Errors: ERR_MOUNT_DRIVER, ERR_MOUNT_FAILED.
 */
export async function startNative(
  options: MountOptions,
  serving: ServingOptions,
  port: MessagePort,
): Promise<Server> {
  const Fuse = await loadFuseNative();
  const served = new Serving(serving, port, true);
  const fuse = new Fuse(options.mountDir, operations(served), {
    // fuse-native has no option for this, but hands the name on as it is.
    fsname: `${MOUNT_SOURCE},big_writes`,
    allowOther: options.allowOther,
    defaultPermissions: true,
    // Answers may take as long as capture or a recovery takes.
    timeout: false,
  });
  await new Promise<void>((resolve, reject) => {
    fuse.mount((error) => {
      if (!error) return resolve();
      reject(
        new KiteError('ERR_MOUNT_FAILED', `mounting ${options.mountDir} failed: ${error.message}`, {
          cause: error,
        }),
      );
    });
  });
  served.ready();
  const connection = mountAt(options.mountDir)?.minor;
  return {
    async stop(tell) {
      await unmount(options.mountDir).catch((error: Error) => {
        options.onEvent({ type: 'error', message: error.message });
      });
      // fuse-native's own unmount joins its thread, which ends only when the last user is gone. Ending
      // the connection makes whoever still has files open fail instead of hanging.
      abortConnection(connection);
      tell();
      served.close();
    },
  };
}

async function loadFuseNative(): Promise<FuseNative> {
  try {
    // An optional dependency: it needs a compiler or a prebuilt binary, and libfuse2.
    const name = 'fuse-native';
    return ((await import(name)) as { default: FuseNative }).default;
  } catch (error) {
    throw new KiteError('ERR_MOUNT_DRIVER', `fuse-native cannot be loaded: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/** Paths of libfuse to nodes of the file system. */
function operations(served: Serving): Record<string, Operation> {
  const files = served.fileSystem;
  const caller = (): Caller => ({ pid: 0, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 });
  const copies = new SpecialCopies();
  /** What is open, by the number that libfuse knows it by: a handle, or the number of a copy of a special file. */
  const open = new Map<number, Handle | number>();
  /** Files that were removed while open, by the names that libfuse has given them until their last close. */
  const hidden = new Map<string, FsNode>();
  let lastId = 0;

  const keep = (what: Handle | number): number => {
    // fuse-native takes a number of 31 bits, and 0 for none.
    do lastId = (lastId % ID_MAX) + 1;
    while (open.has(lastId));
    open.set(lastId, what);
    return lastId;
  };
  const handleOf = (id: number): Handle => {
    const found = open.get(id);
    if (typeof found !== 'object') throw new Refusal(Errno.EBADF);
    return found;
  };

  const find = (path: string): FsNode => {
    const node = hidden.get(path) ?? files.resolve(path.slice(1));
    if (!node) throw new Refusal(Errno.ENOENT);
    return node;
  };
  const split = (path: string): [FsNode, string] => {
    const at = path.lastIndexOf('/');
    return [find(path.slice(0, at) || '/'), path.slice(at + 1)];
  };
  /** Runs an operation; whatever it throws is its answer. */
  const guarded = (callback: Callback, work: () => void): void => {
    try {
      work();
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined) served.error(`a request failed: ${(error as Error).stack ?? String(error)}`);
      callback(-(errno ?? Errno.EIO));
    }
  };
  const plain =
    (callback: Callback) =>
    (errno: number): void =>
      callback(-errno);
  const opened =
    (callback: Callback) =>
    (errno: number, handle?: Handle): void => {
      callback(-errno, handle && keep(handle));
    };
  const stats = (attributes: Attributes): Record<string, unknown> => ({
    ...attributes,
    atime: new Date(attributes.atimeMs),
    mtime: new Date(attributes.mtimeMs),
    ctime: new Date(attributes.ctimeMs),
  });
  const getattr = (path: string, callback: Callback): void =>
    guarded(callback, () => {
      const copy = copyOf(path);
      if (copy !== undefined) return callback(0, stats(attributesOf(copies.look(copy))));
      const node = find(path);
      const attributes = files.attributes(node);
      callback(0, stats(node.kind === 'special' ? { ...attributes, mode: LINK_MODE } : attributes));
    });
  const sync = (fd: number, callback: Callback): void => {
    if (fd < 0) return callback(0);
    fs.fsync(fd, (error) => callback(-(errnoOf(error) ?? 0)));
  };
  const change = (path: string, callback: Callback, to: Parameters<typeof files.setAttributes>[1]): void =>
    guarded(callback, () => {
      if (copyOf(path) !== undefined) return callback(-Errno.EACCES);
      files.setAttributes(find(path), to, caller(), undefined, plain(callback));
    });
  const refuse = (_from: string, _to: unknown, ...rest: unknown[]): void =>
    (rest.at(-1) as Callback)(-Errno.EPERM);

  return {
    getattr,
    fgetattr: (path: string, id: number, callback: Callback) =>
      guarded(callback, () => {
        const found = open.get(id);
        if (typeof found !== 'object') return getattr(path, callback);
        callback(0, stats(files.attributes(found.node)));
      }),
    readlink: (path: string, callback: Callback) =>
      guarded(callback, () =>
        files.open(find(path), 0, caller(), (errno, handle) => {
          if (!handle) return callback(-errno);
          const number = copies.add(handle.content ?? NOTHING);
          files.release(handle);
          callback(0, `${'../'.repeat(path.split('/').length - 2)}${COPIES.slice(1)}${number}`);
        }),
      ),
    open: (path: string, flags: number, callback: Callback) =>
      guarded(callback, () => {
        const copy = copyOf(path);
        if (copy === undefined) return files.open(find(path), flags, caller(), opened(callback));
        if ((flags & O_ACCMODE) !== 0) return callback(-Errno.EACCES);
        if (!copies.open(copy)) return callback(-Errno.ENOENT);
        callback(0, keep(copy));
      }),
    // The flags are not told. O_SYNC matters for names only that the applier has announced.
    create: (path: string, mode: number, callback: Callback) =>
      guarded(callback, () =>
        files.create(...split(path), O_RDWR | O_SYNC, mode, caller(), opened(callback)),
      ),
    read: (_path: string, id: number, into: Buffer, length: number, position: number, callback: Callback) =>
      guarded(callback, () => {
        const found = open.get(id);
        const source =
          typeof found === 'number' ? { memory: copies.look(found) ?? NOTHING } : files.source(handleOf(id));
        if ('memory' in source) {
          const from = Math.min(position, source.memory.length);
          return callback(source.memory.copy(into, 0, from, Math.min(from + length, source.memory.length)));
        }
        fs.read(source.fd, into, 0, length, position, (error, read) => {
          callback(error ? -(errnoOf(error) ?? Errno.EIO) : read);
        });
      }),
    write: (_path: string, id: number, from: Buffer, length: number, position: number, callback: Callback) =>
      guarded(callback, () =>
        files.write(handleOf(id), from.subarray(0, length), position, caller(), (errno) => {
          callback(errno === 0 ? length : -errno);
        }),
      ),
    flush: (_path: string, id: number, callback: Callback) =>
      guarded(callback, () =>
        typeof open.get(id) === 'number' ? callback(0) : files.flush(handleOf(id), plain(callback)),
      ),
    release: (_path: string, id: number, callback: Callback) =>
      guarded(callback, () => {
        const found = open.get(id);
        open.delete(id);
        if (typeof found === 'number') copies.close(found);
        else if (found) files.release(found);
        callback(0);
      }),
    fsync: (_path: string, _dataOnly: number, id: number, callback: Callback) =>
      guarded(callback, () =>
        sync(typeof open.get(id) === 'number' ? -1 : files.syncTarget(handleOf(id)), callback),
      ),
    fsyncdir: (path: string, _dataOnly: number, _id: number, callback: Callback) =>
      guarded(callback, () => {
        for (const folder of files.foldersToSync(find(path))) {
          const fd = fs.openSync(folder, 'r');
          fs.fsyncSync(fd);
          fs.closeSync(fd);
        }
        callback(0);
      }),
    opendir: (_path: string, _flags: number, callback: Callback) => callback(0, 0),
    releasedir: (_path: string, _id: number, callback: Callback) => callback(0),
    readdir: (path: string, callback: Callback) =>
      guarded(callback, () => {
        callback(
          0,
          files.list(find(path)).map((entry) => entry.name),
        );
      }),
    statfs: (_path: string, callback: Callback) =>
      guarded(callback, () => {
        const found = files.statfs();
        callback(0, {
          ...found,
          frsize: found.bsize,
          favail: found.ffree,
          fsid: 0,
          flag: 0,
          namemax: 255,
        });
      }),
    truncate: (path: string, size: number, callback: Callback) => change(path, callback, { size }),
    ftruncate: (_path: string, id: number, size: number, callback: Callback) =>
      guarded(callback, () => {
        const handle = handleOf(id);
        files.setAttributes(handle.node, { size }, caller(), handle, plain(callback));
      }),
    chmod: (path: string, mode: number, callback: Callback) => change(path, callback, { mode }),
    chown: (path: string, uid: number, gid: number, callback: Callback) =>
      change(path, callback, { uid: kept(uid), gid: kept(gid) }),
    utimens: (path: string, atimeMs: number, mtimeMs: number, callback: Callback) =>
      change(path, callback, { atimeMs, mtimeMs }),
    mkdir: (path: string, mode: number, callback: Callback) =>
      guarded(callback, () => {
        files.mkdir(...split(path), mode, caller());
        callback(0);
      }),
    rmdir: (path: string, callback: Callback) =>
      guarded(callback, () => {
        files.rmdir(...split(path));
        callback(0);
      }),
    unlink: (path: string, callback: Callback) =>
      guarded(callback, () => {
        if (hidden.delete(path)) return callback(0);
        files.unlink(...split(path), caller(), plain(callback));
      }),
    rename: (from: string, to: string, callback: Callback) =>
      guarded(callback, () => {
        // libfuse renames a file that is removed while open (trap 23: the commit of a rollback journal). Told not to
        // (`hard_remove`), it would not read it any more, and end the process now and then: its FLUSH comes without a path.
        const node = find(from);
        const isOpen = [...open.values()].some((of) => typeof of === 'object' && of.node === node);
        if (!HIDDEN.test(to) || !isOpen) {
          return files.rename(...split(from), ...split(to), 0, caller(), plain(callback));
        }
        files.unlink(...split(from), caller(), (errno) => {
          if (errno === 0) hidden.set(to, node);
          callback(-errno);
        });
      }),
    link: refuse,
    symlink: refuse,
    mknod: refuse,
  };
}

/** What libfuse calls files that were removed while open. */
const HIDDEN = /\/\.fuse_hidden[0-9a-f]{16}$/;
/** Where copies of special files are; behind it comes their number. */
const COPIES = '/.kitefs/.copy-';
const NOTHING = Buffer.alloc(0);

/** The number of a copy of a special file, of its path. */
const copyOf = (path: string): number | undefined =>
  path.startsWith(COPIES) ? Number(path.slice(COPIES.length)) : undefined;

function attributesOf(copy: Buffer | undefined): Attributes {
  if (!copy) throw new Refusal(Errno.ENOENT);
  const now = Date.now();
  const owner = { uid: 0, gid: 0, nlink: 1, mode: 0o100444 };
  return { ...owner, size: copy.length, blocks: 1, atimeMs: now, mtimeMs: now, ctimeMs: now };
}

/** chown(2)'s -1: stays as it is. */
const kept = (id: number): number | undefined => (id === 0xffff_ffff || id === -1 ? undefined : id);
