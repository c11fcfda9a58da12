import fs from 'node:fs';

import { parseDatabaseHeader } from '../sqlite/database-header.js';
import { FRAME_HEADER_BYTES, frameOffset } from '../sqlite/wal.js';
import type { DatabaseFiles } from './database-files.js';
import { readFully } from './descriptor-io.js';
import { readIndexHeader } from './wal-writer.js';

/** Frame headers are read this many at a time. */
const PIECE_BYTES = 1 << 20;

/**
 * The committed pages of a database, from its WAL and its file, while the caller holds the WAL write lock: then
 * nobody commits, and nobody restarts the WAL. (Checkpoints may run: a page they copy is the same in both.)
 */
export class PageReader {
  readonly pageSize: number;
  /** Pages. */
  readonly pageCount: number;
  readonly #files: DatabaseFiles;
  /** Newest frame of each page that is in the WAL. */
  readonly #frames = new Map<number, number>();
  readonly #page: Buffer;

  constructor(files: DatabaseFiles) {
    this.#files = files;
    const index = readIndexHeader(files.shmFd);
    this.pageSize = index.mxFrame > 0 ? index.pageSize : (fileHeader(files.databaseFd)?.pageSize ?? 0);
    // As SQLite counts (pagerPagecount): the wal-index says, or else the size of the file.
    const fileBytes = fs.fstatSync(files.databaseFd).size;
    this.pageCount = index.pages || (this.pageSize > 0 ? Math.floor(fileBytes / this.pageSize) : 0);
    this.#page = Buffer.alloc(this.pageSize);
    this.#findFrames(index.mxFrame);
  }

  /** Pages that are in the WAL. */
  get walPages(): Iterable<number> {
    return this.#frames.keys();
  }

  /** The page's bytes, in a buffer that the next call uses again. A page that was never written is zero. */
  read(pgno: number): Buffer {
    const frame = this.#frames.get(pgno);
    const got =
      frame === undefined
        ? readFully(this.#files.databaseFd, this.#page, (pgno - 1) * this.pageSize)
        : readFully(this.#files.walFd, this.#page, frameOffset(frame, this.pageSize) + FRAME_HEADER_BYTES);
    return this.#page.fill(0, got);
  }

  #findFrames(maxFrame: number): void {
    const frameBytes = FRAME_HEADER_BYTES + this.pageSize;
    const perPiece = Math.max(1, Math.floor(PIECE_BYTES / frameBytes));
    const piece = Buffer.alloc(Math.min(perPiece, maxFrame) * frameBytes);
    for (let first = 1; first <= maxFrame; first += perPiece) {
      const count = Math.min(perPiece, maxFrame - first + 1);
      readFully(this.#files.walFd, piece.subarray(0, count * frameBytes), frameOffset(first, this.pageSize));
      for (let i = 0; i < count; i += 1) this.#frames.set(piece.readUInt32BE(i * frameBytes), first + i);
    }
  }
}

function fileHeader(fd: number): ReturnType<typeof parseDatabaseHeader> {
  const bytes = Buffer.alloc(100);
  readFully(fd, bytes, 0);
  return parseDatabaseHeader(bytes);
}
