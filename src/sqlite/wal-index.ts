import { WalSum, type WalChecksum } from './wal.js';

/**
 * The wal-index `-shm` (sqlite.org/walformat.html §2, wal.c): two copies of a header, checkpoint state, and
 * blocks of 32 KiB that say for each frame which page it is, with a hash table to find a page's frames.
 * SQLite keeps it in the byte order of the machine; all machines KiteFS runs on are little-endian.
 */

export const WAL_INDEX_HEADER_BYTES = 48;
export const WAL_INDEX_BLOCK_BYTES = 32768;

const FORMAT_VERSION = 3007000;
const CHECKPOINT_INFO_OFFSET = 2 * WAL_INDEX_HEADER_BYTES;
/** Both headers and the checkpoint state; the page numbers of the first block come after them. */
const PREAMBLE_BYTES = 136;
const HASH_SLOTS = 8192;
const HASH_OFFSET = WAL_INDEX_BLOCK_BYTES - HASH_SLOTS * 2;
const FRAMES_PER_BLOCK = 4096;
const FRAMES_IN_FIRST_BLOCK = FRAMES_PER_BLOCK - PREAMBLE_BYTES / 4;
const READ_MARK_UNUSED = 0xffffffff;

export interface WalIndexHeader extends WalChecksum {
  /** Raised by each commit. */
  readonly change: number;
  readonly bigEndianChecksum: boolean;
  /** Bytes. */
  readonly pageSize: number;
  /** Last frame that is committed; 0 = the WAL holds nothing. */
  readonly mxFrame: number;
  /** Database size, pages. */
  readonly pages: number;
  /** checksum1, checksum2: those of frame mxFrame. The salts are the WAL header's, read big-endian. */
  readonly salt1: number;
  readonly salt2: number;
}

/** A piece of `-shm` to write; pieces must be written in the order given. */
export interface WalIndexWrite {
  readonly offset: number;
  readonly bytes: Buffer;
}

/**
 * Takes the start of `-shm`. Undefined when SQLite would not use it either: not initialised, the copies
 * differ, or a wrong checksum (walIndexTryHdr).
 */
export function parseWalIndexHeader(bytes: Uint8Array): WalIndexHeader | undefined {
  if (bytes.length < 2 * WAL_INDEX_HEADER_BYTES) return undefined;
  const both = Buffer.from(bytes.buffer, bytes.byteOffset, 2 * WAL_INDEX_HEADER_BYTES);
  const copy1 = both.subarray(0, WAL_INDEX_HEADER_BYTES);
  if (!copy1.equals(both.subarray(WAL_INDEX_HEADER_BYTES))) return undefined;
  const sum = new WalSum(false);
  sum.add(copy1, 0, 40);
  if (sum.checksum1 !== copy1.readUInt32LE(40) || sum.checksum2 !== copy1.readUInt32LE(44)) return undefined;
  if (copy1.readUInt32LE(0) !== FORMAT_VERSION || copy1.readUInt8(12) === 0) return undefined;
  const size = copy1.readUInt16LE(14);
  return {
    change: copy1.readUInt32LE(8),
    bigEndianChecksum: copy1.readUInt8(13) !== 0,
    pageSize: (size & 0xfe00) + ((size & 1) << 16),
    mxFrame: copy1.readUInt32LE(16),
    pages: copy1.readUInt32LE(20),
    checksum1: copy1.readUInt32LE(24),
    checksum2: copy1.readUInt32LE(28),
    salt1: copy1.readUInt32BE(32),
    salt2: copy1.readUInt32BE(36),
  };
}

/** One copy of the header, with its checksum. */
export function buildWalIndexHeader(header: WalIndexHeader): Buffer {
  const bytes = Buffer.alloc(WAL_INDEX_HEADER_BYTES);
  bytes.writeUInt32LE(FORMAT_VERSION, 0);
  bytes.writeUInt32LE(header.change >>> 0, 8);
  bytes.writeUInt8(1, 12);
  bytes.writeUInt8(header.bigEndianChecksum ? 1 : 0, 13);
  bytes.writeUInt16LE((header.pageSize & 0xff00) | (header.pageSize >>> 16), 14);
  bytes.writeUInt32LE(header.mxFrame, 16);
  bytes.writeUInt32LE(header.pages, 20);
  bytes.writeUInt32LE(header.checksum1, 24);
  bytes.writeUInt32LE(header.checksum2, 28);
  bytes.writeUInt32BE(header.salt1, 32);
  bytes.writeUInt32BE(header.salt2, 36);
  const sum = new WalSum(false);
  sum.add(bytes, 0, 40);
  bytes.writeUInt32LE(sum.checksum1, 40);
  bytes.writeUInt32LE(sum.checksum2, 44);
  return bytes;
}

/**
 * What to write to `-shm` so that frames appended to the WAL after `current.mxFrame` are committed.
 * `pgnos` are their pages in order; `next` is the header after them. `readBlock` returns block `index` of
 * `-shm` (32 KiB from index * 32 KiB; may be short or empty when the file ends before).
 *
 * Order: page numbers and hash tables first, because readers may use them as soon as they see the header; then
 * both copies of the header. The caller holds the WAL's write lock.
 */
