/**
 * The kernel's side of FUSE: the binary messages of /dev/fuse (linux/fuse.h, version 7.31 and later),
 * little-endian as on every machine that Node runs on. Nothing here does I/O. 64-bit fields are plain
 * numbers: ids, offsets and sizes stay below 2^53.
 */

export const Opcode = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  setattr: 4,
  readlink: 5,
  symlink: 6,
  mknod: 8,
  mkdir: 9,
  unlink: 10,
  rmdir: 11,
  rename: 12,
  link: 13,
  open: 14,
  read: 15,
  write: 16,
  statfs: 17,
  release: 18,
  fsync: 20,
  flush: 25,
  init: 26,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  fsyncdir: 30,
  create: 35,
  interrupt: 36,
  destroy: 38,
  notifyReply: 41,
  batchForget: 42,
  fallocate: 43,
  rename2: 45,
} as const;

export const IN_HEADER_BYTES = 40;
export const OUT_HEADER_BYTES = 16;
const ATTR_BYTES = 88;
const ENTRY_BYTES = 40 + ATTR_BYTES;
/** Where the data of a WRITE request start. */
export const WRITE_DATA_OFFSET = IN_HEADER_BYTES + 40;

/** Where the data of a NOTIFY_REPLY start, behind struct fuse_notify_retrieve_in. */
export const RETRIEVED_DATA_OFFSET = IN_HEADER_BYTES + 40;

/** Largest write and read; also what the applier keeps its own writes below (trap 17). */
export const MAX_WRITE_BYTES = 1 << 20;
const MAX_PAGES = MAX_WRITE_BYTES / 4096;
/** A request never needs more; the kernel refuses to read into less. */
export const REQUEST_BUFFER_BYTES = MAX_WRITE_BYTES + 4096;

export const FOPEN_DIRECT_IO = 1;
export const FOPEN_KEEP_CACHE = 2;
/** No FLUSH at each close (Linux 5.16; older kernels send it all the same). */
export const FOPEN_NOFLUSH = 32;

/** Bits of SETATTR's `valid`. */
export const SetAttr = {
  mode: 1,
  uid: 2,
  gid: 4,
  size: 8,
  atime: 16,
  mtime: 32,
  handle: 64,
  atimeNow: 128,
  mtimeNow: 256,
} as const;

const InitFlag = {
  asyncRead: 1 << 0,
  /** O_TRUNC comes with OPEN, so that it can be refused before anything is cut off (trap 24). */
  atomicTruncate: 1 << 3,
  bigWrites: 1 << 5,
  maxPages: 1 << 22,
  /** Only this server changes files, so the kernel never has to doubt its cache. */
  explicitInvalidation: 1 << 25,
} as const;

/** How long the kernel may believe names and attributes: for ever, since nobody else changes them. */
const FOREVER_SECONDS = 86_400 * 365;

export interface RequestHeader {
  readonly length: number;
  readonly opcode: number;
  readonly unique: number;
  readonly node: number;
  readonly uid: number;
  readonly gid: number;
  /** Thread id of the caller; 0 when the kernel acts by itself (write-back of a mapping). */
  readonly pid: number;
}

/** What a file looks like; the fields of fs.Stats that FUSE has. */
export interface Attributes {
  readonly size: number;
  readonly blocks: number;
  readonly mode: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  readonly atimeMs: number;
  readonly mtimeMs: number;
  readonly ctimeMs: number;
}

export interface FileSystemStats {
  readonly blocks: number;
  readonly bfree: number;
  readonly bavail: number;
  readonly files: number;
  readonly ffree: number;
  readonly bsize: number;
}

export interface DirectoryEntry {
  readonly node: number;
  readonly name: string;
  readonly folder: boolean;
}

const HIGH = 4_294_967_296;

export const readU64 = (from: Buffer, at: number): number =>
  from.readUInt32LE(at) + from.readUInt32LE(at + 4) * HIGH;

export function writeU64(into: Buffer, at: number, value: number): void {
  into.writeUInt32LE(value % HIGH, at);
  into.writeUInt32LE(Math.floor(value / HIGH), at + 4);
}

export const parseHeader = (request: Buffer): RequestHeader => ({
  length: request.readUInt32LE(0),
  opcode: request.readUInt32LE(4),
  unique: readU64(request, 8),
  node: readU64(request, 16),
  uid: request.readUInt32LE(24),
  gid: request.readUInt32LE(28),
  pid: request.readUInt32LE(32),
});

