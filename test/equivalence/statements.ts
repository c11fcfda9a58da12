/**
 * A seeded stream of steps, each a script for the sqlite3 shell run in a folder with `main.db` and
 * `other.db`. The same seed gives the same stream, so plain SQLite and a mount must end with the same
 * rows. Nothing random is left to SQLite: values come from the seed.
 */
export interface Step {
  readonly what: string;
  readonly sql: string;
  /** The shell is killed (-9) after this script has run, inside its open transaction. */
  readonly killed: boolean;
}

/** Total of `balance.v`, whatever has happened: what snapshot readers check. */
export const BALANCE = 1000;

/** mulberry32: a small generator with a whole state of 32 bits. */
export function generator(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

export const SETUP = `
CREATE TABLE balance(id INTEGER PRIMARY KEY, v INTEGER);
INSERT INTO balance VALUES (1, ${BALANCE}), (2, 0), (3, 0), (4, 0);
CREATE TABLE rows(id INTEGER PRIMARY KEY, k TEXT, body BLOB);
CREATE INDEX rows_k ON rows(k);
`;

export function* steps(seed: number, count: number): Generator<Step> {
  const next = generator(seed);
  let tables = 0;
  const blob = (size: number): string => {
    const unit = next(0x7fffffff).toString(16).padStart(8, '0');
    return `x'${unit.repeat(Math.ceil(size / 4)).slice(0, size * 2)}'`;
  };
  const insert = (schema = 'main'): string =>
    `INSERT INTO ${schema}.rows(k, body) VALUES ('k${next(500)}', ${blob(1 + next(next(8) === 0 ? 20_000 : 600))});`;
  const update = (): string =>
    `UPDATE rows SET body = ${blob(1 + next(900))}, k = 'u${next(500)}' WHERE id % ${2 + next(9)} = 0;`;
  const remove = (): string => `DELETE FROM rows WHERE id % ${3 + next(9)} = ${next(3)};`;
  const transfer = (): string => {
    const amount = next(50);
    return `UPDATE balance SET v = v - ${amount} WHERE id = ${1 + next(4)};
UPDATE balance SET v = v + ${amount} WHERE id = ${1 + next(4)};`;
  };
  const some = (make: () => string, most: number): string =>
    Array.from({ length: 1 + next(most) }, make).join('\n');
  const change = (): string => [insert, insert, insert, update, remove, transfer][next(6)]?.() ?? '';

  const kinds: ReadonlyArray<() => Omit<Step, 'killed'> & { killed?: boolean }> = [
    () => ({ what: 'statements, each its own transaction', sql: some(insert, 8) }),
    () => ({ what: 'transaction', sql: `BEGIN;\n${some(change, 12)}\nCOMMIT;` }),
    () => ({ what: 'transaction', sql: `BEGIN IMMEDIATE;\n${some(change, 30)}\nCOMMIT;` }),
    () => ({ what: 'rollback', sql: `BEGIN;\n${some(change, 12)}\nROLLBACK;` }),
    () => ({
      what: 'rollback after a cache spill',
      sql: `PRAGMA cache_size=5;\nBEGIN;\n${some(insert, 40)}\n${update()}\nROLLBACK;`,
    }),
    () => ({
      what: 'commit after a cache spill',
      sql: `PRAGMA cache_size=5;\nBEGIN;\n${some(insert, 40)}\n${update()}\nCOMMIT;`,
    }),
    () => ({
      what: 'savepoints',
      sql: `BEGIN;\n${change()}\nSAVEPOINT a;\n${some(change, 5)}\nROLLBACK TO a;\n${change()}\nRELEASE a;\nCOMMIT;`,
    }),
    () => {
      tables += 1;
      return {
        what: 'new table',
        sql: `CREATE TABLE t${tables}(a, b UNIQUE);\nINSERT INTO t${tables} SELECT k, id FROM rows;\nCREATE INDEX t${tables}_a ON t${tables}(a);`,
      };
    },
    () => ({ what: 'drop table', sql: tables > 0 ? `DROP TABLE IF EXISTS t${1 + next(tables)};` : insert() }),
    () => ({
      what: 'alter table',
      sql: tables > 0 ? `CREATE VIEW IF NOT EXISTS v AS SELECT count(*) FROM rows;` : insert(),
    }),
    () => ({ what: 'vacuum', sql: 'VACUUM;' }),
    () => ({ what: 'vacuum into', sql: `VACUUM INTO 'copy${next(1_000_000)}.db';` }),
    () => ({
      what: 'transaction over two databases',
      sql: `ATTACH 'other.db' AS other;\nBEGIN;\n${insert()}\n${insert('other')}\n${transfer()}\nCOMMIT;`,
    }),
    () => ({
      what: 'journal mode',
      sql: `PRAGMA journal_mode=${['wal', 'wal', 'delete', 'truncate', 'persist'][next(5)]};\n${insert()}`,
    }),
    () => ({
      what: 'checkpoint',
      sql: `PRAGMA wal_checkpoint(${['PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'][next(4)]});`,
    }),
    () => ({ what: 'page size', sql: `PRAGMA page_size=${[1024, 4096, 8192][next(3)]};\nVACUUM;` }),
    () => ({
      what: 'exclusive',
      sql: `PRAGMA locking_mode=EXCLUSIVE;\n${some(insert, 4)}\nBEGIN;\n${change()}\nCOMMIT;`,
    }),
    () => ({ what: 'killed in a transaction', sql: `BEGIN IMMEDIATE;\n${some(change, 10)}`, killed: true }),
    () => ({
      what: 'killed after a cache spill',
      sql: `PRAGMA cache_size=5;\nBEGIN IMMEDIATE;\n${some(insert, 30)}\n${update()}`,
      killed: true,
    }),
  ];
  for (let i = 0; i < count; i += 1) {
    // Ordinary transactions are half of the stream; the rest is drawn from everything.
    const kind = next(2) === 0 ? kinds[next(3)] : kinds[next(kinds.length)];
    if (kind) yield { killed: false, ...kind() };
  }
}
