import type { CaptureGate } from '../capture/gate.js';
import type { ControlBlock } from './control-block.js';

/** Why an application was refused something. */
export type RefusalReason =
  | 'replica'
  | 'fenced'
  | 'stopped'
  | 'no-journal'
  | 'other-file'
  | 'truncate-live'
  | 'link';

/** What the parts of the mount share. */
export interface MountServices {
  readonly dataDir: string;
  readonly control: ControlBlock;
  readonly gate: CaptureGate;
  readonly otherFiles: 'refuse' | 'local';
  readonly candidate: boolean;
  /** Databases that capture cannot follow: what was written to them would be in no log, so nothing is. */
  readonly stopped: Set<string>;
  /** Databases of a replica that its applications write meanwhile (HALT): each commit waits for the primary. */
  readonly halted: ReadonlySet<string>;
  /** Whether a COMMIT in this database is answered only when replicas have it. */
  waitsForReplicas(name: string): boolean;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
  readonly fileMode: number | undefined;
  readonly dirMode: number | undefined;
  /** Counts a refusal, and says so in the log now and then. */
  refused(name: string, reason: RefusalReason, message: string): void;
  created(name: string): void;
  dropped(name: string): void;
  /** A writer died in its commit: it is in the log, and in the WAL where the next write takes its place (decision 008). */
  deadCommit(name: string): void;
  renamed(name: string, newName: string): void;
  /** See MountEvent. */
  walReused(name: string, sizeBytes: number): void;
  /** Content of a file that the main thread makes; undefined: there is none now. */
  special(path: string, answer: (content: Buffer | undefined) => void): void;
  /** A database is being written without a journal: `tick` is wanted until it is adopted. */
  wantTicks(): void;
  error(message: string): void;
}

/** Answer to the kernel: 0, or a positive errno. */
export type Answer = (errno: number) => void;

/** The errno numbers of Linux that the mount answers with. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  EBADF: 9,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  EXDEV: 18,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EROFS: 30,
  ENAMETOOLONG: 36,
  ENOSYS: 38,
  ENOTEMPTY: 39,
  EOPNOTSUPP: 95,
} as const;

/** Ends a request with an errno, from anywhere below the driver. */
export class Refusal extends Error {
  readonly errno: number;

  constructor(errno: number) {
    super(`errno ${errno}`);
    this.errno = errno;
  }
}

/** Errno of anything that node:fs or the file system has thrown; undefined for a bug. */
export function errnoOf(thrown: unknown): number | undefined {
  if (thrown instanceof Refusal) return thrown.errno;
  const errno = (thrown as NodeJS.ErrnoException | undefined)?.errno;
  return typeof errno === 'number' ? Math.abs(errno) : undefined;
}
