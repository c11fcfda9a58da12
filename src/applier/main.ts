import { KiteError, toKiteError } from '../errors.js';
import { BackgroundCheck } from '../store/background-check.js';
import { ApplierServer } from './applier-server.js';
import { Checkpointer } from './checkpointer.js';
import type { FromApplier, ToApplier } from './messages.js';

/** The applier process: `main.js MOUNT_DIR DATA_DIR ARMED CHECK_RATE`, forked by Applier (applier.ts). */

const [, , mountDir, dataDir, armed, checkRate] = process.argv;
if (!mountDir || !dataDir || !process.send) {
  process.stderr.write('the applier is started by kitefs mount\n');
  process.exit(2);
}

const PARENT_CHECK_MS = 1000;
const ALIVE_MS = 2000;
const parentPid = process.ppid;

const send = (message: FromApplier): void => {
  // A parent that is gone shows by `disconnect`.
  process.send?.(message, undefined, undefined, () => {});
};

let nextArm = 1;
const arming = new Map<number, () => void>();
const arm = (names: readonly string[]): Promise<void> =>
  new Promise((resolve) => {
    const id = nextArm++;
    arming.set(id, resolve);
    send({ kind: 'arm', id, names });
  });

const server = new ApplierServer({
  mountDir,
  dataDir,
  arm: armed === 'armed' ? arm : undefined,
  checkpointer: new Checkpointer(),
  check: new BackgroundCheck(Number(checkRate)),
  emit: (event) => send({ kind: 'event', event }),
});

process.on('message', (message: ToApplier) => {
  if ('armed' in message) {
    arming.get(message.armed)?.();
    arming.delete(message.armed);
    return;
  }
  server
    .call(message)
    .then((value) => send({ kind: 'result', id: message.id, value }))
    .catch((error: unknown) => {
      const { code, message: text } = error instanceof KiteError ? error : toKiteError(error);
      send({ kind: 'error', id: message.id, code, message: text });
    });
});

// Without its parent nobody would answer the mount either: nothing is to be waited for or written any more.
process.on('disconnect', () => process.exit(0));
// It may have died while this was loading: nobody was listening then.
if (!process.connected) process.exit(0);
setInterval(() => {
  if (process.ppid !== parentPid) process.exit(0);
}, PARENT_CHECK_MS);
setInterval(() => send({ kind: 'alive' }), ALIVE_MS);
// Ctrl-C in the daemon's terminal reaches the whole group: the daemon still needs this process to stop in order.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => {});

send({ kind: 'ready' });
