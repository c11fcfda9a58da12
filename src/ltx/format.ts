import { KiteError } from '../errors.js';

/**
 * The fixed parts of an LTX file: header, trailer and the rules that both must keep. All integers are
 * big-endian. What a whole file looks like is in docs/ltx-format.md; the rules are those of the Go module
 * superfly/ltx v0.5.3 (ltx.go), which refuses a file that breaks one.
 */

export const HEADER_BYTES = 100;
export const TRAILER_BYTES = 16;
/** Page number (u32) and flags (u16) before each page; all zero ends the pages. */
export const PAGE_HEADER_BYTES = 6;
/** In a page header's flags: the size of an LZ4 block (u32) and the block follow. */
export const PAGE_FLAG_BLOCK = 1;

/** Bit 63, set in every checksum that is there; alone it is the checksum of an empty database. */
export const CHECKSUM_FLAG = 1n << 63n;

const MAGIC = 0x4c545831; // "LTX1", the same in all versions
const FLAG_LZ4_STREAM = 1; // v1 only: all pages are one LZ4 frame
const FLAG_NO_CHECKSUM = 2;
/**
 * The reserved bytes 80-99, which Go hashes and ignores. In a log: the epoch (u64), then zeros. In a backup: the epoch (u32), the
 * cluster's TXID (u64), its checksum (u64), whose bit 63 tells the two apart.
 */
const RESERVED_OFFSET = 80;

/**
 * v1: LiteFS (pages without an index); v2: never released; v3a: Litestream up to 0.5.15; v3b: Litestream
 * from 0.5.16, the only one that is written.
 */
export type LtxVersion = 'v1' | 'v2' | 'v3a' | 'v3b';

export interface LtxHeader {
  /** Bytes, a power of two from 512 to 65536. */
  readonly pageSize: number;
  /** Size of the database after this file, pages; 0 = the database is deleted. */
  readonly commitPages: number;
  readonly minTxid: bigint;
  readonly maxTxid: bigint;
  /** Wall clock, ms since 1970. */
  readonly timestampMs: number;
  /** Database checksum before minTxid; 0n for a snapshot (min TXID 1) and with `noChecksum`. */
  readonly preApplyChecksum: bigint;
  /** The file says nothing of database checksums (all that Litestream writes). */
  readonly noChecksum: boolean;
  /** Where the frames came from in the WAL, bytes; 0 when they came from no WAL. */
  readonly walOffset: number;
  readonly walSizeBytes: number;
  readonly walSalt1: number;
  readonly walSalt2: number;
  /** Node that wrote the file; 0n = unsaid. */
  readonly nodeId: bigint;
  /** KiteFS: epoch of the lease under which it was written, in reserved bytes; 0n in others' files. */
  readonly epoch: bigint;
  /**
   * KiteFS, in backups, whose TXIDs count uploads: the cluster's last TXID in it, and the database checksum after that one;
   * both 0n elsewhere.
   */
  readonly clusterTxid: bigint;
  readonly clusterChecksum: bigint;
}

/** What a writer must say of a file; the rest of the header is zero when left out. */
export type LtxHeaderFields = Pick<
  LtxHeader,
  'pageSize' | 'commitPages' | 'minTxid' | 'maxTxid' | 'timestampMs' | 'preApplyChecksum'
> &
  Partial<LtxHeader>;

export interface LtxTrailer {
  /** Database checksum after maxTxid; 0n with `noChecksum`. */
  readonly postApplyChecksum: bigint;
  /** CRC-64 of everything before it, with the pages as they were before compression. */
  readonly fileChecksum: bigint;
}

/**
 * The page at SQLite's lock bytes (1 GiB into the file). It is never in an LTX file and in no checksum.
 * Takes bytes; returns a page number.
 */
export const lockPgno = (pageSize: number): number => 0x40000000 / pageSize + 1;

export const isPageSize = (size: number): boolean =>
  size >= 512 && size <= 65536 && (size & (size - 1)) === 0;

