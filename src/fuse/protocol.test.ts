import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

import {
  parseHeader,
  putAttrAnswer,
  putDirectoryAnswer,
  putHeader,
  putInitAnswer,
  putNoEntryAnswer,
  readNames,
  readU64,
  writeU64,
} from './protocol.js';

const ATTRIBUTES = {
  size: 5_000_000_000,
  blocks: 8,
  mode: 0o100640,
  nlink: 1,
  uid: 3,
  gid: 4,
  atimeMs: 1500,
  mtimeMs: 1_700_000_000_123.5,
  ctimeMs: 0,
};

describe('the FUSE protocol', () => {
  it('keeps 64-bit numbers up to 2^53', () => {
    const bytes = Buffer.alloc(8);
    fc.assert(
      fc.property(fc.maxSafeNat(), (value) => {
        writeU64(bytes, 0, value);
        expect(bytes.readBigUInt64LE(0)).toBe(BigInt(value));
        expect(readU64(bytes, 0)).toBe(value);
      }),
    );
  });

  it('reads a request header', () => {
    const request = Buffer.alloc(48);
    for (const [i, value] of [48, 1, 7, 0, 2, 1, 1000, 1001, 4242].entries())
      request.writeUInt32LE(value, i * 4);
    expect(parseHeader(request)).toEqual({
      length: 48,
      opcode: 1,
      unique: 7,
      node: 2 ** 32 + 2,
      uid: 1000,
      gid: 1001,
      pid: 4242,
    });
  });

  it('reads the two names of a rename', () => {
    expect(readNames(Buffer.from('..old\0new name\0'), 2)).toEqual(['old', 'new name']);
  });

  it('answers with an errno', () => {
    const into = Buffer.alloc(16);
    expect(putHeader(into, 9, 5, 0)).toBe(16);
    expect(into.readInt32LE(4)).toBe(-5);
    expect(readU64(into, 8)).toBe(9);
  });

  it('writes attributes where the kernel looks for them', () => {
    const into = Buffer.alloc(200);
    expect(putAttrAnswer(into, 1, 77, ATTRIBUTES, true)).toBe(120);
    expect(readU64(into, 32)).toBe(77);
    expect(readU64(into, 40)).toBe(5_000_000_000);
    expect(readU64(into, 64)).toBe(1_700_000_000);
    expect(into.readUInt32LE(84)).toBe(123_500_000);
    expect(into.readUInt32LE(92)).toBe(0o100640);
  });

  it('says for how long a name does not exist', () => {
    const into = Buffer.alloc(200, 1);
    expect(putNoEntryAnswer(into, 1, false)).toBe(144);
    expect(readU64(into, 16)).toBe(0);
    expect(readU64(into, 32)).toBe(0);
  });

  it('lists a folder in pieces that fit', () => {
    const entries = ['a', 'name-of-16-bytes', 'ünï'].map((name, i) => ({ node: i + 5, name, folder: false }));
    const into = Buffer.alloc(4096);
    const names: string[] = [];
    for (let offset = 0; offset < entries.length;) {
      const length = putDirectoryAnswer(into, 1, entries, offset, 48);
      expect(length).toBeGreaterThan(16);
      for (let at = 16; at < length;) {
        const nameBytes = into.readUInt32LE(at + 16);
        names.push(into.toString('utf8', at + 24, at + 24 + nameBytes));
        offset = readU64(into, at + 8);
        at += (24 + nameBytes + 7) & ~7;
      }
    }
    expect(names).toEqual(['a', 'name-of-16-bytes', 'ünï']);
  });

  it('leaves locks to the kernel, and refuses kernels that are too old', () => {
    const request = Buffer.alloc(104);
    request.writeUInt32LE(7, 40);
    request.writeUInt32LE(40, 44);
    request.writeUInt32LE(0xffff_ffff, 52);
    const into = Buffer.alloc(100);
    expect(putInitAnswer(into, request, 1)).toBe(80);
    const flags = into.readUInt32LE(28);
    expect(flags & (1 << 1)).toBe(0); // FUSE_POSIX_LOCKS
    expect(flags & (1 << 10)).toBe(0); // FUSE_FLOCK_LOCKS
    expect(flags & (1 << 16)).toBe(0); // FUSE_WRITEBACK_CACHE
    request.writeUInt32LE(20, 44);
    expect(putInitAnswer(into, request, 1)).toBeUndefined();
  });
});
