/**
 * LZ4 blocks (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md). The compressor makes the same
 * choices as pierrec/lz4 v4's fast one (internal/lz4block/block.go), which Go's ltx uses, so the same pages
 * give the same bytes as Go writes. That is what lets `verify` in exact mode compress again and compare.
 */

const MIN_MATCH = 4;
/** No match starts within the last bytes: 10 + MIN_MATCH. */
const MATCH_FREE_TAIL = 14;
/** Misses since the last match, divided by 2^this, are skipped: incompressible data goes fast. */
const SKIP_LOG = 7;
/** Longer runs are copied by the runtime; a call costs about as much as copying this many. */
const CALL_BYTES = 64;

/**
 * Copies go by 4 or 8 bytes and may write up to this many too many: an area that is written needs so much
 * room after the last byte.
 */
export const SLACK_BYTES = 8;

/** The same bytes twice: JavaScript reads single bytes best from one, unaligned words only from the other. */
export interface ByteArea {
  readonly bytes: Buffer;
  readonly view: DataView;
}

export const areaOf = (bytes: Buffer): ByteArea => ({
  bytes,
  view: new DataView(bytes.buffer, bytes.byteOffset, bytes.length),
});

/** The most that a block of `size` bytes can need when nothing of it compresses. */
export const blockBound = (size: number): number => size + Math.floor(size / 255) + 16;

// The hash of 6 bytes is bits 32-47 of their product with the prime 227718039650203. In limbs of 24 bits: the lower
// limbs' product is exact in a double, and of the mixed ones only the low 24 bits count.
const PRIME = 227718039650203;
const PRIME_LOW = PRIME % 0x1000000;
const PRIME_HIGH = Math.floor(PRIME / 0x1000000);
const PRIME_LOW_SCALED = PRIME_LOW / 0x1000000;

/** Takes the lower 24 bits and the upper 24 bits; what is above those is ignored. */
const hash6 = (low24: number, high24: number): number => {
  const mixed = (Math.imul(low24, PRIME_HIGH) + Math.imul(high24, PRIME_LOW)) | 0;
  return ((mixed + ((low24 * PRIME_LOW_SCALED) | 0)) >>> 8) & 0xffff;
};

/**
 * Where each hash was last seen, plus `tableBase`. Every block starts above the positions of those before it, so
 * the table need be cleared only when 16 bits are used up: for pages of 4096 bytes, at every 16th.
 */
const table = new Uint16Array(65536);
let tableBase = 0;

/** Position of a hash in this block; 0 for an unknown one, as in pierrec/lz4. */
const seenAt = (hash: number, base: number): number => Math.max(table[hash]! - base, 0);

/** A length beyond what a token's 4 bits hold, less 15, as bytes of 255 and a rest. Returns the new end. */
function putLength(dst: Uint8Array, at: number, length: number): number {
  let rest = length;
  for (; rest >= 255; rest -= 255) dst[at++] = 255;
  dst[at++] = rest;
  return at;
}

/**
 * Compresses `size` (at most 65536) bytes from the start of `from` to `to` at `start`, where blockBound(size) +
 * SLACK_BYTES must be free. Returns the size of the block.
 */
