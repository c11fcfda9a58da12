import Database from 'better-sqlite3';
import { closeSync, ftruncateSync, openSync } from 'node:fs';
import { KiteError } from '../errors.js';
import type { LtxInput } from '../ltx/input.js';
import { LZ4_WINDOW_BYTES, Lz4FrameReader } from '../ltx/lz4-frame.js';
import { writeFully } from '../util/files.js';
import type { FileKind } from './writer-thread.js';

/**
 * Writes a backup of Litestream 0.3: a copy of the database, then for each index the pieces of the WAL that was written on top of it.
 * The pieces become the WAL beside the file again, and SQLite itself recovers and checkpoints it.
 */
export class GenerationWriter {
  readonly #path: string;
  readonly #fd: number;
  #wal: number | undefined;
  #walBytes = 0;

  /** Takes the file's path and a descriptor of it. */
  constructor(path: string, fd: number) {
    this.#path = path;
    this.#fd = fd;
  }

  /** Applies an object. Throws ERR_LTX_DAMAGED for one that is cut off or changed, or does not follow the one before. */
  apply(kind: Exclude<FileKind, { type: 'ltx' }>, input: LtxInput): void {
    if (kind.type === 'database') {
      ftruncateSync(this.#fd, 0);
      copyFrame(input, this.#fd);
      return;
    }
    if (kind.offset === 0) {
      this.#checkpoint();
      this.#wal = openSync(`${this.#path}-wal`, 'w');
    }
    if (this.#wal === undefined || kind.offset !== this.#walBytes)
      throw new KiteError(
        'ERR_LTX_DAMAGED',
        `a piece of a WAL from byte ${kind.offset} on where one from byte ${this.#walBytes} on is needed`,
      );
    this.#walBytes += copyFrame(input, this.#wal);
  }

  /** After the last object. */
  end(): void {
    this.#checkpoint();
  }

  #checkpoint(): void {
    if (this.#wal === undefined) return;
    closeSync(this.#wal);
    this.#wal = undefined;
    this.#walBytes = 0;
    const db = new Database(this.#path, { fileMustExist: true });
    try {
      db.pragma('wal_checkpoint(TRUNCATE)');
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (code !== 'SQLITE_NOTADB' && code !== 'SQLITE_CORRUPT') throw error;
      throw new KiteError('ERR_LTX_DAMAGED', `SQLite cannot recover it (${message})`, { cause: error });
    } finally {
      db.close();
    }
  }
}

/** Writes the content of an LZ4 frame, which is all of the input, to a file's end. Returns how many bytes that are. */
function copyFrame(input: LtxInput, fd: number): number {
  const reader = new Lz4FrameReader(input, LZ4_WINDOW_BYTES);
  reader.begin();
  let bytes = 0;
  for (let piece = reader.readPiece(); piece.length > 0; piece = reader.readPiece()) {
    writeFully(fd, piece);
    bytes += piece.length;
  }
  if (input.remaining > 0)
    throw new KiteError('ERR_LTX_DAMAGED', `${input.remaining} bytes after the end of an LZ4 frame`);
  return bytes;
}
