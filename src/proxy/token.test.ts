import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type History, proceed, relate } from './history.js';
import { advance, formatToken, isLater, NO_TOKEN, parseToken, type Token, TOKEN_BYTES_MAX } from './token.js';

const SECRET = 'a secret that only nodes know';
const entry = fc.record({ epoch: fc.bigInt(0n, (1n << 64n) - 1n), txid: fc.bigInt(0n, (1n << 64n) - 1n) });
/** Well-formed strings only: a lone surrogate is no name of a file. */
const name = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 40 });
const token: fc.Arbitrary<Token> = fc
  .array(fc.tuple(name, entry), { minLength: 1, maxLength: 8 })
  .map((entries) => new Map(entries));
const at = (epoch: number, txid: number) => ({ epoch: BigInt(epoch), txid: BigInt(txid) });

describe('a token', () => {
  it('is read as it was written, signed or not, and is fit for cookies and headers', () => {
    fc.assert(
      fc.property(token, fc.option(fc.constant(SECRET), { nil: undefined }), (given, secret) => {
        const text = formatToken(given, secret);
        expect(text).toMatch(/^[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+$/);
        expect(text.length).toBeLessThanOrEqual(TOKEN_BYTES_MAX);
        const read = parseToken(text, secret);
        // Long names: the oldest are left out, never the last.
        expect([...given].slice(-(read?.size ?? 0))).toEqual([...(read ?? [])]);
        expect(read?.size).toBeGreaterThan(0);
      }),
    );
  });

  it('that is nonsense is none, and costs nothing', () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 200 }), (text) => {
        const read = parseToken(text);
        // Whatever is taken has one way to be written.
        if (read) expect(formatToken(read)).toBe(text.replace(/~[^~]*$/, ''));
        expect(parseToken(text, SECRET)).toBeUndefined();
      }),
    );
    for (const text of [
      '',
      'app.db',
      'app.db=7',
      'app.db=7:',
      'app.db=07:1',
      'app.db=7:01',
      'app.db=7:1A',
      'app.db=-1:1',
      'app.db=7:1&',
      'app.db=7:1&app.db=7:2',
      'app.db=99999999999999999999:1',
      'app.db=7:11111111111111111',
      'app%2edb=7:1',
      '%ff=7:1',
      '%=7:1',
      `${'a'.repeat(TOKEN_BYTES_MAX)}=7:1`,
      Array.from({ length: 33 }, (_, i) => `d${i}=1:1`).join('&'),
    ])
      expect(parseToken(text), text).toBeUndefined();
  });

  it('that was not made with the secret is none, whatever was changed in it', () => {
    const text = formatToken(new Map([['app.db', at(7, 26)]]), SECRET);
    expect(text).toMatch(/^app\.db=7:1a~[\w-]{22}$/);
    expect(parseToken(text, SECRET)).toEqual(new Map([['app.db', at(7, 26)]]));
    expect(parseToken(text, `${SECRET}2`)).toBeUndefined();
    expect(parseToken('app.db=7:1a', SECRET)).toBeUndefined();
    // A node that was not given the secret yet.
    expect(parseToken(text)).toEqual(new Map([['app.db', at(7, 26)]]));
    for (let i = 0; i < text.length; i += 1) {
      const changed = `${text.slice(0, i)}${text[i] === '1' ? '2' : '1'}${text.slice(i + 1)}`;
      expect(parseToken(changed, SECRET), changed).toBeUndefined();
    }
  });

  it('moves forward only, database by database, and is the same object when nothing moved', () => {
    fc.assert(
      fc.property(token, token, (a, b) => {
        const next = advance(a, b);
        for (const [database, entryA] of a) expect(isLater(entryA, next.get(database)!)).toBe(false);
        for (const [database, entryB] of b) expect(isLater(entryB, next.get(database)!)).toBe(false);
        expect(advance(next, b)).toBe(next);
        expect(advance(next, a)).toBe(next);
      }),
    );
    expect(advance(NO_TOKEN, NO_TOKEN)).toBe(NO_TOKEN);
    const lost = advance(
      new Map([['app.db', at(9, 9)]]),
      new Map([['app.db', at(8, 3)]]),
      new Set(['app.db']),
    );
    expect(lost.get('app.db')).toEqual(at(8, 3));
  });
});

describe('a transaction that a client has seen', () => {
  const history: History = { position: at(7, 120), ends: [at(3, 40), at(5, 80)] };

  it.each([
    ['of our epoch, here', at(7, 120), 'reached'],
    ['of our epoch, to come', at(7, 121), 'behind'],
    ['of an epoch that is not known here yet, whatever its TXID', at(8, 2), 'behind'],
    ['of an earlier epoch that ended after it', at(5, 80), 'reached'],
    ['of an earlier epoch that ended before it', at(5, 81), 'lost'],
    ['of an epoch of which nothing survives', at(6, 81), 'lost'],
    ['of an earlier epoch, beyond everything here', at(5, 500), 'lost'],
    ['of an epoch before those whose end is known', at(2, 30), 'reached'],
    ['nothing', at(9, 0), 'reached'],
  ])('%s', (_, seen, relation) => {
    expect(relate(seen, history)).toBe(relation);
  });

  it('of a database that is not here is awaited', () => {
    expect(relate(at(1, 1), undefined)).toBe('behind');
  });

  it('is told from a lost one by any node that has come along the surviving history, or is taken for a reached one', () => {
    // A history: epochs with how many transactions of each survive and how many are lost with its end.
    const epochs = fc.array(fc.record({ survive: fc.nat(5), lost: fc.nat(3) }), {
      minLength: 1,
      maxLength: 12,
    });
    fc.assert(
      fc.property(epochs, fc.nat(11), fc.boolean(), (given, startEpoch, exact) => {
        let txid = 0n;
        let node: History | undefined;
        const survived: { epoch: bigint; txid: bigint }[] = [];
        const lost: { epoch: bigint; txid: bigint }[] = [];
        for (const [i, { survive, lost: gone }] of given.entries()) {
          const epoch = BigInt(i + 1);
          for (let n = 0; n < survive; n += 1) {
            txid += 1n;
            survived.push({ epoch, txid });
            // The node comes in somewhere by a copy of it all.
            if (i >= startEpoch) node = proceed(node, { epoch, txid }, exact || node !== undefined);
          }
          for (let n = 1n; n <= gone; n += 1n) lost.push({ epoch, txid: txid + n });
        }
        if (!node) return;
        for (const one of survived) expect(relate(one, node)).toBe('reached');
        for (const one of lost) {
          const relation = relate(one, node);
          // The last epoch's own loss is not known before another one begins.
          if (one.epoch >= node.position.epoch) expect(relation).toBe('behind');
          else if (one.epoch >= (node.ends[0]?.epoch ?? node.position.epoch)) expect(relation).toBe('lost');
          else expect(relation === 'lost' || relation === 'reached').toBe(true);
        }
      }),
    );
  });
});
