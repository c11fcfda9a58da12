import { closeSync, openSync } from 'node:fs';
import { type MessagePort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { type ErrorCode, toKiteError } from '../errors.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { LtxInput } from '../ltx/input.js';
import { LZ4_WINDOW_BYTES } from '../ltx/lz4-frame.js';
import { stampOf } from '../backup/stamp.js';
import { DatabaseWriter, type WrittenState } from './database-writer.js';
import { GenerationWriter } from './generation-writer.js';

/**
 * The thread that decodes and writes: it takes the bytes of files in their order, waiting for them where the decoder needs more, so the
 * main thread does nothing but fetch.
 */

export interface WriterSetup {
  readonly path: string;
  readonly port: MessagePort;
  /** [0] is raised and notified after each message to the thread. */
  readonly signal: Int32Array;
  readonly from: WrittenState | undefined;
}

/** What a file is: LTX, or of Litestream 0.3 a whole database or a piece of a WAL, from `offset` on. */
export type FileKind =
  | {
      readonly type: 'ltx';
      /** Whether the database is whole after it; not while pages of later files are there, left by an interrupted call. */
      readonly isWhole: boolean;
    }
  | { readonly type: 'database' }
  | { readonly type: 'wal'; readonly offset: number };

export type ToWriter =
  | { readonly kind: 'file'; readonly sizeBytes: number; readonly of: FileKind }
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'end' };

/** What a file says of the moment after it. */
export interface Moment {
  readonly timestampMs: number;
  /** The cluster's TXID, when KiteFS wrote the file. */
  readonly clusterTxid: bigint | undefined;
  /** Of who wrote the object. */
  readonly epoch: bigint | undefined;
  /** Whether the database's own checksum was compared. */
  readonly verified: boolean;
}

/** An LTX file that was applied. */
export interface AppliedLtx {
  readonly state: WrittenState;
  readonly moment: Moment;
}

export type FromWriter =
  /** A buffer that is free again. */
  | { readonly kind: 'free'; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'applied'; readonly ltx: AppliedLtx | undefined }
  | { readonly kind: 'done' }
  | { readonly kind: 'failed'; readonly code: ErrorCode; readonly message: string };

const { path, port, signal, from } = workerData as WriterSetup;

function receive(): ToWriter {
  for (;;) {
    const seen = Atomics.load(signal, 0);
    const got = receiveMessageOnPort(port);
    if (got) return got.message as ToWriter;
    Atomics.wait(signal, 0, seen);
  }
}

const answer = (message: FromWriter, transfer: ArrayBuffer[] = []): void =>
  port.postMessage(message, transfer);

/** The bytes at hand that were not used yet. */
let piece = new Uint8Array(0);
let used = 0;

function readPiece(into: Buffer, at: number, length: number): number {
  if (used === piece.length) {
    if (piece.buffer.byteLength > 0) answer({ kind: 'free', bytes: piece }, [piece.buffer]);
    const next = receive();
    // The next file before this one's end: the object was shorter than listed.
    if (next.kind !== 'bytes') return 0;
    piece = next.bytes;
    used = 0;
  }
  const count = Math.min(length, piece.length - used);
  into.set(piece.subarray(used, used + count), at);
  used += count;
  return count;
}

function run(fd: number): void {
  const writer = new DatabaseWriter(fd, from);
  const generation = new GenerationWriter(path, fd);
  for (let order = receive(); order.kind !== 'end'; order = receive()) {
    if (order.kind !== 'file') continue;
    const { of, sizeBytes } = order;
    if (of.type === 'ltx') answer({ kind: 'applied', ltx: applyLtx(writer, sizeBytes, of.isWhole) });
    else {
      generation.apply(of, LtxInput.ofReader(sizeBytes, readPiece, LZ4_WINDOW_BYTES));
      answer({ kind: 'applied', ltx: undefined });
    }
  }
  generation.end();
  writer.sync();
  answer({ kind: 'done' });
}

function applyLtx(writer: DatabaseWriter, sizeBytes: number, isWhole: boolean): AppliedLtx {
  const header = writer.apply(LtxDecoder.fromReader(sizeBytes, readPiece), isWhole);
  const stamp = stampOf(header);
  const { timestampMs } = header;
  const moment = {
    timestampMs,
    clusterTxid: stamp?.txid,
    epoch: stamp?.epoch,
    verified: stamp !== undefined,
  };
  return { state: writer.state, moment };
}

try {
  const fd = openSync(path, 'r+');
  try {
    run(fd);
  } finally {
    closeSync(fd);
  }
} catch (error) {
  const { code, message } = toKiteError(error);
  answer({ kind: 'failed', code, message });
}