/** A NUL-terminated name in a request. */
export function readName(request: Buffer, at: number): string {
  const end = request.indexOf(0, at);
  return request.toString('utf8', at, end < 0 ? request.length : end);
}

/** The two names of RENAME, one after the other. */
export function readNames(request: Buffer, at: number): [string, string] {
  const end = request.indexOf(0, at);
  return [request.toString('utf8', at, end), readName(request, end + 1)];
}

/** Header of an answer; `errno` is positive. Returns the length of the whole answer. */
export function putHeader(into: Buffer, unique: number, errno: number, bodyBytes: number): number {
  const length = OUT_HEADER_BYTES + bodyBytes;
  into.writeUInt32LE(length, 0);
  into.writeInt32LE(-errno, 4);
  writeU64(into, 8, unique);
  return length;
}

function putAttributes(into: Buffer, at: number, node: number, attributes: Attributes): void {
  writeU64(into, at, node);
  writeU64(into, at + 8, attributes.size);
  writeU64(into, at + 16, attributes.blocks);
  putTime(into, at + 24, at + 48, attributes.atimeMs);
  putTime(into, at + 32, at + 52, attributes.mtimeMs);
  putTime(into, at + 40, at + 56, attributes.ctimeMs);
  into.writeUInt32LE(attributes.mode, at + 60);
  into.writeUInt32LE(attributes.nlink, at + 64);
  into.writeUInt32LE(attributes.uid, at + 68);
  into.writeUInt32LE(attributes.gid, at + 72);
  into.writeUInt32LE(0, at + 76);
  into.writeUInt32LE(4096, at + 80);
  into.writeUInt32LE(0, at + 84);
}

function putTime(into: Buffer, secondsAt: number, nanosecondsAt: number, ms: number): void {
  const at = Math.max(0, ms);
  const seconds = Math.floor(at / 1000);
  writeU64(into, secondsAt, seconds);
  into.writeUInt32LE(Math.min(999_999_999, Math.round((at - seconds * 1000) * 1e6)), nanosecondsAt);
}

/** Answer to GETATTR and SETATTR. `lasting`: the kernel may keep it until it changes the file itself. */
export function putAttrAnswer(
  into: Buffer,
  unique: number,
  node: number,
  attributes: Attributes,
  lasting: boolean,
): number {
  writeU64(into, 16, lasting ? FOREVER_SECONDS : 0);
  writeU64(into, 24, 0);
  putAttributes(into, 32, node, attributes);
  return putHeader(into, unique, 0, 16 + ATTR_BYTES);
}

/** Answer to LOOKUP and MKDIR, and the first part of CREATE's. */
export function putEntryAnswer(
  into: Buffer,
  unique: number,
  node: number,
  attributes: Attributes,
  lasting: boolean,
): number {
  const seconds = lasting ? FOREVER_SECONDS : 0;
  writeU64(into, 16, node);
  writeU64(into, 24, 0);
  writeU64(into, 32, seconds);
  writeU64(into, 40, seconds);
  writeU64(into, 48, 0);
  putAttributes(into, 56, node, attributes);
  return putHeader(into, unique, 0, ENTRY_BYTES);
}

/** Answer to LOOKUP of a name that does not exist, which the kernel may remember until it is made. */
export function putNoEntryAnswer(into: Buffer, unique: number, lasting: boolean): number {
  into.fill(0, OUT_HEADER_BYTES, OUT_HEADER_BYTES + ENTRY_BYTES);
  writeU64(into, 32, lasting ? FOREVER_SECONDS : 0);
  return putHeader(into, unique, 0, ENTRY_BYTES);
}

export function putOpenAnswer(into: Buffer, unique: number, handle: number, openFlags: number): number {
  putOpen(into, OUT_HEADER_BYTES, handle, openFlags);
  return putHeader(into, unique, 0, 16);
}

export function putCreateAnswer(
  into: Buffer,
  unique: number,
  node: number,
  attributes: Attributes,
  lasting: boolean,
  handle: number,
  openFlags: number,
): number {
  putEntryAnswer(into, unique, node, attributes, lasting);
  putOpen(into, OUT_HEADER_BYTES + ENTRY_BYTES, handle, openFlags);
  return putHeader(into, unique, 0, ENTRY_BYTES + 16);
}

function putOpen(into: Buffer, at: number, handle: number, openFlags: number): void {
  writeU64(into, at, handle);
  into.writeUInt32LE(openFlags, at + 8);
  into.writeUInt32LE(0, at + 12);
}

/** Length of a FUSE_NOTIFY_RETRIEVE. */
export const RETRIEVE_BYTES = OUT_HEADER_BYTES + 32;
const NOTIFY_RETRIEVE = 5;

