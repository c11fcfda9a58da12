import type { AddressInfo, Socket } from 'node:net';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { formatAddress } from '../config/values.js';
import { KiteError, type ErrorCode } from '../errors.js';
import { monotonicMs } from '../util/clock.js';
import type { ProxyContext } from './context.js';
import { sendError, writeError } from './error-answer.js';
import { serve } from './exchange.js';
import { InFlight } from './in-flight.js';
import type { ProxyAnswer, ProxyRequest } from './inbound.js';
import { Http2Front } from './http2-server.js';
import { sniff } from './sniff.js';
import { Targets, keepAliveAgent } from './targets.js';
import { Http1Upgrade, Upgrades } from './upgrade.js';

/** Between nodes: less than what any proxy of ours keeps its side for. */
const PEER_KEEP_ALIVE_MS = 5000;
/** How exactly the limits of slow requests are kept. */
const CHECK_MS = 1000;

export type ProxyServerOptions = Pick<ProxyContext, 'settings' | 'view' | 'log' | 'count'>;

/** The proxy: listens, and answers requests (docs/proxy.md). */
export class ProxyServer {
  readonly #server: Server;
  readonly #context: ProxyContext;
  readonly #upgrades: Upgrades;
  readonly #http2: Http2Front;
  /** Connections that have said nothing yet. */
  readonly #silent = new Set<Socket>();
  #running = 0;
  #draining = false;
  #onIdle: (() => void) | undefined;

