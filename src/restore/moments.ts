import type { BackupFile } from '../backup/layout.js';
import type { LtxHeader } from '../ltx/format.js';

/** Reads the header of a file; undefined when it cannot be used (gone since it was listed, damaged). */
export type ReadHeader = (file: BackupFile) => Promise<LtxHeader | undefined>;

/** A file at whose end a state can be had, and what its header says of that state. */
export interface Point {
  readonly file: BackupFile;
  readonly header: LtxHeader;
}

/**
 * The newest file for which something holds that, in the order of TXIDs, holds first and then no more (`it was written before…`): in
 * each level by halving, so that a few headers of thousands are read. Undefined when it holds for none.
 */
export async function newestWhere(
  files: readonly BackupFile[],
  read: ReadHeader,
  holds: (header: LtxHeader) => boolean,
): Promise<Point | undefined> {
  const levels = [...new Set(files.map(({ level }) => level))];
  const found = await Promise.all(
    levels.map(
      async (level) =>
        await newestInLevel(
          files.filter((file) => file.level === level),
          read,
          holds,
        ),
    ),
  );
  let best: Point | undefined;
  for (const point of found) {
    if (point && (!best || point.file.maxTxid > best.file.maxTxid)) best = point;
  }
  return best;
}

async function newestInLevel(
  level: readonly BackupFile[],
  read: ReadHeader,
  holds: (header: LtxHeader) => boolean,
): Promise<Point | undefined> {
  const files = level.toSorted((a, b) => (a.maxTxid < b.maxTxid ? -1 : Number(a.maxTxid > b.maxTxid)));
  let best: Point | undefined;
  let low = 0;
  let high = files.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const header = await read(files[middle]!);
    if (!header) {
      // Its neighbours say as much.
      files.splice(middle, 1);
      high -= 1;
    } else if (holds(header)) {
      best = { file: files[middle]!, header };
      low = middle + 1;
    } else high = middle;
  }
  return best;
}
