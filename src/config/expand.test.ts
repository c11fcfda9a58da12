import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { expandEnvironment } from './expand.js';

const expand = (text: string, environment: Record<string, string> = {}): string =>
  expandEnvironment(text, environment).text;

describe('the environment in a configuration file', () => {
  it('variables are put in with and without braces, unset ones as nothing', () => {
    expect(expand('a $NAME b ${NAME}c ${ NAME }', { NAME: 'x' })).toBe('a x b xc x');
    expect(expand('a $NOPE b ${NOPE}c')).toBe('a  b c');
  });

  it('comparisons become true or false, as in LiteFS', () => {
    const here = { REGION: 'fra', PRIMARY_REGION: 'fra' };
    expect(expand('${REGION == PRIMARY_REGION}', here)).toBe('true');
    expect(expand("${ REGION != 'fra' }", here)).toBe('false');
    expect(expand('${ REGION == "ord" }', here)).toBe('false');
  });

  it('a dollar sign before anything else stays', () => {
    expect(expand('cost: 5$, $ 5, $5')).toBe('cost: 5$, $ 5, $5');
  });

  it('unset variables are named, except in comments', () => {
    expect(expandEnvironment('# $A\nb: $B', {}).unset).toEqual([{ name: 'B', offset: 8 }]);
  });

  it('every offset outside a variable leads back to where its character stood', () => {
    const piece = fc.oneof(
      fc.constantFrom('$A', '${A}', '${A == B}'),
      fc.stringMatching(/^[a-z \n:]{0,6} $/),
    );
    const value = fc.stringMatching(/^[0-9\n]{0,5}$/);
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), value, (pieces, inserted) => {
        const original = pieces.join('');
        const expanded = expandEnvironment(original, { A: inserted, B: inserted });
        for (const [offset, character] of expanded.text.split('').entries()) {
          const at = expanded.originalOffset(offset);
          if (/[a-z :]/.test(character) && original[at] !== '$') expect(original[at]).toBe(character);
        }
      }),
    );
  });
});
