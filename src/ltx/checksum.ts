import { Crc64, PageCrc } from './crc64.js';

/**
 * Checksums of pages and databases, as LTX defines them: a page's is bit 63 and the CRC-64/ISO of its number
 * (u32, big-endian) and bytes; a database's is the XOR of its pages', bit 63 set, the lock page left out.
 * Nothing here uses a bigint per page: a checksum is two uint32 halves.
 */

const crc = new Crc64();
const pageCrcs = new Map<number, PageCrc>();

/**
 * Writes the checksum of a page to `out[at]` (high half) and `out[at + 1]` (low half). The page must have
 * an LTX page size. A page's checksum is never 0, 0 (bit 63), so that can stand for "no page".
 */
export function pageChecksumInto(pgno: number, page: Uint8Array, out: Uint32Array, at: number): void {
  let pageCrc = pageCrcs.get(page.length);
  if (!pageCrc) pageCrcs.set(page.length, (pageCrc = new PageCrc(page.length)));
  pageCrc.compute(page);
  checksumOfCrc(pgno, pageCrc, out, at);
}

/** As pageChecksumInto, for a page whose CRC was computed already. */
export function checksumOfCrc(pgno: number, page: PageCrc, out: Uint32Array, at: number): void {
  crc.reset();
  crc.updateUint32(pgno);
  crc.updatePage(page);
  out[at] = crc.valueHigh | 0x80000000;
  out[at + 1] = crc.valueLow;
}

/** The checksum of a page, bit 63 set. For hot paths use pageChecksumInto. */
export function pageChecksum(pgno: number, page: Uint8Array): bigint {
  const out = new Uint32Array(2);
  pageChecksumInto(pgno, page, out, 0);
  return joinHalves(out[0]!, out[1]!);
}

export const joinHalves = (high: number, low: number): bigint =>
  (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);

/** A database checksum that pages are put into and taken out of. */
export class DatabaseChecksum {
  #high = 0;
  #low = 0;

  /** Starts from a database checksum (with or without bit 63); 0n is the empty database. */
  constructor(value = 0n) {
    this.#high = Number((value >> 32n) & 0x7fffffffn);
    this.#low = Number(value & 0xffffffffn);
  }

  /** Puts a page's checksum in when it is not, takes it out when it is: XOR is its own inverse. */
  toggle(high: number, low: number): void {
    this.#high ^= high;
    this.#low ^= low;
  }

  /** With bit 63 set: that alone for an empty database. */
  get value(): bigint {
    return joinHalves(this.#high | 0x80000000, this.#low);
  }
}
