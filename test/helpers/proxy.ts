import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { once } from 'node:events';
import { afterEach } from 'vitest';
import type { NodeSnapshot, NodeView, TimelinePosition } from '../../src/proxy/node-view.js';
import { ProxyServer } from '../../src/proxy/server.js';
import type { ProxySettings } from '../../src/proxy/settings.js';

/** A node as a test says it is: the proxy's own view of one, without the node. */
export class StubView implements NodeView {
  now: NodeSnapshot;
  readonly #listeners = new Set<() => void>();

  constructor(now: Partial<NodeSnapshot> = {}) {
    this.now = {
      nodeId: 'a',
      clusterId: 'cluster',
      region: '',
      role: 'primary',
      ready: true,
      epoch: 1n,
      writableUntilMs: Infinity,
      primary: undefined,
      databases: new Map(),
      ...now,
    };
  }

  set(change: Partial<NodeSnapshot>): void {
    this.now = { ...this.now, ...change };
    for (const listener of this.#listeners) listener();
  }

  /** A replica of the node whose proxy is at that port. */
  follow(port: number | undefined, change: Partial<NodeSnapshot> = {}): void {
    const primary = {
      nodeId: 'b',
      proxyAddress: `127.0.0.1:${port}`,
      instance: undefined,
      region: 'fra',
      hostname: 'b',
    };
    this.set({
      role: 'replica',
      writableUntilMs: 0,
      primary: port === undefined ? undefined : primary,
      ...change,
    });
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  waitForPosition(): Promise<boolean> {
    return Promise.resolve(false);
  }

  seen(): Promise<ReadonlyMap<string, TimelinePosition>> {
    return Promise.resolve(new Map<string, TimelinePosition>());
  }
}

export const proxySettings = (
  ports: readonly number[],
  change: Partial<ProxySettings> = {},
): ProxySettings => ({
  addr: { host: '127.0.0.1', port: 0 },
  targets: ports.map((port) => ({ host: '127.0.0.1', port })),
  databases: [],
  reads: [],
  passthrough: [],
  alwaysForward: [],
  routes: [],
  primaryWaitMs: 2000,
  withoutPrimary: 'serve',
  token: 'off',
  tokenSecret: undefined,
  readWaitMs: 1000,
  maxStalenessMs: undefined,
  staleReads: 'primary',
  responseHeaders: false,
  readTimeoutMs: 0,
  readHeaderTimeoutMs: 10_000,
  writeTimeoutMs: 0,
  idleTimeoutMs: 5000,
  targetWaitMs: 2000,
  bufferBytes: 64 << 10,
  maxHeaderBytes: 16 << 10,
  drainMs: 2000,
  replay: 'off',
  replayMaxBodyBytes: 1 << 20,
  maintenancePage: undefined,
  debug: false,
  secret: 'a secret of the cluster',
  ...change,
});

export interface TestProxy {
  readonly port: number;
  readonly view: StubView;
  readonly server: ProxyServer;
  readonly counted: string[];
}

export async function startProxy(
  ports: readonly number[],
  change: Partial<ProxySettings> = {},
  view = new StubView(),
): Promise<TestProxy> {
  const counted: string[] = [];
  const server = await ProxyServer.listen({
    settings: proxySettings(ports, change),
    view,
    log: () => undefined,
    count: (kind, by, status) => counted.push(`${kind} ${by} ${status}`),
  });
  return { port: server.port, view, server, counted };
}

/** An application as bytes: keeps what it is sent, answers as told. */
export class RawTarget {
  readonly #server: Server;
  readonly sockets: Socket[] = [];
  received = '';

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(
    onData: (socket: Socket, received: string, target: RawTarget) => void,
    port = 0,
  ): Promise<RawTarget> {
    const server = createServer((socket) => {
      target.sockets.push(socket);
      let received = '';
      socket.on('data', (chunk) => {
        received += chunk.toString('latin1');
        target.received += chunk.toString('latin1');
        onData(socket, received, target);
      });
      socket.on('error', () => undefined);
    });
    const target = new RawTarget(server);
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
    return target;
  }

  /** Answers each request whose head is there with the same bytes. */
  static always(answer: string): Promise<RawTarget> {
    return RawTarget.start((socket, received) => {
      if (received.endsWith('\r\n\r\n')) socket.write(answer, 'latin1');
    });
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  stop(): void {
    for (const socket of this.sockets) socket.destroy();
    this.#server.close();
  }
}

/** Sends bytes, and resolves with all that comes until the other side ends or `until` has come. */
export async function exchangeRaw(
  port: number,
  parts: readonly (string | number)[],
  until?: RegExp,
): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  let text = '';
  const done = new Promise<void>((resolve) => {
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1');
      if (until?.test(text) === true) resolve();
    });
    socket.on('error', () => resolve());
    socket.once('close', () => resolve());
  });
  await once(socket, 'connect');
  for (const part of parts) {
    if (typeof part === 'string') socket.write(part, 'latin1');
    else await new Promise((resolve) => setTimeout(resolve, part));
  }
  await done;
  socket.destroy();
  return text;
}

/** Applications and proxies of a test file, which end with each test, as does what is put into `undo`. */
export function scene() {
  const undo: (() => unknown)[] = [];
  afterEach(async () => {
    for (const one of undo.splice(0).toReversed()) await one();
  });
  const raw = async (
    onData: (socket: Socket, received: string, target: RawTarget) => void,
  ): Promise<RawTarget> => {
    const started = await RawTarget.start(onData);
    undo.push(() => started.stop());
    return started;
  };
  const proxy = async (
    ports: readonly number[],
    change: Partial<ProxySettings> = {},
    view?: StubView,
  ): Promise<TestProxy> => {
    const started = await startProxy(ports, change, view);
    undo.push(() => started.server.close(0));
    return started;
  };
  return { undo, raw, proxy };
}
