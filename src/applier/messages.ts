import type { ErrorCode } from '../errors.js';
import type { CheckProgress } from '../store/background-check.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import type { LockHolder } from '../util/lock-holder.js';

/** A database on a replica: what its readers see. */
export interface AppliedDatabase {
  readonly position: EpochPosition;
  readonly pageCount: number;
  /** Bytes; 0 when there is no database yet. */
  readonly pageSize: number;
}

/** Page checksums of a database, some of them: what it can be compared with another copy by. */
export interface AppliedChecksums {
  /** Where it stands; TXID 0 when its bytes are at no position of the log. */
  readonly txid: bigint;
  /** Of all pages. */
  readonly checksum: bigint;
  readonly pageSize: number;
  /** In all. */
  readonly pages: number;
  /** Two halves per page that was asked for. */
  readonly halves: Uint32Array;
}

/** A database whose write lock could not be had, and why: who has it, where that can be seen. */
export interface Unlocked {
  readonly name: string;
  readonly reason: string;
}

export type JournalMode = 'wal' | 'delete';

/** Calls of the main process: name → [arguments, result]. */
export interface ApplierCalls {
  open: [{ name: string }, AppliedDatabase];
  apply: [{ name: string; files: readonly LogFile[] }, AppliedDatabase];
  checksums: [{ name: string; firstPgno: number; count: number }, AppliedChecksums | undefined];
  keep: [{ name: string; path: string }, void];
  close: [{ name: string }, EpochPosition | undefined];
  closeAll: [Record<string, never>, void];
  letGoAll: [Record<string, never>, void];
  closeLetGo: [Record<string, never>, void];
  settleAll: [Record<string, never>, void];
  recover: [{ name: string }, void];
  makeJournalMode: [{ name: string; mode: JournalMode }, JournalMode];
  lock: [{ names: readonly string[]; timeoutMs: number }, readonly Unlocked[]];
  unlock: [Record<string, never>, void];
  halt: [{ name: string; timeoutMs: number }, void];
  haltWrite: [{ name: string; path: string }, void];
  unhalt: [{ name: string }, void];
  export: [{ name: string; path: string }, void];
  import: [{ name: string; path: string }, void];
  readWal: [{ name: string; sizeBytes: number }, void];
  drop: [{ name: string }, void];
  remove: [{ name: string }, void];
}

export type ApplierCall = {
  [K in keyof ApplierCalls]: { readonly id: number; readonly op: K; readonly args: ApplierCalls[K][0] };
}[keyof ApplierCalls];

/** What main sends: a call, or its answer to `arm`. */
export type ToApplier = ApplierCall | { readonly armed: number };

/** Something that happened, not asked for. */
export type ApplierEvent =
  /** How far the full check of a database is. */
  | { readonly kind: 'checked'; readonly name: string; readonly progress: CheckProgress }
  /** A page is not as it was committed: the database is at no position any more, and has to be opened again. */
  | { readonly kind: 'damaged'; readonly name: string; readonly pgno: number }
  /** The write lock was not had within 5 s; said again every 5 s while it lasts. It is tried on. */
  | {
      readonly kind: 'blocked';
      readonly name: string;
      readonly waitedMs: number;
      readonly holder: LockHolder | undefined;
    }
  /** A checkpoint ended: all of the WAL is in `database`, or readers were in the way. */
  | {
      readonly kind: 'checkpoint';
      readonly name: string;
      readonly walBytes: number;
      readonly complete: boolean;
    };

export type FromApplier =
  | { readonly kind: 'ready' }
  | { readonly kind: 'alive' }
  | { readonly kind: 'result'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly code: ErrorCode; readonly message: string }
  /** Main has to tell the mount that the next opens of these names (in the mount) are the applier's. */
  | { readonly kind: 'arm'; readonly id: number; readonly names: readonly string[] }
  | { readonly kind: 'event'; readonly event: ApplierEvent };
