import type { MessagePort } from 'node:worker_threads';

import type { ErrorCode } from '../errors.js';
import type { TxidRange } from '../ltx/position.js';
import type { CheckProgress } from '../store/background-check.js';
import type { EpochPosition, LogContents, LogFile } from '../store/types.js';
import type { JournalCommit } from './gate.js';

/** What the mount asks of the capture thread; answered by `GateReply` with the same id. */
export type GateRequest =
  | { readonly op: 'slot'; readonly slot: number; readonly name: string }
  | {
      readonly op: 'wal';
      readonly id: number;
      readonly slot: number;
      readonly change: WalChange;
      /** Up to where commits were published before this change took them back, bytes. */
      readonly publishedEnd: number;
    }
  | {
      readonly op: 'journal';
      readonly id: number;
      readonly slot: number;
      readonly commit: JournalCommit;
    }
  | {
      readonly op: 'restores';
      readonly id: number;
      readonly slot: number;
      readonly offsetBytes: number;
      readonly bytes: Uint8Array;
    }
  | { readonly op: 'replicas'; readonly id: number; readonly slot: number; readonly endBytes: number }
  | { readonly op: 'rename'; readonly id: number; readonly slot: number; readonly newName: string }
  | { readonly op: 'adopt' | 'drop'; readonly id: number; readonly slot: number };

/** What is about to happen to `-wal`; see CaptureGate.beforeWalChange. */
export interface WalChange {
  readonly kind: 'header' | 'truncate' | 'unlink' | 'overwrite';
  readonly fromBytes: number;
  readonly durable: boolean;
}

export interface GateReply {
  readonly id: number;
  readonly errno: number;
}

/** A database after a promotion: where it stands, or why it is out of service. */
export interface PromotedDatabase {
  readonly name: string;
  readonly position: EpochPosition;
  readonly error?: { readonly code: ErrorCode; readonly message: string };
}

/** Committed pages as of `position`. */
export interface CommittedPages {
  readonly position: EpochPosition;
  readonly pageSize: number;
  readonly commitPages: number;
  readonly pages: readonly { readonly pgno: number; readonly data: Uint8Array }[];
  /** Pages whose committed content is not on disk at the moment (a rollback-journal transaction runs): ask again. */
  readonly retry: readonly number[];
}

/** Pages whose committed content is another than a replica's. */
export interface DifferingPages {
  readonly pageSize: number;
  readonly commitPages: number;
  readonly pgnos: readonly number[];
}

/** Calls of the main thread: name → [arguments, result]. */
export interface CaptureCalls {
  gate: [{ port: MessagePort }, void];
  waker: [{ waker: SharedArrayBuffer }, void];
  recover: [{ name: string }, EpochPosition | undefined];
  promote: [{ epoch: bigint; logs: ReadonlyMap<string, LogContents> }, PromotedDatabase[]];
  demote: [Record<string, never>, void];
  halt: [{ name: string; epoch: bigint; at: EpochPosition }, void];
  unhalt: [{ name: string }, EpochPosition | undefined];
  position: [{ name: string }, EpochPosition | undefined];
  pages: [{ name: string; pgnos: number[] }, CommittedPages];
  differing: [{ name: string; firstPgno: number; theirs: Uint32Array }, DifferingPages];
  removeBefore: [{ name: string; txid: bigint }, TxidRange[]];
  /** An answer to `awaits`. */
  replicasHave: [{ id: number; errno: number }, void];
  stop: [Record<string, never>, void];
}

export type CaptureCall = {
  [K in keyof CaptureCalls]: { readonly id: number; readonly op: K; readonly args: CaptureCalls[K][0] };
}[keyof CaptureCalls];

/** What the capture thread tells the main thread. */
export type CaptureNotice =
  | { readonly kind: 'result'; readonly id: number; readonly value: unknown }
  | {
      readonly kind: 'error';
      readonly id: number;
      readonly code: ErrorCode;
      readonly message: string;
    }
  | {
      readonly kind: 'transaction';
      readonly name: string;
      readonly file: LogFile;
      readonly bytes?: Uint8Array;
    }
  | { readonly kind: 'checked'; readonly name: string; readonly progress: CheckProgress }
  | { readonly kind: 'created' | 'dropped' | 'compensated'; readonly name: string }
  /** A commit waits until replicas have this position; undefined: it does not any more. */
  | {
      readonly kind: 'awaits';
      readonly id: number;
      readonly name: string;
      readonly position: EpochPosition | undefined;
    }
  | {
      readonly kind: 'failed';
      readonly name: string;
      readonly code: ErrorCode;
      readonly message: string;
    };