  private constructor(options: ProxyServerOptions) {
    const { settings } = options;
    this.#context = {
      ...options,
      targets: new Targets(settings.targets),
      peers: keepAliveAgent(PEER_KEEP_ALIVE_MS),
      writes: new InFlight(),
      draining: () => this.#draining,
    };
    this.#upgrades = new Upgrades(this.#context);
    this.#server = createServer({
      insecureHTTPParser: false,
      // The answer to that is this proxy's (context.ts).
      requireHostHeader: false,
      maxHeaderSize: settings.maxHeaderBytes,
      headersTimeout: settings.readHeaderTimeoutMs,
      requestTimeout: settings.readTimeoutMs,
      keepAliveTimeout: settings.idleTimeoutMs,
      connectionsCheckingInterval: CHECK_MS,
      noDelay: true,
    });
    // Node leaves out what goes beyond; half a head would be another request.
    this.#server.maxHeadersCount = 0;
    this.#server.on('request', (request, response) => this.#serve(request, response, false));
    this.#server.on('checkContinue', (request, response) => this.#serve(request, response, true));
    this.#server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) => {
      const error = new KiteError('ERR_PROXY_EXPECT', 'Expect knows 100-continue only');
      sendError(request, response, error, settings);
    });
    this.#server.on('upgrade', (request, socket, early) => {
      void this.#upgrades.serve(new Http1Upgrade(request, socket as Socket, early, settings));
    });
    this.#server.on('connect', (_request, socket) => {
      writeError(socket, new KiteError('ERR_PROXY_METHOD', 'CONNECT is for other proxies'), settings);
    });
    this.#server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
      const answering = (socket as { _httpMessage?: ServerResponse | null })._httpMessage;
      if (error.code === 'ECONNRESET' || answering?.headersSent === true) socket.destroy();
      // An earlier request is whole, and its answer still to come: this one would be taken for it. The connection ends with that answer.
      else if (answering?.req.complete === true) answering.shouldKeepAlive = false;
      else writeError(socket, malformed(error), settings);
    });
    this.#http2 = new Http2Front(settings, {
      serve: (request, answer, expectContinue) => this.#serve(request, answer, expectContinue),
      upgrade: (client) => void this.#upgrades.serve(client),
    });
    this.#tellApart();
  }

  /** Node's server of HTTP/1.1 gets a connection once it is known not to be one of HTTP/2. */
  #tellApart(): void {
    const server = this.#server;
    const { settings } = this.#context;
    const [http1] = server.listeners('connection') as ((this: Server, socket: Socket) => void)[];
    server.removeAllListeners('connection');
    server.on('connection', (socket: Socket) => {
      this.#silent.add(socket);
      sniff(socket, settings.readHeaderTimeoutMs, (spoken, first) => {
        this.#silent.delete(socket);
        if (spoken === 'gone') socket.destroy();
        else if (spoken === 'slow')
          writeError(socket, new KiteError('ERR_PROXY_SLOW', 'no request came'), settings);
        else if (spoken === 'http2') this.#http2.take(socket, first);
        else {
          http1!.call(server, socket);
          // It listens to the connection now, as if nobody had before.
          socket.emit('data', first);
        }
      });
    });
  }

  /** Rejects with ERR_DAEMON_PORT when the address cannot be listened on. */
  static async listen(options: ProxyServerOptions): Promise<ProxyServer> {
    const proxy = new ProxyServer(options);
    const { host, port } = options.settings.addr;
    await new Promise<void>((resolve, reject) => {
      proxy.#server.once('error', (error: NodeJS.ErrnoException) => {
        const why = error.code === 'EADDRINUSE' ? 'something listens there already' : error.message;
        const at = formatAddress(options.settings.addr);
        reject(new KiteError('ERR_DAEMON_PORT', `proxy.addr ${at}: ${why}`, { cause: error }));
      });
      proxy.#server.listen({ port, ...(host === '' ? {} : { host }), backlog: 4096 }, resolve);
    });
    return proxy;
  }

  /** The port that is listened on, for `:0`. */
  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** What is open, for metrics. */
  get state(): { readonly requests: number; readonly upgrades: number; readonly targetsUp: number } {
    return {
      requests: this.#running,
      upgrades: this.#upgrades.count,
      targetsUp: this.#context.targets.states.filter(({ isUp }) => isUp).length,
    };
  }

  /** Resolves when the application of this node has answered every write that it was given. */
  writesAnswered(): Promise<void> {
    return this.#context.writes.none();
  }

  /**
   * Takes no more connections; resolves when the requests that run are answered and upgraded connections have ended, at the latest after
   * `drainMs`; then everything is cut.
   */
  async close(drainMs = this.#context.settings.drainMs): Promise<void> {
    this.#draining = true;
    const untilMs = monotonicMs() + drainMs;
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    this.#server.closeIdleConnections();
    this.#http2.drain();
    await Promise.race([
      Promise.all([this.#idle(), this.#upgrades.drain(drainMs)]),
      new Promise((resolve) => setTimeout(resolve, Math.max(0, untilMs - monotonicMs())).unref()),
    ]);
    this.#upgrades.stop();
    // The last answers may still be on their way out of the process.
    this.#server.closeIdleConnections();
    const cut = setTimeout(
      () => {
        this.#server.closeAllConnections();
        this.#http2.destroy();
        // Not before: another node may just be about to send a write on one.
        for (const socket of this.#silent) socket.destroy();
      },
      this.#running > 0 ? 0 : 100,
    );
    await closed;
    clearTimeout(cut);
    this.#context.targets.stop();
    this.#context.peers.destroy();
  }

  #serve(request: ProxyRequest, response: ProxyAnswer, expectContinue: boolean): void {
    this.#running++;
    response.once('close', () => {
      this.#running--;
      if (this.#running === 0) this.#onIdle?.();
    });
    void serve(request, response, this.#context, expectContinue);
  }

  async #idle(): Promise<void> {
    if (this.#running === 0) return;
    await new Promise<void>((resolve) => {
      this.#onIdle = resolve;
    });
  }
}

function malformed(error: NodeJS.ErrnoException): KiteError {
  const code: ErrorCode =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? 'ERR_PROXY_HEADERS'
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? 'ERR_PROXY_SLOW'
        : 'ERR_PROXY_REQUEST';
  return new KiteError(code, error.code === undefined ? 'malformed' : `${error.message} (${error.code})`, {
    cause: error,
  });
}
