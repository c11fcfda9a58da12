import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { basename } from 'node:path';
import { KiteError } from '../errors.js';
import { LtxDecoder } from '../ltx/decoder.js';
import { CHECKSUM_FLAG, HEADER_BYTES, parseHeader, TRAILER_BYTES } from '../ltx/format.js';
import { parseLtxFileName, type TxidRange } from '../ltx/position.js';
import type { LogFile } from './types.js';

/** Before the trailer: the length of the page index, which files of LiteFS have not. */
const INDEX_LENGTH_BYTES = 8;
const TAIL_BYTES = INDEX_LENGTH_BYTES + TRAILER_BYTES;

/** The files of a log's folder, before any of them is opened. */
export interface FolderContents {
  /** The chain by its names: each starts where the one before it ends. Oldest first. */
  readonly chain: readonly TxidRange[];
  /** Files that a newer snapshot has taken the place of. */
  readonly superseded: readonly TxidRange[];
  /** Files that do not follow the chain, oldest first. */
  readonly stray: readonly TxidRange[];
  /** Names of files that were being prepared. */
  readonly temporary: readonly string[];
}

/** Sorts what is in a log's folder. Pure. */
export function sortFolder(names: readonly string[]): FolderContents {
  // All names have the same length, so their order is that of (minTxid, maxTxid).
  const ranges = names
    .toSorted()
    .map(parseLtxFileName)
    .filter((range) => range !== undefined);
  const snapshot = ranges.findLast((range) => range.minTxid === 1n);
  const chain: TxidRange[] = snapshot ? [snapshot] : [];
  const superseded: TxidRange[] = [];
  const stray: TxidRange[] = [];
  for (const range of ranges) {
    const end = chain.at(-1);
    if (range === snapshot) continue;
    if (snapshot && range.maxTxid <= snapshot.maxTxid) superseded.push(range);
    else if (stray.length === 0 && (!end || range.minTxid === end.maxTxid + 1n)) chain.push(range);
    else stray.push(range);
  }
  return { chain, superseded, stray, temporary: names.filter((name) => name.endsWith('.tmp')) };
}

/**
 * Reads what a file of the log says of itself: its header, the checksum in its trailer, its size. Not
 * verified. Throws ERR_STORE_LOG_DAMAGED when that is impossible or the header says other TXIDs than the name.
 */
export function readLogFile(path: string): LogFile {
  try {
    const fd = openSync(path, 'r');
    try {
      return describe(fd, path);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw asDamage(path, error);
  }
}

/** As readLogFile, and reads all of the file: every checksum in it is right when this returns. */
export function verifyLogFile(path: string): LogFile {
  try {
    const fd = openSync(path, 'r');
    try {
      const decoder = LtxDecoder.fromFile(fd);
      while (decoder.next());
      return describe(fd, path);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw asDamage(path, error);
  }
}

/** Why a file cannot come after another, or undefined when it can. */
export function whyNotAfter(last: LogFile, next: Omit<LogFile, 'path'>): string | undefined {
  if (next.minTxid !== last.maxTxid + 1n) return `TXID ${next.minTxid} after ${last.maxTxid}`;
  if (next.preApplyChecksum !== last.postApplyChecksum) {
    return `a file made for checksum ${next.preApplyChecksum.toString(16)} after ${last.postApplyChecksum.toString(16)}`;
  }
  return next.epoch < last.epoch ? `epoch ${next.epoch} after ${last.epoch}` : undefined;
}

function describe(fd: number, path: string): LogFile {
  const sizeBytes = fstatSync(fd).size;
  const { header, lz4Stream } = parseHeader(readAt(fd, 0, HEADER_BYTES));
  const tail = readAt(fd, sizeBytes - TAIL_BYTES, TAIL_BYTES);
  const indexBytes = lz4Stream ? 1n : tail.readBigUInt64BE(0);
  const postApplyChecksum = tail.readBigUInt64BE(INDEX_LENGTH_BYTES);
  // What is at the end of a file that was cut off later than it was written is no trailer, and no position to go on from.
  const isTail = indexBytes > 0n && indexBytes <= BigInt(sizeBytes - HEADER_BYTES - TAIL_BYTES);
  if (!isTail || (postApplyChecksum & CHECKSUM_FLAG) === 0n) {
    throw new KiteError('ERR_STORE_LOG_DAMAGED', 'it is cut off');
  }
  const named = parseLtxFileName(basename(path));
  if (named && (named.minTxid !== header.minTxid || named.maxTxid !== header.maxTxid)) {
    throw new KiteError('ERR_STORE_LOG_DAMAGED', `it holds TXIDs ${header.minTxid} to ${header.maxTxid}`);
  }
  return {
    path,
    sizeBytes,
    epoch: header.epoch,
    minTxid: header.minTxid,
    maxTxid: header.maxTxid,
    preApplyChecksum: header.preApplyChecksum,
    postApplyChecksum,
    pageSize: header.pageSize,
    commitPages: header.commitPages,
  };
}

function readAt(fd: number, position: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  if (position < 0 || readSync(fd, bytes, 0, length, position) < length) {
    throw new KiteError('ERR_STORE_LOG_DAMAGED', 'it is cut off');
  }
  return bytes;
}

function asDamage(path: string, error: unknown): KiteError {
  const why = error instanceof Error ? error.message : String(error);
  return new KiteError('ERR_STORE_LOG_DAMAGED', `${path} is damaged: ${why}`, { cause: error });
}
