import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  formatAddress,
  isLoopback,
  parseAddress,
  parseBoolean,
  parseDuration,
  parseExec,
  parseList,
  parseMode,
  parseSize,
} from './values.js';

describe('single values', () => {
  it('durations are read as Go writes them', () => {
    expect(parseDuration('10s')).toBe(10_000);
    expect(parseDuration('1m30s')).toBe(90_000);
    expect(parseDuration('1.5h')).toBe(5_400_000);
    expect(parseDuration('250ms')).toBe(250);
    expect(parseDuration('0')).toBe(0);
    for (const wrong of ['', '10', 's', '10 s', '-1s', '1s2', '1d', 's1'])
      expect(parseDuration(wrong)).toBeUndefined();
  });

  it('sizes are powers of 1024', () => {
    expect(parseSize('4096')).toBe(4096);
    expect(parseSize('64KB')).toBe(65_536);
    expect(parseSize('2 GiB')).toBe(2 ** 31);
    for (const wrong of ['', 'GB', '1.5GB', '-1', '1XB']) expect(parseSize(wrong)).toBeUndefined();
  });

  it('booleans, permission bits and lists are read in their usual spellings', () => {
    expect(parseBoolean('Yes')).toBe(true);
    expect(parseBoolean(false)).toBe(false);
    expect(parseBoolean('maybe')).toBeUndefined();
    expect(parseMode('0640')).toBe(0o640);
    expect(parseMode('888')).toBeUndefined();
    expect(parseList('a, b,')).toEqual(['a', 'b']);
    expect(parseList([{ a: 1 }])).toBeUndefined();
  });

  it('an address that was written is read back as the same', () => {
    const host = fc.oneof(fc.constant(''), fc.domain(), fc.ipV4(), fc.ipV6());
    fc.assert(
      fc.property(host, fc.integer({ min: 0, max: 65_535 }), (name, port) => {
        expect(parseAddress(formatAddress({ host: name, port }))).toEqual({ host: name, port });
      }),
    );
    for (const wrong of ['', 'host', 'host:', ':99999', '::1:80', 'http://a:1', 'a b:1']) {
      expect(parseAddress(wrong)).toBeUndefined();
    }
  });

  it('loopback is told from the rest of the world', () => {
    for (const host of ['localhost', '127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1'])
      expect(isLoopback(host)).toBe(true);
    for (const host of ['', '0.0.0.0', '10.0.0.1', '::', 'node1', '127.example.com'])
      expect(isLoopback(host)).toBe(false);
  });

  it('exec is one command or a list of commands with a condition', () => {
    expect(parseExec('node server.js')).toEqual([{ cmd: 'node server.js', ifCandidate: false }]);
    expect(parseExec([{ cmd: 'migrate', 'if-candidate': 'true' }, 'serve'])).toEqual([
      { cmd: 'migrate', ifCandidate: true },
      { cmd: 'serve', ifCandidate: false },
    ]);
    expect(parseExec('')).toEqual([]);
    for (const wrong of [
      [{ 'if-candidate': 'true' }],
      [{ cmd: 'a', 'if-candidate': 'perhaps' }],
      4,
      [null],
    ]) {
      expect(parseExec(wrong)).toBeUndefined();
    }
  });
});
