import type { BackupSettings } from '../backup/messages.js';
import type { DrillReport, DrillObjects } from './drill.js';

/** From the daemon to the process of a scheduled drill, by its channel: there are secrets in it. */
export interface DrillOrder {
  readonly backups: readonly BackupSettings[];
  readonly scratchDir: string;
  readonly objects: DrillObjects;
  readonly exec: string | undefined;
  readonly recoveryObjectiveMs: number | undefined;
  /** No drill when one of the destinations has a report of one that began after this. */
  readonly notSinceMs: number;
}

export type FromDrill =
  | { readonly kind: 'report'; readonly report: DrillReport; readonly notKept: readonly string[] }
  /** Another node has drilled not long ago. */
  | { readonly kind: 'notDue'; readonly lastMs: number };
