import fc from 'fast-check';
import { expect, test } from 'vitest';
import { classifyPath, decodeDatabaseName, encodeDatabaseName, isDatabaseName } from './database-name.js';

const part = fc.oneof(
  fc.string({ unit: 'binary', minLength: 1, maxLength: 8 }),
  fc.stringMatching(/^[a-z%.2F\\ -]{1,8}$/),
);
const name = fc
  .array(part, { minLength: 1, maxLength: 3 })
  .map((parts) => parts.join('/'))
  .filter(isDatabaseName);

test('a name comes back from its encoding, and two names never share one', () => {
  fc.assert(
    fc.property(name, name, (a, b) => {
      expect(decodeDatabaseName(encodeDatabaseName(a))).toBe(a);
      expect(encodeDatabaseName(a) === encodeDatabaseName(b)).toBe(a === b);
    }),
    { numRuns: 2000 },
  );
});

test('an encoded name is one path component of at most 240 bytes', () => {
  fc.assert(
    fc.property(name, (a) => {
      expect(encodeDatabaseName(a)).toMatch(/^[A-Za-z0-9_.!~*'()%-]{1,240}$/);
      expect(['.', '..']).not.toContain(encodeDatabaseName(a));
    }),
  );
  expect(encodeDatabaseName('tenants/42.db')).toBe('tenants%2F42.db');
});

test('a component decodes only from the one spelling that is ever written', () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 20 }), (text) => {
      const decoded = decodeDatabaseName(text);
      if (decoded !== undefined) expect(encodeDatabaseName(decoded)).toBe(text);
    }),
  );
  for (const foreign of ['tenants%2f42.db', '%61', 'a b', 'a/b', '%', '%FF', '..', '%2E%2E', 'a-wal']) {
    expect(decodeDatabaseName(foreign)).toBeUndefined();
  }
});

test.each([
  ['app.db', 'database', 'app.db'],
  ['tenants/42.db', 'database', 'tenants/42.db'],
  ['no extension', 'database', 'no extension'],
  ['.hidden', 'database', '.hidden'],
  ['app.db-wal', 'wal', 'app.db'],
  ['app.db-shm', 'shm', 'app.db'],
  ['app.db-journal', 'journal', 'app.db'],
  ['t/app.db-pos', 'position', 't/app.db'],
  ['t/app.db-mj0A1B2C9D3', 'super-journal', 't/app.db'],
  ['my-mjolnir.db', 'database', 'my-mjolnir.db'],
  ['.primary', 'control', '.primary'],
  ['.lag', 'control', '.lag'],
  ['.kitefs', 'control', '.kitefs'],
  ['.kitefs/status.json', 'control', '.kitefs/status.json'],
  ['t/.primary', 'database', 't/.primary'],
  ['', 'invalid', ''],
  ['/app.db', 'invalid', '/app.db'],
  ['a//b', 'invalid', 'a//b'],
  ['a/', 'invalid', 'a/'],
  ['..', 'invalid', '..'],
  ['a/../b', 'invalid', 'a/../b'],
  ['a\0b', 'invalid', 'a\0b'],
  ['\ud800', 'invalid', '\ud800'],
  ['-wal', 'invalid', '-wal'],
  ['app.db-wal-wal', 'invalid', 'app.db-wal-wal'],
  ['app.db-wal-mj0A1B2C9D3', 'invalid', 'app.db-wal-mj0A1B2C9D3'],
  ['x'.repeat(240), 'database', 'x'.repeat(240)],
  ['x'.repeat(241), 'invalid', 'x'.repeat(241)],
  ['é'.repeat(41), 'invalid', 'é'.repeat(41)],
])('%j is a path of kind %s', (path, kind, belongsTo) => {
  expect(classifyPath(path)).toEqual({ kind, name: belongsTo });
});

test('a name that cannot be stored is an error with a code', () => {
  expect(() => encodeDatabaseName('../passwd')).toThrow(expect.objectContaining({ code: 'ERR_STORE_NAME' }));
});