export function compressBlock(from: ByteArea, size: number, to: ByteArea, start: number): number {
  const { bytes: src, view } = from;
  const { bytes: dst, view: dstView } = to;
  if (tableBase + size > 65536) {
    table.fill(0);
    tableBase = 0;
  }
  const base = tableBase;
  tableBase += size;
  const searchEnd = size - MATCH_FREE_TAIL;
  let at = 0;
  let anchor = 0;
  let out = start;

  while (at < searchEnd) {
    // Three positions are tried for each 8 bytes loaded.
    const low = view.getInt32(at, true);
    const high = view.getInt32(at + 4, true);
    const low1 = (low >>> 8) | (high << 24);
    const hash0 = hash6(low & 0xffffff, (low >>> 24) | (high << 8));
    const hash1 = hash6(low >>> 8, high);
    let match = seenAt(hash0, base);
    const match1 = seenAt(hash1, base);
    table[hash0] = base + at;
    table[hash1] = base + at + 1;
    if (match >= at || view.getInt32(match, true) !== low) {
      const low2 = (low >>> 16) | (high << 16);
      const hash2 = hash6(low2 & 0xffffff, high >>> 8);
      const match2 = seenAt(hash2, base);
      at += 1;
      match = match1;
      if (match >= at || view.getInt32(match, true) !== low1) {
        at += 1;
        match = match2;
        table[hash2] = base + at;
        if (match >= at || view.getInt32(match, true) !== low2) {
          at += 2 + ((at - anchor) >> SKIP_LOG);
          continue;
        }
      }
    }

    const offset = at - match;
    // Backwards first: the match may have begun among the literals.
    let end = at + MIN_MATCH;
    while (at > anchor && match > 0 && src[at - 1] === src[match - 1]) {
      at--;
      match--;
    }
    const literals = at - anchor;
    while (end + 8 <= searchEnd) {
      const x = view.getInt32(end, true) ^ view.getInt32(end - offset, true);
      if (x !== 0) {
        end += (31 - Math.clz32(x & -x)) >> 3;
        break;
      }
      const y = view.getInt32(end + 4, true) ^ view.getInt32(end + 4 - offset, true);
      if (y !== 0) {
        end += 4 + ((31 - Math.clz32(y & -y)) >> 3);
        break;
      }
      end += 8;
    }
    const length = end - at - MIN_MATCH;

    dst[out++] = ((literals < 15 ? literals : 15) << 4) | (length < 15 ? length : 15);
    if (literals >= 15) out = putLength(dst, out, literals - 15);
    // Reading past the literals is safe: the search ends 14 bytes before the end of the page.
    if (literals <= CALL_BYTES) {
      for (let i = 0; i < literals; i += 8) {
        dstView.setInt32(out + i, view.getInt32(anchor + i, true), true);
        dstView.setInt32(out + i + 4, view.getInt32(anchor + i + 4, true), true);
      }
    } else src.copy(dst, out, anchor, at);
    out += literals;
    dst[out++] = offset;
    dst[out++] = offset >>> 8;
    if (length >= 15) out = putLength(dst, out, length - 15);
    at = end;
    anchor = end;
    if (at >= searchEnd) break;
    table[hash6(view.getInt32(at - 2, true) & 0xffffff, view.getInt32(at + 1, true))] = base + at - 2;
  }

  const literals = size - anchor;
  dst[out++] = (literals < 15 ? literals : 15) << 4;
  if (literals >= 15) out = putLength(dst, out, literals - 15);
  src.copy(dst, out, anchor, size);
  return out + literals - start;
}

/**
 * Decompresses the block from[read, blockEnd) to to[start, end). Returns where the output ended, or -1 when the
 * block is damaged: it ends within a sequence, reaches before `start`, or holds more than fits. `to` needs
 * SLACK_BYTES after `end`.
 */
export function decompressBlock(
  from: ByteArea,
  blockStart: number,
  blockEnd: number,
  to: ByteArea,
  start: number,
  end: number,
): number {
  const { bytes: src, view } = from;
  const { bytes: dst, view: dstView } = to;
  const wideEnd = src.length - CALL_BYTES - SLACK_BYTES;
  let read = blockStart;
  let write = start;
  while (read < blockEnd) {
    const token = src[read++]!;
    let literals = token >>> 4;
    if (literals === 15) {
      let more: number;
      do {
        if (read >= blockEnd) return -1;
        more = src[read++]!;
        literals += more;
      } while (more === 255);
    }
    if (literals > blockEnd - read || literals > end - write) return -1;
    if (literals <= CALL_BYTES && read <= wideEnd) {
      for (let i = 0; i < literals; i += 8) {
        dstView.setInt32(write + i, view.getInt32(read + i, true), true);
        dstView.setInt32(write + i + 4, view.getInt32(read + i + 4, true), true);
      }
    } else src.copy(dst, write, read, read + literals);
    read += literals;
    write += literals;
    // A block ends after literals.
    if (read === blockEnd) return write;

    if (blockEnd - read < 2) return -1;
    const offset = src[read]! | (src[read + 1]! << 8);
    read += 2;
    let length = token & 15;
    if (length === 15) {
      let more: number;
      do {
        if (read >= blockEnd) return -1;
        more = src[read++]!;
        length += more;
      } while (more === 255);
    }
    length += MIN_MATCH;
    if (offset === 0 || offset > write - start || length > end - write) return -1;
    let match = write - offset;
    const stop = write + length;
    if (length > CALL_BYTES) {
      // The match may reach into what it writes: each copy doubles what is there to copy from.
      for (let have = offset; write < stop; have *= 2) {
        const count = Math.min(have, stop - write);
        dst.copyWithin(write, match, match + count);
        write += count;
      }
    } else if (offset >= 4) {
      for (; write < stop; write += 4, match += 4)
        dstView.setInt32(write, dstView.getInt32(match, true), true);
    } else {
      for (; write < stop; write++, match++) dst[write] = dst[match]!;
    }
    write = stop;
  }
  return -1;
}