export function planWalIndexAppend(
  current: WalIndexHeader,
  readBlock: (index: number) => Uint8Array,
  pgnos: readonly number[],
  next: WalIndexHeader,
): WalIndexWrite[] {
  const writes: WalIndexWrite[] = [];
  let frame = current.mxFrame;
  let done = 0;
  while (done < pgnos.length) {
    const index = blockOfFrame(frame + 1);
    const block = new IndexBlock(index, readBlock(index));
    // Frames that a rolled back transaction, or a writer that died, has left behind (trap 15).
    block.dropAfter(frame);
    while (done < pgnos.length && blockOfFrame(frame + 1) === index) {
      frame += 1;
      block.add(frame, pgnos[done]!);
      done += 1;
    }
    writes.push(block.change());
  }
  // Both copies at once, because each write is a round trip to the mount. A reader takes a header when both copies are
  // equal and the checksum in them is right (walIndexTryHdr), so it never takes one that is half written.
  const header = buildWalIndexHeader(next);
  writes.push({ offset: 0, bytes: Buffer.concat([header, header]) });
  return writes;
}

/** A whole `-shm` for frames 1 to header.mxFrame, as SQLite's recovery would leave it. `pgnos[0]` is frame 1's page. */
export function buildWalIndex(header: WalIndexHeader, pgnos: readonly number[]): Buffer {
  const blocks = header.mxFrame === 0 ? 1 : blockOfFrame(header.mxFrame) + 1;
  const shm = Buffer.alloc(blocks * WAL_INDEX_BLOCK_BYTES);
  const empty = { ...header, mxFrame: 0 };
  for (const write of planWalIndexAppend(empty, () => new Uint8Array(0), pgnos, header)) {
    shm.set(write.bytes, write.offset);
  }
  shm.writeUInt32LE(header.mxFrame, CHECKPOINT_INFO_OFFSET + 32);
  // Mark 0 means "reads `database` alone"; mark 1 is this snapshot; the others are free (walIndexRecover).
  const marks = [0, header.mxFrame > 0 ? header.mxFrame : READ_MARK_UNUSED];
  for (let mark = 0; mark < 5; mark += 1) {
    shm.writeUInt32LE(marks[mark] ?? READ_MARK_UNUSED, CHECKPOINT_INFO_OFFSET + 4 + mark * 4);
  }
  return shm;
}

/** The block that holds a frame (from 1). */
const blockOfFrame = (frame: number): number =>
  frame <= FRAMES_IN_FIRST_BLOCK ? 0 : 1 + Math.floor((frame - FRAMES_IN_FIRST_BLOCK - 1) / FRAMES_PER_BLOCK);

/** A copy of one block, changed as SQLite would (walIndexAppend, walCleanupHash). */
class IndexBlock {
  readonly #offset: number;
  /** Frames before the first of this block. */
  readonly #framesBefore: number;
  /** Where the page numbers start in the block. */
  readonly #pgnosOffset: number;
  readonly #bytes: Buffer;
  /** What was changed, bytes of the block. */
  #from = WAL_INDEX_BLOCK_BYTES;
  #to = 0;
  readonly #pgnos: Uint32Array;
  readonly #slots: Uint16Array;

  constructor(index: number, bytes: Uint8Array) {
    this.#offset = index * WAL_INDEX_BLOCK_BYTES;
    this.#framesBefore = index === 0 ? 0 : FRAMES_IN_FIRST_BLOCK + (index - 1) * FRAMES_PER_BLOCK;
    this.#pgnosOffset = index === 0 ? PREAMBLE_BYTES : 0;
    // Not Buffer.from: its pool would not be aligned for words.
    this.#bytes = Buffer.alloc(WAL_INDEX_BLOCK_BYTES);
    this.#bytes.set(bytes.subarray(0, WAL_INDEX_BLOCK_BYTES));
    const { buffer, byteOffset } = this.#bytes;
    this.#pgnos = new Uint32Array(
      buffer,
      byteOffset + this.#pgnosOffset,
      (HASH_OFFSET - this.#pgnosOffset) / 4,
    );
    this.#slots = new Uint16Array(buffer, byteOffset + HASH_OFFSET, HASH_SLOTS);
  }

  /** Removes what is said of frames after `frame`. */
  dropAfter(frame: number): void {
    const kept = frame - this.#framesBefore;
    // Page numbers are written in order and before their slots, so a zero here means nothing comes after.
    // In a block that starts anew even that is not trusted, as in SQLite.
    if (kept > 0 && this.#pgnos[kept] === 0) return;
    this.#pgnos.fill(0, kept);
    this.#changed(this.#pgnosOffset + kept * 4, WAL_INDEX_BLOCK_BYTES);
    for (let slot = 0; slot < HASH_SLOTS; slot += 1) {
      if (this.#slots[slot]! > kept) this.#slots[slot] = 0;
    }
  }

  add(frame: number, pgno: number): void {
    const entry = frame - this.#framesBefore;
    let slot = (pgno * 383) & (HASH_SLOTS - 1);
    while (this.#slots[slot] !== 0) slot = (slot + 1) & (HASH_SLOTS - 1);
    this.#pgnos[entry - 1] = pgno;
    this.#slots[slot] = entry;
    this.#changed(this.#pgnosOffset + (entry - 1) * 4, HASH_OFFSET + slot * 2 + 2);
  }

  /** All that differs in one piece: the page numbers, the hash slots, and what is between them, which stays as it is. */
  change(): WalIndexWrite {
    return { offset: this.#offset + this.#from, bytes: this.#bytes.subarray(this.#from, this.#to) };
  }

  #changed(from: number, to: number): void {
    if (from < this.#from) this.#from = from;
    if (to > this.#to) this.#to = to;
  }
}
