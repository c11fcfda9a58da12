import { toKiteError } from '../errors.js';
import { ChangeMarkReader } from '../util/change-mark.js';
import type { Counted, FromProxy, ToProxy } from './messages.js';
import { RemoteView } from './remote-view.js';
import { ProxyServer } from './server.js';

/** The proxy's process, forked by Proxy (proxy.ts). It holds nothing that outlives a request. */

if (!process.send) {
  process.stderr.write('the proxy is started by kitefs mount\n');
  process.exit(2);
}
const ALIVE_MS = 1000;

const send = (message: FromProxy): void => {
  // A parent that is gone shows by `disconnect`.
  process.send?.(message, undefined, undefined, () => {});
};

let view: RemoteView | undefined;
let server: ProxyServer | undefined;
const counted = new Map<string, { -readonly [K in keyof Counted]: Counted[K] }>();

async function start({
  settings,
  node,
  databases,
  mark,
}: Extract<ToProxy, { kind: 'start' }>): Promise<void> {
  const reader = mark === undefined ? undefined : ChangeMarkReader.open(mark);
  view = new RemoteView(node, databases, {
    ask: (id, names) => send({ kind: 'ask', id, databases: names }),
    mark: () => reader?.read(),
  });
  try {
    server = await ProxyServer.listen({
      settings,
      view,
      log: (level, message) => send({ kind: 'log', level, message }),
      count: (kind, by, status) => {
        const key = `${kind} ${by} ${status}`;
        const entry = counted.get(key);
        if (entry) entry.count++;
        else counted.set(key, { kind, by, status, count: 1 });
      },
    });
    send({ kind: 'listening', port: server.port });
    setInterval(tell, ALIVE_MS);
  } catch (thrown) {
    const { code, message } = toKiteError(thrown);
    send({ kind: 'failed', code, message });
  }
}

function tell(): void {
  if (!server) return;
  send({ kind: 'alive', counted: [...counted.values()], ...server.state });
  counted.clear();
}

process.on('message', (message: ToProxy) => {
  switch (message.kind) {
    case 'start':
      void start(message);
      break;
    case 'node':
      view?.heard(message.node);
      break;
    case 'databases':
      view?.heardOf(message.databases);
      break;
    case 'seen':
      view?.answered(message.id, message.positions);
      break;
    case 'quiet':
      void (server?.writesAnswered() ?? Promise.resolve()).then(() => send({ kind: 'quiet' }));
      break;
    case 'drain':
      void (server?.close(message.drainMs) ?? Promise.resolve()).then(() => {
        tell();
        send({ kind: 'drained' });
      });
      break;
  }
});
process.on('disconnect', () => process.exit(0));
// They are meant for the daemon, which says when this process ends: first the requests that run are answered.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
