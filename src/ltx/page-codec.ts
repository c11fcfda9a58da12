import { PAGE_CODEC_WASM } from './generated/page-codec.js';

/** The largest page. */
export const MAX_PAGE_BYTES = 65536;

// Where page-codec.wat keeps what it works on.
const PAGE = 0x20000;
const BLOCK = 0x30040;
const CRC = 0x40200;

/** The part of WebAssembly that is used; its types come with the DOM's only. */
interface Wasm {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object) => { readonly exports: unknown };
}

interface Codec {
  readonly memory: { readonly buffer: ArrayBuffer };
  compress(size: number): number;
  crc(size: number): void;
}

const { Module, Instance } = (globalThis as unknown as { WebAssembly: Wasm }).WebAssembly;
// Each thread has its own: what it works on is there only from the begin to the end of one call.
const codec = new Instance(new Module(Buffer.from(PAGE_CODEC_WASM, 'base64'))).exports as Codec;
const memory = Buffer.from(codec.memory.buffer);
const crcHalves = new Int32Array(codec.memory.buffer, CRC, 2);

/**
 * Compresses at most 65 536 bytes as an LZ4 block, the same bytes as Go's ltx makes of them. The block is valid until the next
 * call.
 */
export function compressPage(page: Uint8Array): Buffer {
  memory.set(page, PAGE);
  return memory.subarray(BLOCK, BLOCK + codec.compress(page.length));
}

/** Writes the CRC-64/ISO of a page, from a zero state, to `out` as low and high half. The page's size must be a multiple of 8. */
export function pageCrcInto(page: Uint8Array, out: { low: number; high: number }): void {
  memory.set(page, PAGE);
  codec.crc(page.length);
  out.low = crcHalves[0]!;
  out.high = crcHalves[1]!;
}
