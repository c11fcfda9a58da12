/**
 * xxHash32 with seed 0 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md): the checksum inside
 * LZ4 frames, which only older LTX files hold.
 */

const PRIME_1 = 0x9e3779b1 | 0;
const PRIME_2 = 0x85ebca77 | 0;
const PRIME_3 = 0xc2b2ae3d | 0;
const PRIME_4 = 0x27d4eb2f;
const PRIME_5 = 0x165667b1;

const rotate = (x: number, bits: number): number => (x << bits) | (x >>> (32 - bits));
const round = (lane: number, word: number): number =>
  Math.imul(rotate((lane + Math.imul(word, PRIME_2)) | 0, 13), PRIME_1);

/** A running xxHash32. */
export class Xxh32 {
  readonly #lanes = new Int32Array(4);
  readonly #tail = Buffer.alloc(16);
  #tailLength = 0;
  #total = 0;

  constructor() {
    this.reset();
  }

  reset(): void {
    this.#lanes[0] = (PRIME_1 + PRIME_2) | 0;
    this.#lanes[1] = PRIME_2;
    this.#lanes[2] = 0;
    this.#lanes[3] = -PRIME_1 | 0;
    this.#tailLength = 0;
    this.#total = 0;
  }

  update(bytes: Buffer, start: number, end: number): void {
    this.#total += end - start;
    let at = start;
    if (this.#tailLength > 0) {
      at += bytes.copy(this.#tail, this.#tailLength, at, Math.min(end, at + 16 - this.#tailLength));
      this.#tailLength += at - start;
      if (this.#tailLength < 16) return;
      this.#stripe(this.#tail, 0);
    }
    for (; at + 16 <= end; at += 16) this.#stripe(bytes, at);
    this.#tailLength = bytes.copy(this.#tail, 0, at, end);
  }

  #stripe(bytes: Buffer, at: number): void {
    const lanes = this.#lanes;
    for (let lane = 0; lane < 4; lane++) lanes[lane] = round(lanes[lane]!, bytes.readInt32LE(at + 4 * lane));
  }

  digest(): number {
    const [a, b, c, d] = this.#lanes as unknown as [number, number, number, number];
    const lanes = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
    let hash = ((this.#total >= 16 ? lanes : PRIME_5) + this.#total) | 0;
    let at = 0;
    for (; at + 4 <= this.#tailLength; at += 4) {
      hash = (hash + Math.imul(this.#tail.readInt32LE(at), PRIME_3)) | 0;
      hash = Math.imul(rotate(hash, 17), PRIME_4);
    }
    for (; at < this.#tailLength; at++) {
      hash = (hash + Math.imul(this.#tail[at]!, PRIME_5)) | 0;
      hash = Math.imul(rotate(hash, 11), PRIME_1);
    }
    hash = Math.imul(hash ^ (hash >>> 15), PRIME_2);
    hash = Math.imul(hash ^ (hash >>> 13), PRIME_3);
    return (hash ^ (hash >>> 16)) >>> 0;
  }
}
