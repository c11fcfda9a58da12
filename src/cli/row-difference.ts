import type Database from 'better-sqlite3';

/** A row that is otherwise in the other database, each column as SQL would write it. */
export interface DifferingRow {
  /** `id=7`, or `rowid=7`. */
  readonly key: string;
  readonly kind: 'added' | 'changed' | 'removed';
  /** Column, value there, value here; empty for a row that is here only. */
  readonly columns: readonly (readonly [string, string | undefined, string | undefined])[];
}

/** How the rows of one table differ. */
export interface TableDifference {
  readonly table: string;
  readonly counts: { readonly added: number; readonly changed: number; readonly removed: number };
  /** The first ones of each kind. */
  readonly rows: readonly DifferingRow[];
  /** Why it could not be read. */
  readonly error: string | undefined;
}

/** Longer values are cut off. */
const VALUE_CHARACTERS = 60;

const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/**
 * Compares the tables of the database that is attached as `there` with those of `main`, by primary key or rowid: `added`
 * rows are in `there` only, `removed` ones in `main` only. At most `rowsMax` rows of each kind and table are returned. What cannot
 * be read is said for that table, and the others go on.
 */
export function* differingRows(database: Database.Database, rowsMax: number): Generator<TableDifference> {
  const tables = database
    .prepare(
      "SELECT name FROM there.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND rootpage > 0 ORDER BY name",
    )
    .pluck()
    .all() as string[];
  for (const table of tables) {
    try {
      const difference = compareTable(database, table, rowsMax);
      if (difference.rows.length > 0) yield difference;
    } catch (error) {
      const counts = { added: 0, changed: 0, removed: 0 };
      yield { table, counts, rows: [], error: error instanceof Error ? error.message : String(error) };
    }
  }
}

interface Column {
  readonly name: string;
  /** Place in the primary key, from 1; 0: not in it. */
  readonly pk: number;
}

function compareTable(database: Database.Database, table: string, rowsMax: number): TableDifference {
  const columnsOf = (schema: string): Column[] =>
    database.prepare('SELECT name, pk FROM pragma_table_info(?, ?)').all(table, schema) as Column[];
  const theirs = columnsOf('there');
  const ours = new Set(columnsOf('main').map(({ name }) => name));
  const keys = keysOf(database, table, theirs);
  const there = `there.${quoted(table)} AS l`;
  const here = `main.${quoted(table)} AS n`;
  const same = keys.map((key) => `n.${quoted(key)} IS l.${quoted(key)}`).join(' AND ');
  const missing = (side: string, other: string): string =>
    `FROM ${side} WHERE NOT EXISTS (SELECT 1 FROM ${other} WHERE ${same})`;
  const shared = theirs.filter(({ name }) => ours.has(name)).map(({ name }) => name);
  const names = theirs.map(({ name }) => name);
  const differs = shared.map((name) => `l.${quoted(name)} IS NOT n.${quoted(name)}`).join(' OR ') || '0';
  const changed = `FROM ${there} JOIN ${here} ON ${same} WHERE ${differs}`;
  // A table that is not here has lost all of its rows.
  const isHere = ours.size > 0;
  const added = isHere ? missing(there, here) : `FROM ${there}`;
  const removed = isHere ? missing(here, there) : undefined;

  const count = (from: string | undefined): number =>
    from === undefined ? 0 : (database.prepare(`SELECT count(*) ${from}`).pluck().get() as number);
  const read = (
    from: string | undefined,
    side: 'l' | 'n',
    kind: DifferingRow['kind'],
    columns: readonly string[],
  ): DifferingRow[] => {
    if (from === undefined) return [];
    const value = (alias: string, name: string): string =>
      `substr(quote(${alias}.${quoted(name)}), 1, ${VALUE_CHARACTERS + 1})`;
    const wanted = [
      ...keys.map((key) => value(side, key)),
      ...columns.map((name) => (kind === 'removed' ? 'NULL' : value('l', name))),
      ...columns.map((name) => (kind === 'changed' && ours.has(name) ? value('n', name) : 'NULL')),
    ];
    const rows = database
      .prepare(`SELECT ${wanted.join(', ')} ${from} LIMIT ${rowsMax}`)
      .raw()
      .all() as (string | null)[][];
    return rows.map((row) => ({
      kind,
      key: keys.map((key, i) => `${key}=${cut(row[i] ?? 'NULL')}`).join(', '),
      columns: columns.flatMap((name, i) => {
        const [a, b] = [row[keys.length + i], row[keys.length + columns.length + i]];
        const isSame = kind === 'changed' && a === b;
        return isSame ? [] : [[name, a ? cut(a) : undefined, b ? cut(b) : undefined] as const];
      }),
    }));
  };
  return {
    table,
    counts: { added: count(added), changed: count(changed), removed: count(removed) },
    rows: [
      ...read(added, 'l', 'added', names),
      ...read(changed, 'l', 'changed', names),
      ...read(removed, 'n', 'removed', []),
    ],
    error: undefined,
  };
}

/** Columns that identify a row: the primary key of a table WITHOUT ROWID, else one of the rowid's names that no column has. */
function keysOf(database: Database.Database, table: string, columns: readonly Column[]): string[] {
  const primary = columns.filter(({ pk }) => pk > 0).toSorted((a, b) => a.pk - b.pk);
  const rowid = ['rowid', '_rowid_', 'oid'].find(
    (name) => !columns.some((column) => column.name.toLowerCase() === name),
  );
  const hasRowid = database
    .prepare("SELECT wr = 0 FROM pragma_table_list WHERE schema = 'there' AND name = ?")
    .pluck()
    .get(table);
  if (hasRowid && rowid !== undefined && primary.length !== 1) return [rowid];
  return primary.map(({ name }) => name);
}

const cut = (value: string): string =>
  value.length > VALUE_CHARACTERS ? `${value.slice(0, VALUE_CHARACTERS)}…` : value;
