import type { GateEndpoint } from '../capture/gate-client.js';
import type { Waker } from './waker.js';

export type FuseDriver = 'kernel' | 'fuse-native';

/** What the mount tells the daemon. Names are paths in the mount. */
export type MountEvent =
  | { readonly type: 'created' | 'dropped'; readonly name: string }
  | { readonly type: 'renamed'; readonly name: string; readonly newName: string }
  /** An application was refused something; at most one per name and reason in 10 s, with the count since. */
  | {
      readonly type: 'refused';
      readonly name: string;
      readonly reason: RefusalReason;
      readonly message: string;
      readonly count: number;
    }
  /** The mount ended without `stop` (somebody unmounted it). */
  | { readonly type: 'gone' }
  | { readonly type: 'error'; readonly message: string };

export type RefusalReason = 'replica' | 'fenced' | 'no-journal' | 'other-file' | 'truncate-live' | 'link';

export interface MountOptions {
  /** Absolute. */
  readonly mountDir: string;
  readonly dataDir: string;
  readonly driver: FuseDriver;
  /** Buffer of the ControlBlock. */
  readonly control: SharedArrayBuffer;
  /** Where capture listens; its port is transferred. Absent: nothing is captured and every change is allowed. */
  readonly captureEndpoint?: GateEndpoint;
  /** What happens to files that are no database. */
  readonly otherFiles: 'refuse' | 'local';
  readonly allowOther: boolean;
  /** Whether this node may ever be primary; false refuses opening for writing. */
  readonly candidate: boolean;
  /** Owner and mode bits of new files; default: those of the process that creates them. */
  readonly uid?: number;
  readonly gid?: number;
  readonly fileMode?: number;
  readonly dirMode?: number;
  /** Content of `.primary`, `.lag`, `<db>-pos`, `.kitefs/status.json`; undefined: no such file now. */
  readonly special: (path: string) => Promise<Buffer | undefined>;
  readonly onEvent: (event: MountEvent) => void;
}

/** A mounted KiteFS, from the main thread's side. Nothing here touches a path inside the mount. */
export interface MountHandle {
  /** For capture: wakes the mount thread after an answer was posted. */
  readonly waker: Waker;
  /**
   * Names the applier. With the kernel driver every request of this process is privileged. With
   * fuse-native, which knows no process, the next opens of `path` (and its companions) within 5 s with
   * O_SYNC | O_RDWR are, so it is called before each such open. Resolves when it is in force.
   */
  armApplier(applier: { readonly pid: number; readonly path?: string }): Promise<void>;
  /** After the ControlBlock was changed: waiting opens are looked at again. Resolves when it was done. */
  changed(): Promise<void>;
  /** Unmounts, lazily; whoever still has files open gets errors, nothing hangs. Never throws. */
  stop(): Promise<void>;
}

export const Mount = {
  /** Mounts, and resolves when the mount answers. Errors: ERR_MOUNT_*. */
  async start(_options: MountOptions): Promise<MountHandle> {
    throw new Error('not yet');
  },
};
