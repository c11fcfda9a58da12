import type { ErrorCode } from '../errors.js';
import type { Position, TxidRange } from '../ltx/position.js';
import type { DatabaseCopy } from './database-backup.js';
import type { Writer } from './head.js';
import type { LevelSettings } from './levels.js';
import type { DestinationSettings } from './open.js';
import type { Stamp } from './stamp.js';

/** Between the daemon and the child process that ships: small messages only, LTX files go by their names. */

/** One entry of `backups`. */
export interface BackupSettings extends LevelSettings {
  readonly destination: DestinationSettings;
  /** The least time between two objects of level 0. */
  readonly syncIntervalMs: number;
}

export type ToBackup =
  | {
      readonly kind: 'start';
      readonly dataDir: string;
      readonly tmpDir: string;
      readonly backups: readonly BackupSettings[];
    }
  /** This node is the primary: it writes the backups, of these databases. */
  | { readonly kind: 'primary'; readonly writer: Writer; readonly names: readonly string[] }
  /** It may write until then (monotonic). */
  | { readonly kind: 'lease'; readonly untilMs: number }
  | { readonly kind: 'stop' }
  /** Their logs have grown. */
  | { readonly kind: 'moved'; readonly names: readonly string[] }
  /** Somebody waits: do not wait for the interval. */
  | { readonly kind: 'hurry' }
  /** A commit waits for the first destination. */
  | { readonly kind: 'urgent'; readonly name: string }
  | { readonly kind: 'answer'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'refused'; readonly id: number; readonly code: ErrorCode; readonly message: string };

/** What the child asks: name, arguments, answer. */
export interface BackupQuestions {
  filesAfter: [{ name: string; position: Position }, readonly TxidRange[] | undefined];
  contains: [{ name: string; position: Position }, boolean];
  copy: [{ name: string }, DatabaseCopy | { readonly dropped: Stamp } | undefined];
}

/** How the backup of a database at a destination stands. */
export interface DatabaseProgress {
  readonly txid: bigint;
  readonly level0: bigint;
}

export type FromBackup =
  | { readonly kind: 'ready' }
  | { readonly kind: 'alive' }
  | {
      [K in keyof BackupQuestions]: {
        readonly kind: 'ask';
        readonly id: number;
        readonly op: K;
        readonly args: BackupQuestions[K][0];
      };
    }[keyof BackupQuestions]
  /** Everything up to this position is at the destination. */
  | {
      readonly kind: 'shipped';
      readonly destination: number;
      readonly name: string;
      readonly progress: DatabaseProgress;
    }
  /** What is wrong with a destination, or with one database there; message undefined: nothing any more. */
  | {
      readonly kind: 'trouble';
      readonly destination: number;
      readonly name?: string | undefined;
      readonly code?: ErrorCode;
      readonly message: string | undefined;
    }
  | {
      readonly kind: 'event';
      readonly destination: number;
      readonly name: string;
      readonly event: string;
      readonly message: string;
    }
  | { readonly kind: 'put'; readonly destination: number; readonly name: string; readonly sizeBytes: number };
