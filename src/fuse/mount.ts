import { MessageChannel, type MessagePort } from 'node:worker_threads';

import type { GateEndpoint } from '../capture/gate-client.js';
import type { DurabilityPolicy } from '../durability/policy.js';
import { KiteError } from '../errors.js';
import { startKernel } from './kernel-server.js';
import type { FromMountThread, ServingOptions, ToMountThread } from './mail.js';
import { mountAt, prepareMountPoint } from './mount-point.js';
import { warningsOfUsers } from './mount-users.js';
import { startNative } from './native-mount.js';
import type { RefusalReason } from './services.js';
import { Waker } from './waker.js';

export type FuseDriver = 'kernel' | 'fuse-native';

/** What the mount tells the daemon. Names are paths in the mount. */
export type MountEvent =
  | { readonly type: 'created' | 'dropped'; readonly name: string }
  /** A writer died in its commit, which nobody sees until somebody writes: see takeBack. */
  | { readonly type: 'deadCommit'; readonly name: string }
  | { readonly type: 'renamed'; readonly name: string; readonly newName: string }
  /** The `-wal` of a database, larger than when this was last said, is used again from its start. */
  | { readonly type: 'walReused'; readonly name: string; readonly sizeBytes: number }
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
  /** What commits wait for; default: nothing. With the kernel driver only. */
  readonly durability?: readonly DurabilityPolicy[];
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

const TICK_MS = 500;
const READY_LIMIT_MS = 10_000;

/** What serves a mount. */
export interface Server {
  /** Unmounts and ends it; `tell` asks the serving side to stop. */
  stop(tell: () => void): Promise<void>;
}

/** A mounted KiteFS, from the main thread's side. Nothing here touches a path inside the mount. */
export class Mount {
  /** For capture: wakes the mount thread after an answer was posted. */
  readonly waker = new Waker();
  readonly #options: MountOptions;
  readonly #port: MessagePort;
  readonly #waiting = new Map<number, () => void>();
  #server: Server | undefined;
  #ready: () => void = () => undefined;
  #nextId = 1;
  #ticking: NodeJS.Timeout | undefined;
  #stopping: Promise<void> | undefined;

  private constructor(options: MountOptions, port: MessagePort) {
    this.#options = options;
    this.#port = port;
    port.on('message', (mail: FromMountThread) => this.#take(mail));
  }

  /** Mounts, and resolves when the mount answers. Errors: ERR_MOUNT_*. */
  static async start(options: MountOptions): Promise<Mount> {
    await prepareMountPoint(options.mountDir, (message) => options.onEvent({ type: 'error', message }));
    const { port1, port2 } = new MessageChannel();
    const mount = new Mount(options, port1);
    const ready = new Promise<void>((resolve) => (mount.#ready = resolve));
    const serving: ServingOptions = {
      dataDir: options.dataDir,
      control: options.control,
      captureEndpoint: options.captureEndpoint,
      otherFiles: options.otherFiles,
      candidate: options.candidate,
      durability: options.durability ?? [],
      uid: options.uid,
      gid: options.gid,
      fileMode: options.fileMode,
      dirMode: options.dirMode,
    };
    try {
      mount.#server =
        options.driver === 'kernel'
          ? await startKernel(options, serving, port2, mount.waker)
          : await startNative(options, serving, port2);
      await within(ready, READY_LIMIT_MS, `${options.mountDir} was mounted but does not answer`);
    } catch (error) {
      await mount.stop();
      throw error;
    }
    return mount;
  }

  /**
   * Names the applier. With the kernel driver every request of this process is privileged. With
   * fuse-native, which knows no process, the next open of each of `names` (`app.db-wal`…) within 5 s with
   * O_SYNC | O_RDWR is, so it is called before each such open. Resolves when it is in force.
   */
  armApplier(applier: { readonly pid?: number; readonly names?: readonly string[] }): Promise<void> {
    return this.#ask((id) => ({ op: 'arm', id, pid: applier.pid ?? 0, names: applier.names ?? [] }));
  }

  /** After the ControlBlock was changed: waiting opens are looked at again. Resolves when it was done. */
  changed(): Promise<void> {
    return this.#ask((id) => ({ op: 'changed', id }));
  }

  /** Databases whose writes are refused from now on, whatever the role (they replace those of the last call). */
  stopWrites(names: readonly string[]): Promise<void> {
    return this.#ask((id) => ({ op: 'stopWrites', id, names }));
  }

  /**
   * Databases of this replica that its applications write (HALT), from now on; they replace those of the last call. When it
   * resolves no write of an application to another one is under way.
   */
  haltedHere(names: readonly string[]): Promise<void> {
    return this.#ask((id) => ({ op: 'halted', id, names }));
  }

  /** Unmounts, lazily; whoever still has files open gets errors, nothing hangs. Never throws. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    clearTimeout(this.#ticking);
    const mounted = this.#server && mountAt(this.#options.mountDir);
    for (const message of mounted ? warningsOfUsers(mounted.id) : []) {
      this.#options.onEvent({ type: 'error', message });
    }
    await this.#server?.stop(() => this.#post({ op: 'stop' }));
    this.#port.close();
    for (const resolve of this.#waiting.values()) resolve();
    this.#waiting.clear();
  }

  #ask(mail: (id: number) => ToMountThread): Promise<void> {
    if (this.#stopping) return Promise.resolve();
    const id = this.#nextId++;
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
      this.#post(mail(id));
    });
  }

  #post(mail: ToMountThread): void {
    this.#port.postMessage(mail);
    this.waker.wake();
  }

  #take(mail: FromMountThread): void {
    if (mail.op === 'ready') this.#ready();
    else if (mail.op === 'done') {
      this.#waiting.get(mail.id)?.();
      this.#waiting.delete(mail.id);
    } else if (mail.op === 'special') void this.#special(mail.id, mail.path);
    else if (mail.op === 'ticks') this.#tickLater();
    else if (!(mail.event.type === 'gone' && this.#stopping)) this.#options.onEvent(mail.event);
  }

  async #special(id: number, name: string): Promise<void> {
    let content: Buffer | undefined;
    try {
      content = await this.#options.special(name);
    } catch (error) {
      this.#options.onEvent({ type: 'error', message: `${name} could not be made: ${String(error)}` });
    }
    if (!this.#stopping) this.#post({ op: 'special', id, content });
  }

  #tickLater(): void {
    if (this.#stopping || this.#ticking) return;
    this.#ticking = setTimeout(() => {
      this.#ticking = undefined;
      this.#post({ op: 'tick' });
    }, TICK_MS);
  }
}

async function within(promise: Promise<void>, limitMs: number, message: string): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new KiteError('ERR_MOUNT_FAILED', message)), limitMs);
  });
  try {
    await Promise.race([promise, limit]);
  } finally {
    clearTimeout(timer);
  }
}
