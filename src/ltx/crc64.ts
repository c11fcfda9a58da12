import { pageCrcInto } from './page-codec.js';

/**
 * CRC-64/ISO ("GO-ISO": bits reflected, all ones at the start and inverted at the end). Its polynomial
 * x^64 + x^4 + x^3 + x + 1 is so sparse that no table is needed: x^64 = x^4 + x^3 + x + 1, so a step of 8 bits
 * is three shifts of what goes out.
 *
 * A state is two int32 halves. The bits are reflected: the lowest bit of the low half is the highest power
 * of x, and a multiplication by x is a shift to the right.
 */

/** A running CRC. `low` and `high` are the state before the final inversion. */
export class Crc64 {
  low = -1;
  high = -1;

  reset(): void {
    this.low = -1;
    this.high = -1;
  }

  /** Bytes one by one: for headers, which are short and not aligned. */
  update(bytes: Uint8Array, start: number, end: number): void {
    let { low, high } = this;
    for (let i = start; i < end; i++) {
      const out = (low ^ bytes[i]!) << 24;
      low = (low >>> 8) | (high << 24);
      high = (high >>> 8) ^ out ^ (out >>> 1) ^ (out >>> 3) ^ (out >>> 4);
    }
    this.low = low;
    this.high = high;
  }

  /** A big-endian u32. */
  updateUint32(value: number): void {
    let { low, high } = this;
    for (let shift = 24; shift >= 0; shift -= 8) {
      const out = (low ^ (value >>> shift)) << 24;
      low = (low >>> 8) | (high << 24);
      high = (high >>> 8) ^ out ^ (out >>> 1) ^ (out >>> 3) ^ (out >>> 4);
    }
    this.low = low;
    this.high = high;
  }

  /** Goes on over a page whose own CRC is known (see PageCrc), without reading it again. */
  updatePage(page: PageCrc): void {
    const { table } = page;
    let { low, high } = this;
    let newLow = page.low;
    let newHigh = page.high;
    for (let at = 0; at < 2048; at += 512) {
      const a = at + ((low & 0xff) << 1);
      const b = 2048 + at + ((high & 0xff) << 1);
      newLow ^= table[a]! ^ table[b]!;
      newHigh ^= table[a + 1]! ^ table[b + 1]!;
      low >>>= 8;
      high >>>= 8;
    }
    this.low = newLow;
    this.high = newHigh;
  }

  /** The halves of the CRC so far. */
  get valueLow(): number {
    return ~this.low >>> 0;
  }

  get valueHigh(): number {
    return ~this.high >>> 0;
  }
}

/**
 * The CRC of one page from a zero state. A CRC is linear, so this one pass over the page serves both the
 * checksum of the file and the checksum of the page: `Crc64.updatePage` moves each of the two states past the
 * page and adds this.
 */
export class PageCrc {
  low = 0;
  high = 0;
  /** Where each byte of a state goes when a page passes: 8 × 256 entries of low and high half. */
  readonly table: Int32Array;

  constructor(pageSize: number) {
    this.table = passTable(pageSize);
  }

  compute(page: Uint8Array): void {
    pageCrcInto(page, this);
  }
}

const passTables = new Map<number, Int32Array>();

/** The table of a page size, made at its first use (some 50 µs) and kept: 16 KiB each. */
function passTable(pageSize: number): Int32Array {
  const known = passTables.get(pageSize);
  if (known) return known;
  const table = new Int32Array(8 * 256 * 2);
  const zeros = new Int32Array(2);
  for (let bit = 0; bit < 64; bit++) {
    zeros[0] = bit < 32 ? 1 << bit : 0;
    zeros[1] = bit < 32 ? 0 : 1 << (bit - 32);
    timesPowerOfX(zeros, Math.log2(pageSize) + 3);
    // Every entry that has this bit is the same entry without it, and the bit.
    const base = (bit >> 3) * 512;
    const weight = 1 << (bit & 7);
    for (let entry = weight; entry < 2 * weight; entry++) {
      const from = base + (entry - weight) * 2;
      table[base + entry * 2] = table[from]! ^ zeros[0];
      table[base + entry * 2 + 1] = table[from + 1]! ^ zeros[1];
    }
  }
  passTables.set(pageSize, table);
  return table;
}

/**
 * Multiplies a state by x^(2^n): passes 2^n zero bits. From 64 bits on, x^(2^n) = (x^64)^(2^(n-6)) =
 * (1 + x + x^3 + x^4)^(2^(n-6)) = 1 + y + y^3 + y^4 with y = x^(2^(n-6)), for squaring a sum squares its terms.
 */
function timesPowerOfX(state: Int32Array, n: number): void {
  const low = state[0]!;
  const high = state[1]!;
  if (n < 5) {
    const shift = 1 << n;
    const out = low << (32 - shift);
    state[0] = (low >>> shift) | (high << (32 - shift));
    state[1] = (high >>> shift) ^ out ^ (out >>> 1) ^ (out >>> 3) ^ (out >>> 4);
    return;
  }
  if (n === 5) {
    timesPowerOfX(state, 4);
    timesPowerOfX(state, 4);
    return;
  }
  let sumLow = low;
  let sumHigh = high;
  for (let power = 1; power <= 4; power++) {
    timesPowerOfX(state, n - 6);
    if (power === 2) continue;
    sumLow ^= state[0]!;
    sumHigh ^= state[1]!;
  }
  state[0] = sumLow;
  state[1] = sumHigh;
}
