import type { MessagePort } from 'node:worker_threads';
import { workerData } from 'node:worker_threads';

import { toKiteError } from '../errors.js';
import { ControlBlock } from '../fuse/control-block.js';
import { Waker } from '../fuse/waker.js';
import type { CaptureThreadData } from './capture.js';
import { CaptureService } from './capture-service.js';
import { CommitSignal } from './commit-signal.js';
import type { CaptureCall, CaptureNotice, GateReply, GateRequest } from './messages.js';

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
  notify: (notice, transfer) => port.postMessage(notice, transfer),
});

port.on('message', (call: CaptureCall) => {
  // Within a promise, so that a throw becomes an answer too.
  new Promise((resolve) => resolve(perform(call))).then(
    (value) => port.postMessage({ kind: 'result', id: call.id, value } satisfies CaptureNotice),
    (thrown) => {
      const { code, message } = toKiteError(thrown);
      port.postMessage({ kind: 'error', id: call.id, code, message } satisfies CaptureNotice);
    },
  );
});
await service.run();
for (const gate of gates) gate.close();

function perform(call: CaptureCall): unknown {
  switch (call.op) {
    case 'gate':
      return listen(call.args.port);
    case 'waker':
      waker = new Waker(call.args.waker);
      return undefined;
    case 'recover':
      return service.recover(call.args.name);
    case 'promote':
      return service.promote(call.args.epoch);
    case 'demote':
      return service.demote();
    case 'position':
      return service.database(call.args.name).position;
    case 'pages':
      return service.database(call.args.name).readCommitted(call.args.pgnos);
    case 'sync':
      return service.syncLogs();
    case 'removeBefore':
      return service.database(call.args.name).log.removeBefore(call.args.txid);
    case 'stats':
      return service.stats();
    case 'stop':
      return service.stop();
  }
}

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
