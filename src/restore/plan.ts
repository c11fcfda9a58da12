import { SNAPSHOT_LEVEL, type BackupFile } from '../backup/layout.js';

/**
 * Which objects make a moment. The state after TXID n is everything applied, oldest first, along a path of files from nothing
 * to n: a file min-max may follow any state between min - 1 and max - 1, because it holds the newest copy of every page that its range
 * changed. A snapshot (min 1) may follow any state, so a path begins with one. TXIDs here are the bucket's.
 */

/** What asking for one object more costs, as if it were bytes: a request's time at a usual rate. */
const REQUEST_COST_BYTES = 256 * 1024;

const byEnd = (a: BackupFile, b: BackupFile): number =>
  a.maxTxid !== b.maxTxid
    ? a.maxTxid < b.maxTxid
      ? -1
      : 1
    : a.minTxid < b.minTxid
      ? -1
      : Number(a.minTxid > b.minTxid);

/** A state on the way: the cheapest path to it. */
interface Reached {
  readonly txid: bigint;
  readonly cost: number;
  readonly file: BackupFile | undefined;
  readonly before: Reached | undefined;
}

/**
 * The path of fewest bytes and requests to exactly the state after `txid`, oldest first; undefined when there is none. Files that
 * proved bad are left out of `files`: then this is the next best path, if there is one. `from` is a state that is there already.
 */
export function planRestore(files: readonly BackupFile[], txid: bigint, from = 0n): BackupFile[] | undefined {
  if (txid === from && from > 0n) return [];
  const start: Reached = { txid: from, cost: 0, file: undefined, before: undefined };
  // By their TXIDs, ascending: a file's possible predecessors are the last few, and for a snapshot the first.
  const reached: Reached[] = [start];
  const within = files.filter(({ maxTxid }) => from < maxTxid && maxTxid <= txid);
  for (const file of within.toSorted(byEnd)) {
    let best: Reached | undefined;
    if (file.minTxid === 1n) best = start;
    else
      for (let i = reached.length - 1; i >= 0 && reached[i]!.txid >= file.minTxid - 1n; i -= 1) {
        const state = reached[i]!;
        if (state.txid < file.maxTxid && (!best || state.cost < best.cost)) best = state;
      }
    if (!best) continue;
    const next = {
      txid: file.maxTxid,
      cost: best.cost + file.sizeBytes + REQUEST_COST_BYTES,
      file,
      before: best,
    };
    const last = reached.at(-1)!;
    if (last.txid !== file.maxTxid) reached.push(next);
    else if (next.cost < last.cost) reached[reached.length - 1] = next;
  }
  const end = reached.at(-1)!;
  if (end.txid !== txid || !end.file) return undefined;
  const path: BackupFile[] = [];
  for (let at: Reached | undefined = end; at?.file; at = at.before) path.unshift(at.file);
  return path;
}

/** TXIDs that no file holds, so that nothing can be built on what comes after them; both inclusive. */
export interface Hole {
  readonly from: bigint;
  readonly to: bigint;
}

/** What a listing can give back. */
export interface Reach {
  /** Those files at whose ends a state can be had, by their ends. */
  readonly files: readonly BackupFile[];
  readonly holes: readonly Hole[];
}

/**
 * What can be restored from these files. Neither a hole are leftovers from before the oldest snapshot, nor TXIDs that only a compacted
 * file still has: retention takes the single ones away, oldest first.
 */
export function reachOf(files: readonly BackupFile[]): Reach {
  const good: BackupFile[] = [];
  const holes: Hole[] = [];
  let end = 0n;
  for (const file of files.toSorted(byEnd)) {
    if (file.minTxid <= end + 1n) {
      good.push(file);
      end = file.maxTxid;
    } else if (end > 0n) {
      const hole = holes.at(-1);
      if (hole?.from !== end + 1n) holes.push({ from: end + 1n, to: file.minTxid - 1n });
      else if (file.minTxid <= hole.to) holes[holes.length - 1] = { ...hole, to: file.minTxid - 1n };
    }
  }
  const compacted = good.filter(({ level }) => level !== SNAPSHOT_LEVEL);
  const covered = ({ from, to }: Hole): boolean =>
    compacted.some(({ minTxid, maxTxid }) => minTxid <= from && to <= maxTxid);
  return { files: good, holes: holes.filter((hole) => !covered(hole)) };
}
