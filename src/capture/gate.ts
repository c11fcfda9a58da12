/**
 * The border between the mount and capture. The mount (src/fuse) calls it; capture (src/capture)
 * implements it. `walCommitted` is the hot path: shared counters, no message. Everything else is asked
 * with a callback, and the mount defers its answer to the kernel until the callback has run; capture
 * never waits for the mount (DESIGN §3).
 */

/** A small number for a database, the index of its shared counters; never used twice in one process. */
export type DatabaseSlot = number;

/** 0 = go on; otherwise the errno (positive) to answer the kernel with. */
export type GateAnswer = (errno: number) => void;

/** How the application ends a rollback-journal transaction, or a write outside any journal. */
export interface JournalCommit {
  readonly kind: 'unlink' | 'truncate' | 'header';
  /** Size of `database` in bytes when the journal became live. */
  readonly oldSizeBytes: number;
  /** Pages (pgno from 1) written while the journal was live. Pages in (old size, new size] are added by capture. */
  readonly dirtyPages: readonly number[];
  /** Whether the application fsynced `database` in this transaction: then the LTX file is fsynced too. */
  readonly durable: boolean;
  /** Whether replicas must have it: then a commit that is in the log now is answered with EINTR, see `awaitReplicas`. */
  readonly waits?: boolean;
}

export interface CaptureGate {
  /** Names a database to capture (first sight of it); cheap and synchronous. */
  slotOf(name: string): DatabaseSlot;

  /** The data of a commit frame is in `-wal`: everything below `endBytes` may be captured. Never blocks. */
  walCommitted(slot: DatabaseSlot, endBytes: number): void;

  /**
   * Before anything that destroys bytes of `-wal`: a header write at offset 0, a truncation, an unlink,
   * or the overwriting of a captured frame (`fromBytes` is where the destroyed part starts). Capture
   * reads what is committed, and emits a compensating transaction where a dead writer's commit goes (trap 1).
   */
  beforeWalChange(
    slot: DatabaseSlot,
    change: { kind: 'header' | 'truncate' | 'unlink' | 'overwrite'; fromBytes: number; durable: boolean },
    answer: GateAnswer,
  ): void;

  /** Before a rollback journal is unlinked, truncated to zero or its header zeroed: the commit point (trap 9). */
  beforeJournalCommit(slot: DatabaseSlot, commit: JournalCommit, answer: GateAnswer): void;

  /**
   * Captures the WAL up to `endBytes` (0: nothing), then waits until replicas have the end of the log, as `durability`
   * asks. 0: they have; EINTR: not yet, after 100 ms, ask again; else this node will never know.
   */
  awaitReplicas(slot: DatabaseSlot, endBytes: number, answer: GateAnswer): void;

  /**
   * `database` was written without any journal and is whole now (page count of its header equals its
   * size): adopt it as a snapshot (`cp`, VACUUM INTO, trap 24), or take over what was written in place.
   */
  adopt(slot: DatabaseSlot, answer: GateAnswer): void;

  /** Before `database` is unlinked: the deletion LTX. After it the slot is dead; a new file gets a new one. */
  beforeDrop(slot: DatabaseSlot, answer: GateAnswer): void;

  /** Before `database` is renamed inside the mount: a drop of the old name, an adoption of the new. */
  beforeRename(slot: DatabaseSlot, newName: string, answer: GateAnswer): void;

  /**
   * Whether a write to `database` only restores committed content: whole pages equal to what is captured
   * (trap 14). Answers 0 when it does, EIO when not. Asked for while this node may not write.
   */
  restoresCommitted(slot: DatabaseSlot, offsetBytes: number, bytes: Uint8Array, answer: GateAnswer): void;
}