/** A file that holds the whole database: exactly those that start at TXID 1. */
export const isSnapshot = (header: Pick<LtxHeader, 'minTxid'>): boolean => header.minTxid === 1n;

const damaged = (what: string): KiteError => new KiteError('ERR_LTX_DAMAGED', what);

/** Which rule of the format a header breaks, or undefined when none. */
function brokenHeaderRule(header: LtxHeader): string | undefined {
  const { minTxid, maxTxid, preApplyChecksum: pre } = header;
  if (!isPageSize(header.pageSize)) return `page size ${header.pageSize}`;
  if (minTxid < 1n || maxTxid < minTxid) return `TXIDs ${minTxid} to ${maxTxid}`;
  if (header.walOffset < 0 || header.walSizeBytes < 0) return 'a negative place in the WAL';
  if (header.clusterChecksum !== 0n && !(header.clusterChecksum & CHECKSUM_FLAG))
    return 'a checksum of the cluster that is none';
  if (header.clusterChecksum !== 0n && header.epoch > 0xffffffffn) return `epoch ${header.epoch}`;
  if (header.walOffset === 0 && (header.walSizeBytes || header.walSalt1 || header.walSalt2))
    return 'a size or salts of a WAL but no offset in it';
  if (isSnapshot(header)) return pre === 0n ? undefined : 'a pre-apply checksum in a snapshot';
  if (header.noChecksum) return pre === 0n ? undefined : 'a pre-apply checksum where none may be';
  return pre & CHECKSUM_FLAG ? undefined : 'no pre-apply checksum';
}

/** Which rule of the format a trailer breaks, or undefined when none. */
export function brokenTrailerRule(header: LtxHeader, trailer: LtxTrailer): string | undefined {
  const post = trailer.postApplyChecksum;
  if (header.noChecksum ? post !== 0n : !(post & CHECKSUM_FLAG))
    return header.noChecksum ? 'a post-apply checksum where none may be' : 'no post-apply checksum';
  if (header.commitPages === 0 && post !== CHECKSUM_FLAG)
    return 'a deletion whose post-apply checksum is not that of an empty database';
  return undefined;
}

/** Fills in the fields left out. Throws ERR_LTX_INVALID when the header breaks a rule of the format. */
export function completeHeader(fields: LtxHeaderFields): LtxHeader {
  const header: LtxHeader = {
    noChecksum: false,
    walOffset: 0,
    walSizeBytes: 0,
    walSalt1: 0,
    walSalt2: 0,
    nodeId: 0n,
    epoch: 0n,
    clusterTxid: 0n,
    clusterChecksum: 0n,
    ...fields,
  };
  const broken = brokenHeaderRule(header);
  if (broken) throw new KiteError('ERR_LTX_INVALID', `an LTX header with ${broken}`);
  return header;
}

/** Writes the 100 bytes of a v3b header at `at`. */
export function writeHeader(header: LtxHeader, into: Buffer, at = 0): void {
  into.fill(0, at, at + HEADER_BYTES);
  into.writeUInt32BE(MAGIC, at);
  into.writeUInt32BE(header.noChecksum ? FLAG_NO_CHECKSUM : 0, at + 4);
  into.writeUInt32BE(header.pageSize, at + 8);
  into.writeUInt32BE(header.commitPages, at + 12);
  into.writeBigUInt64BE(header.minTxid, at + 16);
  into.writeBigUInt64BE(header.maxTxid, at + 24);
  into.writeBigInt64BE(BigInt(header.timestampMs), at + 32);
  into.writeBigUInt64BE(header.preApplyChecksum, at + 40);
  into.writeBigInt64BE(BigInt(header.walOffset), at + 48);
  into.writeBigInt64BE(BigInt(header.walSizeBytes), at + 56);
  into.writeUInt32BE(header.walSalt1, at + 64);
  into.writeUInt32BE(header.walSalt2, at + 68);
  into.writeBigUInt64BE(header.nodeId, at + 72);
  if (header.clusterChecksum === 0n) {
    into.writeBigUInt64BE(header.epoch, at + RESERVED_OFFSET);
  } else {
    into.writeUInt32BE(Number(header.epoch), at + RESERVED_OFFSET);
    into.writeBigUInt64BE(header.clusterTxid, at + RESERVED_OFFSET + 4);
    into.writeBigUInt64BE(header.clusterChecksum, at + RESERVED_OFFSET + 12);
  }
}

