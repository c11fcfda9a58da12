import type { MessagePort } from 'node:worker_threads';

import { KiteError } from '../errors.js';
import type { ServingOptions } from './mail.js';
import type { MountOptions, Server } from './mount.js';

export async function startNative(_o: MountOptions, _s: ServingOptions, _p: MessagePort): Promise<Server> {
  throw new KiteError('ERR_MOUNT_DRIVER', 'fuse-native is coming');
}
