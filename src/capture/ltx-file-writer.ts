import { closeSync, openSync, rmSync, writeSync } from 'node:fs';

import { LtxEncoder } from '../ltx/encoder.js';
import type { LtxHeaderFields } from '../ltx/format.js';
import type { Log } from '../store/log.js';
import type { LogFile } from '../store/types.js';

/** Files up to this size are made in memory and handed to the main thread with their notice. */
export const SMALL_FILE_BYTES = 256 * 1024;

/** A file that is in the log now. */
export interface WrittenFile {
  readonly file: LogFile;
  /** Its bytes, an array of their own, when they are at most SMALL_FILE_BYTES. */
  readonly bytes?: Uint8Array<ArrayBuffer>;
}

/**
 * Writes one LTX file after another into logs, in bounded memory: small ones are made in memory, larger
 * ones go to a temporary file beside the log. A writer is used for one file at a time.
 */
export class LtxFileWriter {
  readonly #encoder = new LtxEncoder();
  readonly #memory = Buffer.alloc(SMALL_FILE_BYTES);
  #used = 0;
  #log: Log | undefined;
  #header: LtxHeaderFields | undefined;
  #temporaryPath = '';
  #fd = -1;

  get started(): boolean {
    return this.#header !== undefined;
  }

  begin(log: Log, header: LtxHeaderFields): void {
    this.abort();
    this.#log = log;
    this.#header = header;
    this.#encoder.begin(header, (chunk) => this.#take(chunk));
  }

  /** Adds a page, in ascending order; its checksum's halves go to out[at] and out[at + 1]. */
  addPage(pgno: number, page: Uint8Array, out: Uint32Array, at: number): void {
    this.#encoder.addPage(pgno, page, out, at);
  }

  /** Completes the file and adds it to the log. `mayAppend` is asked at the last moment (fencing). */
  end(postApplyChecksum: bigint, mayAppend: () => void): WrittenFile {
    const { sizeBytes } = this.#encoder.end(postApplyChecksum);
    const [log, header] = [this.#log as Log, this.#header as LtxHeaderFields];
    const meta = {
      minTxid: header.minTxid,
      maxTxid: header.maxTxid,
      sizeBytes,
      epoch: header.epoch ?? 0n,
      preApplyChecksum: header.preApplyChecksum,
      postApplyChecksum,
      pageSize: header.pageSize,
      commitPages: header.commitPages,
    };
    if (this.#fd >= 0) {
      this.#spill();
      closeSync(this.#fd);
      this.#fd = -1;
      mayAppend();
      const file = log.appendPrepared(this.#temporaryPath, meta);
      this.#temporaryPath = '';
      this.#header = undefined;
      return { file };
    }
    const bytes = new Uint8Array(this.#used);
    bytes.set(this.#memory.subarray(0, this.#used));
    mayAppend();
    const file = log.append(bytes, meta);
    this.#header = undefined;
    return { file, bytes };
  }

  /** Gives the file up; harmless when there is none. */
  abort(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
    if (this.#temporaryPath) rmSync(this.#temporaryPath, { force: true });
    this.#temporaryPath = '';
    this.#header = undefined;
    this.#used = 0;
  }

  #take(chunk: Buffer): void {
    if (this.#used + chunk.length > SMALL_FILE_BYTES) this.#spill();
    chunk.copy(this.#memory, this.#used);
    this.#used += chunk.length;
  }

  #spill(): void {
    if (this.#fd < 0) {
      this.#temporaryPath = (this.#log as Log).temporaryPath();
      this.#fd = openSync(this.#temporaryPath, 'wx');
    }
    let done = 0;
    while (done < this.#used) done += writeSync(this.#fd, this.#memory, done, this.#used - done);
    this.#used = 0;
  }
}

const idle: LtxFileWriter[] = [];

/** A writer that nobody uses; several are in use only while long transactions are written side by side. */
export const borrowWriter = (): LtxFileWriter => idle.pop() ?? new LtxFileWriter();

export function returnWriter(writer: LtxFileWriter): void {
  writer.abort();
  if (idle.length < 2) idle.push(writer);
}
