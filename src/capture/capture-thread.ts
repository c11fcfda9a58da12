import type { MessagePort } from 'node:worker_threads';
import { workerData } from 'node:worker_threads';

import { toKiteError } from '../errors.js';
import { ControlBlock } from '../fuse/control-block.js';
import { Waker } from '../fuse/waker.js';
import type { CaptureThreadData } from './capture.js';
import { CaptureService } from './capture-service.js';
import { CommitSignal } from './commit-signal.js';
import type { CaptureCall, CaptureCalls, CaptureNotice, GateReply, GateRequest } from './messages.js';

/** The capture thread: ports on one side, the service on the other. Started by Capture.start. */

const data = workerData as CaptureThreadData;
const { port } = data;
const gates: MessagePort[] = [];
let waker: Waker | undefined;

const service = new CaptureService({
  dataDir: data.dataDir,
  nodeId: data.nodeId,
  control: new ControlBlock(data.control),
  signal: new CommitSignal(data.signal),
  checkBytesPerSecond: data.checkBytesPerSecond,
  notify: (notice, transfer) => port.postMessage(notice, transfer),
});

const calls: { [K in keyof CaptureCalls]: (args: CaptureCalls[K][0]) => unknown } = {
  gate: (args) => listen(args.port),
  waker: (args) => {
    waker = new Waker(args.waker);
  },
  recover: (args) => service.recover(args.name),
  promote: (args) => service.promote(args.epoch, args.logs),
  demote: () => service.demote(),
  halt: (args) => service.halt(args.name, args.epoch, args.at),
  unhalt: (args) => service.unhalt(args.name),
  position: (args) => service.position(args.name),
  pages: (args) => service.database(args.name).readCommitted(args.pgnos),
  differing: (args) => service.database(args.name).differing(args.firstPgno, args.theirs),
  removeBefore: (args) => service.database(args.name).log.removeBefore(args.txid),
  replicasHave: (args) => service.replicasHave(args.id, args.errno),
  stop: () => service.stop(),
};

function listen(gate: MessagePort): void {
  gates.push(gate);
  gate.on('message', (request: GateRequest) => {
    void service.answer(request).then((errno) => {
      if (request.op === 'slot') return;
      gate.postMessage({ id: request.id, errno } satisfies GateReply);
      waker?.wake(); // the mount thread blocks in a read and hears no message
    });
  });
}

port.on('message', ({ id, op, args }: CaptureCall) => {
  const call = calls[op] as (args: unknown) => unknown;
  if (id === 0) {
    call(args);
    return;
  }
  // Within a promise, so that a throw becomes an answer too.
  new Promise((resolve) => resolve(call(args))).then(
    (value) => port.postMessage({ kind: 'result', id, value } satisfies CaptureNotice),
    (thrown) => {
      const { code, message } = toKiteError(thrown);
      port.postMessage({ kind: 'error', id, code, message } satisfies CaptureNotice);
    },
  );
});
await service.run();
for (const gate of gates) gate.close();
