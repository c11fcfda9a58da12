/**
 * Checksums of pages and databases, as LTX defines them: a page's is bit 63 and the CRC-64/ISO of its number
 * (u32, big-endian) and bytes; a database's is the XOR of its pages', bit 63 set, the lock page left out.
 * Nothing here uses a bigint per page: a checksum is two uint32 halves.
 */

/**
 * Writes the checksum of a page to `out[at]` (high half) and `out[at + 1]` (low half). The page must have
 * an LTX page size. 0, 0 is never a page's checksum, so it can stand for "no page".
 */
export function pageChecksumInto(pgno: number, page: Uint8Array, out: Uint32Array, at: number): void {
  throw new Error(`not yet ${pgno} ${page.length} ${out.length} ${at}`);
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
