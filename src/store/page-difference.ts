import type { PageChecksums } from './page-checksums.js';

/** Bytes of a page's checksum as it travels: its high and its low half, little-endian. */
export const CHECKSUM_BYTES = 8;

/**
 * Which pages from `firstPgno` on have another checksum in `ours` than in `theirs` (two halves per page, `0 0` where they
 * have no page). Pages past our end are left out: they are cut off by the size. The lock page has no checksum on either side.
 */
export function differingPages(
  ours: Pick<PageChecksums, 'pages' | 'matches'>,
  firstPgno: number,
  theirs: Uint32Array,
): number[] {
  const differing: number[] = [];
  const end = Math.min(ours.pages, firstPgno - 1 + theirs.length / 2);
  for (let pgno = firstPgno, at = 0; pgno <= end; pgno += 1, at += 2) {
    if (!ours.matches(pgno, theirs[at]!, theirs[at + 1]!)) differing.push(pgno);
  }
  return differing;
}

/** Copies checksums as they travel into halves that can be read as numbers. */
export function parseChecksums(bytes: Uint8Array): Uint32Array {
  const halves = new Uint32Array(bytes.length / 4);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let i = 0; i < halves.length; i += 1) halves[i] = view.getUint32(i * 4, true);
  return halves;
}

/** What `parseChecksums` reads. */
export function formatChecksums(halves: Uint32Array): Buffer {
  const bytes = Buffer.alloc(halves.length * 4);
  for (let i = 0; i < halves.length; i += 1) bytes.writeUInt32LE(halves[i]!, i * 4);
  return bytes;
}
