import { parentPort } from 'node:worker_threads';

import Database from 'better-sqlite3';

/** A thread of the applier process in which checkpoints run: they take long, and applying must not wait for them. */

/** With less, a checkpoint starves beside readers of a few milliseconds (trap 16). */
const BUSY_MS = 40;

/** So much may be left for the part that keeps writers off. */
const REST_FRAMES = 1000;

export interface CheckpointRequest {
  readonly id: number;
  readonly path: string;
  /** Beside writers only: nothing that they would wait for. */
  readonly passive: boolean;
}

export interface CheckpointAnswer {
  readonly id: number;
  /** Whether the WAL is empty now. */
  readonly complete: boolean;
  /** What went wrong, if anything did. */
  readonly error?: string;
}

parentPort?.on('message', ({ id, path, passive }: CheckpointRequest) => {
  let answer: CheckpointAnswer;
  try {
    answer = { id, complete: checkpoint(path, passive) };
  } catch (error) {
    answer = { id, complete: false, error: error instanceof Error ? error.message : String(error) };
  }
  parentPort?.postMessage(answer);
});

function checkpoint(path: string, passiveOnly: boolean): boolean {
  // Not the last connection: the applier's own one stays open while this works.
  const database = new Database(path, { fileMustExist: true, timeout: BUSY_MS });
  try {
    database.pragma('wal_autocheckpoint = 0');
    // Nearly all of the work goes on beside writers; TRUNCATE alone would keep them off during all of it.
    const [passive] = database.pragma('wal_checkpoint(PASSIVE)') as [{ log: number; checkpointed: number }];
    if (passiveOnly || passive.log - passive.checkpointed > REST_FRAMES) return false;
    const [truncate] = database.pragma('wal_checkpoint(TRUNCATE)') as [{ busy: number }];
    return truncate.busy === 0;
  } finally {
    database.close();
  }
}