/**
 * Asks for the first `sizeBytes` that the kernel has cached of a file. It answers with a NOTIFY_REPLY whose `unique` is
 * `unique` and which holds what is cached: the pages that applications map, as they are when the answer is read.
 */
export function putRetrieve(into: Buffer, unique: number, node: number, sizeBytes: number): number {
  into.fill(0, 0, RETRIEVE_BYTES);
  into.writeUInt32LE(RETRIEVE_BYTES, 0);
  into.writeInt32LE(NOTIFY_RETRIEVE, 4);
  writeU64(into, 16, unique);
  writeU64(into, 24, node);
  into.writeUInt32LE(sizeBytes, 40);
  return RETRIEVE_BYTES;
}

/** What a NOTIFY_REPLY holds: less than was asked for, or nothing, when that is not cached. */
export const retrievedData = (request: Buffer): Buffer =>
  request.subarray(RETRIEVED_DATA_OFFSET, RETRIEVED_DATA_OFFSET + request.readUInt32LE(IN_HEADER_BYTES + 16));

export function putWriteAnswer(into: Buffer, unique: number, sizeBytes: number): number {
  into.writeUInt32LE(sizeBytes, 16);
  into.writeUInt32LE(0, 20);
  return putHeader(into, unique, 0, 8);
}

export function putStatfsAnswer(into: Buffer, unique: number, stats: FileSystemStats): number {
  into.fill(0, 16, 16 + 80);
  writeU64(into, 16, stats.blocks);
  writeU64(into, 24, stats.bfree);
  writeU64(into, 32, stats.bavail);
  writeU64(into, 40, stats.files);
  writeU64(into, 48, stats.ffree);
  into.writeUInt32LE(stats.bsize, 56);
  into.writeUInt32LE(255, 60);
  into.writeUInt32LE(stats.bsize, 64);
  return putHeader(into, unique, 0, 80);
}

/** The entries from number `offset` on that fit into `sizeBytes`. */
export function putDirectoryAnswer(
  into: Buffer,
  unique: number,
  entries: readonly DirectoryEntry[],
  offset: number,
  sizeBytes: number,
): number {
  let at = OUT_HEADER_BYTES;
  const end = OUT_HEADER_BYTES + Math.min(sizeBytes, into.length - OUT_HEADER_BYTES);
  for (let i = offset; i < entries.length; i += 1) {
    const entry = entries[i]!;
    const nameBytes = Buffer.byteLength(entry.name);
    const bytes = (24 + nameBytes + 7) & ~7;
    if (at + bytes > end) break;
    writeU64(into, at, entry.node);
    writeU64(into, at + 8, i + 1);
    into.writeUInt32LE(nameBytes, at + 16);
    into.writeUInt32LE(entry.folder ? 4 : 8, at + 20); // DT_DIR, DT_REG
    into.write(entry.name, at + 24);
    into.fill(0, at + 24 + nameBytes, at + bytes);
    at += bytes;
  }
  return putHeader(into, unique, 0, at - OUT_HEADER_BYTES);
}

/**
 * Answer to INIT, or undefined when the kernel is too old (before 7.28, Linux 4.20). FUSE_POSIX_LOCKS
 * and FUSE_FLOCK_LOCKS are not asked for: locks then stay in the kernel and cost no round trip.
 */
export function putInitAnswer(into: Buffer, request: Buffer, unique: number): number | undefined {
  const minor = request.readUInt32LE(44);
  if (request.readUInt32LE(40) !== 7 || minor < 28) return undefined;
  const offered = request.readUInt32LE(52);
  const wanted =
    InitFlag.asyncRead |
    InitFlag.atomicTruncate |
    InitFlag.bigWrites |
    InitFlag.maxPages |
    InitFlag.explicitInvalidation;
  into.fill(0, 16, 16 + 64);
  into.writeUInt32LE(7, 16);
  into.writeUInt32LE(31, 20);
  into.writeUInt32LE(request.readUInt32LE(48), 24); // max_readahead: what the kernel offers
  into.writeUInt32LE((offered & wanted) >>> 0, 28);
  into.writeUInt16LE(64, 32); // max_background
  into.writeUInt16LE(48, 34); // congestion_threshold
  into.writeUInt32LE(MAX_WRITE_BYTES, 36);
  into.writeUInt32LE(1, 40); // time granularity, ns
  into.writeUInt16LE(MAX_PAGES, 44);
  return putHeader(into, unique, 0, 64);
}