/** What the reserved bytes say, or undefined when they hold something that KiteFS does not write. */
function parseReserved(
  bytes: Buffer,
): Pick<LtxHeader, 'epoch' | 'clusterTxid' | 'clusterChecksum'> | undefined {
  const clusterChecksum = bytes.readBigUInt64BE(RESERVED_OFFSET + 12);
  if (clusterChecksum & CHECKSUM_FLAG) {
    const epoch = BigInt(bytes.readUInt32BE(RESERVED_OFFSET));
    return { epoch, clusterTxid: bytes.readBigUInt64BE(RESERVED_OFFSET + 4), clusterChecksum };
  }
  if (clusterChecksum !== 0n || bytes.readUInt32BE(RESERVED_OFFSET + 8) !== 0) return undefined;
  return { epoch: bytes.readBigUInt64BE(RESERVED_OFFSET), clusterTxid: 0n, clusterChecksum };
}

/** What the first 100 bytes say beside the fields of the header: how the pages are stored. */
export interface ParsedHeader {
  readonly header: LtxHeader;
  /** Flag 0x1: the pages are one LZ4 frame, as LiteFS writes them. Then the version is v1. */
  readonly lz4Stream: boolean;
}

/**
 * Takes the first 100 bytes of a file. Throws ERR_LTX_FOREIGN when they are no LTX header that is known
 * here, ERR_LTX_DAMAGED when they break a rule of the format. Only an unknown writer or damage puts anything else than
 * KiteFS does into the reserved bytes.
 */
export function parseHeader(bytes: Buffer): ParsedHeader {
  if (bytes.length < HEADER_BYTES)
    throw damaged(`an LTX file of ${bytes.length} bytes, its header is cut off`);
  if (bytes.readUInt32BE(0) !== MAGIC)
    throw new KiteError('ERR_LTX_FOREIGN', 'no LTX file: it does not start with LTX1');
  const flags = bytes.readUInt32BE(4);
  if (flags & ~(FLAG_LZ4_STREAM | FLAG_NO_CHECKSUM))
    throw new KiteError('ERR_LTX_FOREIGN', `an LTX file with unknown flags 0x${flags.toString(16)}`);
  const reserved = parseReserved(bytes);
  if (!reserved) throw new KiteError('ERR_LTX_FOREIGN', 'an LTX file with something in its reserved bytes');
  const header: LtxHeader = {
    pageSize: bytes.readUInt32BE(8),
    commitPages: bytes.readUInt32BE(12),
    minTxid: bytes.readBigUInt64BE(16),
    maxTxid: bytes.readBigUInt64BE(24),
    timestampMs: Number(bytes.readBigInt64BE(32)),
    preApplyChecksum: bytes.readBigUInt64BE(40),
    noChecksum: (flags & FLAG_NO_CHECKSUM) !== 0,
    walOffset: Number(bytes.readBigInt64BE(48)),
    walSizeBytes: Number(bytes.readBigInt64BE(56)),
    walSalt1: bytes.readUInt32BE(64),
    walSalt2: bytes.readUInt32BE(68),
    nodeId: bytes.readBigUInt64BE(72),
    ...reserved,
  };
  const broken = brokenHeaderRule(header);
  if (broken) throw damaged(`an LTX header with ${broken}`);
  return { header, lz4Stream: (flags & FLAG_LZ4_STREAM) !== 0 };
}
