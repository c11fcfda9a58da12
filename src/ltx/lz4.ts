/** Reads LZ4 blocks (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md); page-codec.ts writes them. */

const MIN_MATCH = 4;
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
