import { open } from 'node:fs/promises';
import { setImmediate } from 'node:timers/promises';
import { LtxDecoder, type DecodeOptions } from './decoder.js';
import type { LtxHeader, LtxTrailer, LtxVersion } from './format.js';

/** Pages are read in pieces of this many bytes, between which other work runs. */
const PIECE_BYTES = 1 << 20;

/** What one LTX file says. */
export interface LtxSummary {
  readonly path: string;
  readonly version: LtxVersion;
  readonly sizeBytes: number;
  readonly header: LtxHeader;
  readonly trailer: LtxTrailer;
  readonly pageCount: number;
}

/** Decodes a whole file from disk, calling `onPage` at each page. */
async function readLtxFile(
  path: string,
  options: DecodeOptions,
  onPage: (ltx: LtxDecoder) => void,
): Promise<LtxSummary> {
  const file = await open(path);
  try {
    const ltx = LtxDecoder.fromFile(file.fd, options);
    const { header, version, sizeBytes } = ltx;
    const pagesPerPiece = PIECE_BYTES / header.pageSize;
    while (ltx.next()) {
      onPage(ltx);
      if (ltx.pageCount % pagesPerPiece === 0) await setImmediate();
    }
    return { path, version, sizeBytes, header, trailer: ltx.trailer, pageCount: ltx.pageCount };
  } finally {
    await file.close();
  }
}

/**
 * Reads and checks a whole file; lets other work run between pieces of 1 MiB. Rejects with ERR_LTX_DAMAGED,
 * ERR_LTX_FOREIGN, or what opening it says.
 */
export function verifyLtxFile(path: string, options: DecodeOptions = {}): Promise<LtxSummary> {
  return readLtxFile(path, options, () => undefined);
}

/** What `kitefs ltx dump --json` prints of a file: checksums, TXIDs and ids as 16 hex digits. */
export interface LtxDump {
  readonly path: string;
  readonly version: LtxVersion;
  readonly sizeBytes: number;
  readonly pageSize: number;
  readonly commitPages: number;
  readonly minTxid: string;
  readonly maxTxid: string;
  readonly timestamp: string;
  readonly noChecksum: boolean;
  readonly preApplyChecksum: string;
  readonly postApplyChecksum: string;
  readonly fileChecksum: string;
  readonly walOffset: number;
  readonly walSizeBytes: number;
  readonly walSalts: readonly [string, string];
  readonly nodeId: string;
  readonly epoch: number | string;
  readonly pages: readonly { readonly pgno: number; readonly checksum: string }[];
}

const hex = (value: bigint | number, digits = 16): string => value.toString(16).padStart(digits, '0');

/** A time that the Date type cannot hold is printed as its milliseconds. */
const formatTime = (ms: number): string =>
  Math.abs(ms) <= 8.64e15 ? new Date(ms).toISOString() : `${ms} ms`;

/** `kitefs ltx dump --json FILE`. Checks the whole file; rejects as verifyLtxFile does. */
export async function dumpLtxFile(path: string): Promise<LtxDump> {
  const pages: { pgno: number; checksum: string }[] = [];
  const { header, trailer, version, sizeBytes } = await readLtxFile(path, {}, (ltx) => {
    pages.push({ pgno: ltx.pgno, checksum: hex(ltx.checksumHigh, 8) + hex(ltx.checksumLow, 8) });
  });
  return {
    path,
    version,
    sizeBytes,
    pageSize: header.pageSize,
    commitPages: header.commitPages,
    minTxid: hex(header.minTxid),
    maxTxid: hex(header.maxTxid),
    timestamp: formatTime(header.timestampMs),
    noChecksum: header.noChecksum,
    preApplyChecksum: hex(header.preApplyChecksum),
    postApplyChecksum: hex(trailer.postApplyChecksum),
    fileChecksum: hex(trailer.fileChecksum),
    walOffset: header.walOffset,
    walSizeBytes: header.walSizeBytes,
    walSalts: [hex(header.walSalt1, 8), hex(header.walSalt2, 8)],
    nodeId: hex(header.nodeId),
    epoch: header.epoch <= Number.MAX_SAFE_INTEGER ? Number(header.epoch) : header.epoch.toString(),
    pages,
  };
}

/** `kitefs ltx dump FILE`: the same for a person, one line each. */
export function formatLtxDump(dump: LtxDump): string {
  const rows: [string, string | number][] = [
    ['version', dump.version],
    ['size', `${dump.sizeBytes} bytes`],
    ['page size', dump.pageSize],
    ['commit', dump.commitPages === 0 ? '0 pages (database deleted)' : `${dump.commitPages} pages`],
    ['TXIDs', `${dump.minTxid} to ${dump.maxTxid}`],
    ['time', dump.timestamp],
    ['pre-apply', dump.noChecksum ? 'no checksums' : dump.preApplyChecksum],
    ['post-apply', dump.noChecksum ? 'no checksums' : dump.postApplyChecksum],
    ['file checksum', dump.fileChecksum],
    ['WAL', `${dump.walSizeBytes} bytes at ${dump.walOffset}, salts ${dump.walSalts.join(' ')}`],
    ['node', dump.nodeId],
    ['epoch', dump.epoch],
    ['pages', dump.pages.length],
  ];
  const head = rows.map(([name, value]) => `${name.padEnd(14)}${value}\n`).join('');
  const pages = dump.pages.map(({ pgno, checksum }) => `  ${String(pgno).padEnd(12)}${checksum}\n`).join('');
  return `${dump.path}\n${head}${pages}`;
}
