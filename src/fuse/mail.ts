import type { GateEndpoint } from '../capture/gate-client.js';
import type { DurabilityPolicy } from '../durability/policy.js';
import type { MountEvent } from './mount.js';

/** What the main thread and the mount thread send each other. */
export type ToMountThread =
  | { readonly op: 'arm'; readonly id: number; readonly pid: number; readonly names: readonly string[] }
  | { readonly op: 'changed'; readonly id: number }
  | { readonly op: 'stopWrites'; readonly id: number; readonly names: readonly string[] }
  | { readonly op: 'halted'; readonly id: number; readonly names: readonly string[] }
  | { readonly op: 'special'; readonly id: number; readonly content: Uint8Array | undefined }
  | { readonly op: 'tick' }
  | { readonly op: 'stop' };

export type FromMountThread =
  | { readonly op: 'done'; readonly id: number }
  | { readonly op: 'special'; readonly id: number; readonly path: string }
  | { readonly op: 'ticks' }
  | { readonly op: 'ready' }
  | { readonly op: 'event'; readonly event: MountEvent };

/** The part of the options that the serving side needs. */
export interface ServingOptions {
  readonly dataDir: string;
  readonly control: SharedArrayBuffer;
  readonly captureEndpoint: GateEndpoint | undefined;
  readonly otherFiles: 'refuse' | 'local';
  readonly candidate: boolean;
  readonly durability: readonly DurabilityPolicy[];
  readonly uid: number | undefined;
  readonly gid: number | undefined;
  readonly fileMode: number | undefined;
  readonly dirMode: number | undefined;
}
