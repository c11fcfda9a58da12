import type { StoredObject } from '../backup/destination.js';

/**
 * The layout of Litestream 0.3: `generations/<16 hex>/snapshots/<index>.snapshot.lz4` are copies of the database and
 * `generations/<16 hex>/wal/<index>_<offset>.wal.lz4` the pieces of the WAL; each index is one WAL from its header on. Times are those of
 * the destination: the objects have none of their own.
 */

export const GENERATIONS_FOLDER = 'generations/';

export interface OldSnapshot extends StoredObject {
  readonly generation: string;
  readonly index: number;
}

export interface WalPiece extends OldSnapshot {
  readonly offset: number;
}

export interface Generations {
  readonly snapshots: readonly OldSnapshot[];
  readonly pieces: readonly WalPiece[];
}

/** What the objects below `generations/` are, foreign ones left out. */
export function parseGenerations(objects: readonly StoredObject[]): Generations {
  const snapshots: OldSnapshot[] = [];
  const pieces: WalPiece[] = [];
  for (const object of objects) {
    const match =
      /(?:^|\/)generations\/([0-9a-f]{16})\/(?:snapshots\/([0-9a-f]{8})\.snapshot|wal\/([0-9a-f]{8})_([0-9a-f]{8,16})\.wal)\.lz4$/.exec(
        object.key,
      );
    if (!match) continue;
    const [, generation = '', snapshot, index, offset] = match;
    if (snapshot !== undefined)
      snapshots.push({ ...object, generation, index: Number.parseInt(snapshot, 16) });
    else
      pieces.push({
        ...object,
        generation,
        index: Number.parseInt(index!, 16),
        offset: Number.parseInt(offset!, 16),
      });
  }
  return { snapshots, pieces };
}

export interface GenerationPlan {
  readonly snapshot: OldSnapshot;
  /** In their order. */
  readonly pieces: readonly WalPiece[];
  /** Of the last object. */
  readonly timestampMs: number;
}

/**
 * As Litestream does: the last copy until the moment (of all, when none is given), and what followed it in its generation until then.
 * Undefined when there is no such copy. Whether the pieces of one WAL follow one another shows when they are read; a missing index shows
 * here, as `missing`.
 */
export function planGenerations(
  { snapshots, pieces }: Generations,
  untilMs = Infinity,
): { readonly plan: GenerationPlan; readonly missing: string | undefined } | undefined {
  const snapshot = snapshots
    .filter(({ modifiedMs }) => modifiedMs <= untilMs)
    .toSorted((a, b) => a.modifiedMs - b.modifiedMs || a.index - b.index)
    .at(-1);
  if (!snapshot) return undefined;
  const following = pieces
    .filter(({ generation, index }) => generation === snapshot.generation && index >= snapshot.index)
    .toSorted((a, b) => a.index - b.index || a.offset - b.offset);
  // Up to the first that is too new, not those that are old enough: a later piece alone is of no use.
  const end = following.findIndex(({ modifiedMs }) => modifiedMs > untilMs);
  const wanted = end === -1 ? following : following.slice(0, end);
  let next = snapshot.index;
  let missing: string | undefined;
  for (const piece of wanted) {
    if (piece.offset === 0) {
      if (piece.index !== next) missing ??= `the WAL with index ${next.toString(16).padStart(8, '0')}`;
      next = piece.index + 1;
    } else if (piece.index !== next - 1)
      missing ??= `the start of the WAL with index ${piece.index.toString(16).padStart(8, '0')}`;
  }
  const timestampMs = (wanted.at(-1) ?? snapshot).modifiedMs;
  return { plan: { snapshot, pieces: wanted, timestampMs }, missing };
}
