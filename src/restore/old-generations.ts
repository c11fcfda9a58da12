import { closeSync, openSync, statSync } from 'node:fs';
import type { BackupFile } from '../backup/layout.js';
import { KiteError } from '../errors.js';
import { planGenerations, type Generations } from './generations.js';
import { BadFile, handOver, PART_BYTES, SPARE_PARTS } from './hand-over.js';
import type { Restored, RestoreRequest, Wanted } from './restore.js';
import type { FileKind } from './writer-thread.js';
import { Writer } from './writer.js';

/**
 * Whether the state that is wanted is one of Litestream 0.3's: when there are no newer objects, or none that old. As Litestream 0.5 does. A
 * TXID is one of the newer objects, where there are any.
 */
export function prefersGenerations(
  { snapshots, pieces }: Generations,
  files: readonly BackupFile[],
  wanted: Wanted,
): boolean {
  const isTxid = wanted.kind === 'txid' || wanted.kind === 'cluster-txid';
  if (snapshots.length === 0 || (isTxid && files.length > 0)) return false;
  const newest = (objects: readonly { modifiedMs: number }[]): number =>
    Math.max(-Infinity, ...objects.map(({ modifiedMs }) => modifiedMs));
  const oldest = Math.min(Infinity, ...files.map(({ modifiedMs }) => modifiedMs));
  return wanted.kind === 'time'
    ? wanted.timestampMs < oldest
    : newest([...snapshots, ...pieces]) > newest(files);
}

/** Restores from a generation into the temporary file. Throws as `restore`. */
export async function restoreGeneration(
  request: RestoreRequest,
  generations: Generations,
  temporary: string,
): Promise<Restored> {
  const { from, parallelism, wanted, onProgress, say } = request;
  if (wanted.kind === 'txid' || wanted.kind === 'cluster-txid')
    throw new KiteError(
      'ERR_RESTORE_MOMENT',
      `${from.url} is a backup of Litestream 0.3, which has no TXIDs: give -timestamp`,
    );
  const untilMs = wanted.kind === 'time' ? wanted.timestampMs : undefined;
  let { snapshots } = generations;
  for (;;) {
    const found = planGenerations({ ...generations, snapshots }, untilMs);
    if (!found)
      throw new KiteError(
        'ERR_RESTORE_MOMENT',
        `${from.url} has no copy of the database that is old enough, and whole`,
      );
    const { plan, missing } = found;
    if (missing !== undefined)
      throw new KiteError(
        'ERR_RESTORE_DAMAGED',
        `${from.url}: ${missing} is missing; -timestamp before ${new Date(plan.timestampMs).toISOString()} may be restored`,
      );
    const objects = [
      { ...plan.snapshot, of: { type: 'database' } as FileKind },
      ...plan.pieces.map((piece) => ({ ...piece, of: { type: 'wal', offset: piece.offset } as FileKind })),
    ];
    const totalBytes = objects.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    closeSync(openSync(temporary, 'w'));
    let applied = 0;
    const writer = new Writer({
      path: temporary,
      from: undefined,
      buffers: parallelism + SPARE_PARTS,
      bufferBytes: PART_BYTES,
      onApplied: () => (applied += 1),
    });
    try {
      await handOver({ from, objects, writer, appliedCount: () => applied }, (_bytes, done) =>
        onProgress?.(done, totalBytes),
      );
      return {
        txid: undefined,
        clusterTxid: undefined,
        epoch: undefined,
        timestampMs: plan.timestampMs,
        sizeBytes: statSync(temporary).size,
        files: objects.length,
        verified: false,
      };
    } catch (error) {
      if (!(error instanceof BadFile)) throw error;
      const { key, reason } = error;
      const before = plan.pieces.findIndex((piece) => piece.key === key);
      if (before >= 0) {
        const last = plan.pieces[before - 1] ?? plan.snapshot;
        throw new KiteError(
          'ERR_RESTORE_DAMAGED',
          `${from.url}/${key} cannot be used: ${reason.message}; what can be restored is -timestamp ${new Date(last.modifiedMs).toISOString()}`,
          { cause: reason },
        );
      }
      // An older copy of the same generation, with more of the WAL, leads to the same moment.
      const { generation } = plan.snapshot;
      say(`${from.url}/${key} cannot be used: ${reason.message}. Looking for an older copy`);
      snapshots = snapshots.filter((one) => one.key !== key && one.generation === generation);
    } finally {
      await writer.close();
    }
  }
}
