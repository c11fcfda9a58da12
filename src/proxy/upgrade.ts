import { type IncomingMessage, request as httpRequest } from 'node:http';
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { type Address, parseAddress } from '../config/values.js';
import { KiteError, toKiteError } from '../errors.js';
import { isPrimary } from '../observability/node-status.js';
import { monotonicMs } from '../util/clock.js';
import { readNeeds } from './annotate.js';
import { type Head, type ProxyContext, readHead } from './context.js';
import { writeError } from './error-answer.js';
import { endToEnd, valuesOf } from './headers.js';
import type { ProxyRequest } from './inbound.js';
import type { PrimaryView } from './node-view.js';
import { proveForwarding } from './peer-proof.js';
import type { ProxySettings } from './settings.js';
import { nodeChange, route } from './wait.js';

const ASK_AGAIN_MS = 50;

/** Of its own, so that it keeps nothing of a request alive. */
const ignore = (): void => undefined;

/** Who asks for the switch: a connection of HTTP/1.1, or a stream of HTTP/2. */
export interface UpgradeClient {
  readonly request: ProxyRequest;
  /** What carries the bytes of the other protocol. */
  readonly stream: Duplex;
  /** What of them has come with the head. */
  readonly early: Buffer;
  /** The application has switched. Throws when the client cannot take that for what it has asked for. */
  switched(response: IncomingMessage, headers: readonly string[], protocol: string): void;
  /** It has not: an answer like any other. */
  refused(response: IncomingMessage, headers: readonly string[]): void;
  fail(error: KiteError): void;
}

/** A connection of HTTP/1.1 that asks for it by `Upgrade`. */
export class Http1Upgrade implements UpgradeClient {
  readonly request: IncomingMessage;
  readonly stream: Socket;
  readonly early: Buffer;
  readonly #settings: ProxySettings;

  constructor(request: IncomingMessage, stream: Socket, early: Buffer, settings: ProxySettings) {
    this.request = request;
    this.stream = stream;
    this.early = early;
    this.#settings = settings;
  }

  switched(response: IncomingMessage, headers: readonly string[], protocol: string): void {
    const named = response.headers.upgrade ?? protocol;
    this.stream.write(answerHead(response, [...headers, 'Connection', 'Upgrade', 'Upgrade', named]));
  }

  /** The end of the connection ends it. */
  refused(response: IncomingMessage, headers: readonly string[]): void {
    this.stream.write(answerHead(response, [...headers, 'Connection', 'close']));
  }

  fail(error: KiteError): void {
    writeError(this.stream, error, this.#settings);
  }
}

/**
 * Connections that have left HTTP: WebSockets and whatever else `Upgrade` names. Bytes pass as they are, both ways. What is at the primary
 * because only the primary may serve it ends some time after the primary has changed, so that its client connects anew.
 */
export class Upgrades {
  readonly #c: ProxyContext;
  readonly #tunnels = new Set<Tunnel>();
  readonly #forget: () => void;

  constructor(context: ProxyContext) {
    this.#c = context;
    this.#forget = context.view.onChange(() => this.#roleChanged());
  }

  get count(): number {
    return this.#tunnels.size;
  }

  /** Answers a request with `Upgrade`. Never throws. */
  async serve(client: UpgradeClient): Promise<void> {
    const { stream } = client;
    const gone = new AbortController();
    const abort = (): void => gone.abort();
    // An error is followed by a close.
    stream.on('error', ignore);
    stream.once('close', abort);
    try {
      await this.#serve(client, gone.signal);
    } catch (thrown) {
      const error = toKiteError(thrown);
      this.#c.count('read', 'proxy', error.row.http);
      client.fail(error);
    } finally {
      // A tunnel minds its ends itself; kept, this would keep the request and its headers for as long as it lasts.
      stream.removeListener('close', abort);
    }
  }

  /** Ends all of them, after what `drainMs` leaves them. */
  async drain(drainMs: number): Promise<void> {
    const untilMs = monotonicMs() + drainMs;
    for (const tunnel of this.#tunnels) tunnel.endBy(untilMs);
    await Promise.all([...this.#tunnels].map((tunnel) => tunnel.ended));
  }

  stop(): void {
    this.#forget();
    for (const tunnel of this.#tunnels) tunnel.cut();
  }

  async #serve(client: UpgradeClient, gone: AbortSignal): Promise<void> {
    const { settings, view } = this.#c;
    const { request } = client;
    const head = readHead(request, true, this.#c);
    const { 'content-length': length, 'transfer-encoding': encoding } = request.headers;
    // Where its body ends and the new protocol begins would be a guess.
    if (encoding !== undefined || Number(length ?? 0) > 0)
      throw new KiteError('ERR_PROXY_REQUEST', 'a request with Upgrade has no body');
    const needs = readNeeds(request.headers, settings);
    const arrivedMs = monotonicMs();
    for (;;) {
      const where = await route(
        { class: head.class, needs, arrivedMs, forwardedEpoch: head.forwardedEpoch },
        settings,
        view,
        gone,
      );
      if (gone.aborted) return;
      if (where.kind === 'refuse') throw new KiteError(where.code, where.why);
      const isLocal = where.kind === 'local';
      const to = isLocal ? this.#c.targets.next() : parseAddress(where.primary.proxyAddress);
      const failed = to
        ? await this.#connect(client, head, to, isLocal ? undefined : where.primary)
        : 'nobody listens';
      if (failed === undefined || gone.aborted) return;
      const limitMs = arrivedMs + (isLocal ? settings.targetWaitMs : settings.primaryWaitMs);
      if (monotonicMs() >= limitMs)
        throw new KiteError(isLocal ? 'ERR_PROXY_TARGET_DOWN' : 'ERR_PROXY_NO_PRIMARY', failed);
      if (!isLocal) await nodeChange(view, ASK_AGAIN_MS, gone);
      else {
        if (to) this.#c.targets.down(to);
        await this.#c.targets.anyUp(limitMs, gone);
      }
    }
  }

  /** Asks for the switch of protocols and passes on what comes of it; resolves with why nobody could be asked. */
  async #connect(
    client: UpgradeClient,
    head: Head,
    to: Address,
    primary: PrimaryView | undefined,
  ): Promise<string | undefined> {
    const { settings, view } = this.#c;
    const headers = [...head.headers];
    const protocol = valuesOf(client.request.rawHeaders, 'upgrade').join(', ');
    // A tunnel of HTTP/2 would go past every rule of this proxy: that one is answered in HTTP/1.1.
    const isH2c = /(^|,)\s*h2c\s*(,|$)/i.test(protocol);
    if (!isH2c) headers.push('Connection', 'Upgrade', 'Upgrade', protocol);
    if (primary) {
      const forwarding = {
        clusterId: view.now.clusterId,
        epoch: view.now.epoch,
        from: view.now.nodeId,
        method: head.method,
        url: head.url,
      };
      headers.push('Kitefs-Forwarded', proveForwarding(forwarding, head.headers, settings.secret));
    }
    let forget = (): void => undefined;
    const asked = new Promise<string | undefined>((resolve, reject) => {
      let connected = false;
      const up = httpRequest({
        agent: false,
        host: to.host === '' ? 'localhost' : to.host,
        port: to.port,
        method: head.method,
        path: head.url,
        headers,
        maxHeaderSize: settings.maxHeaderBytes,
      });
      const abort = (): void => void up.destroy();
      client.stream.once('close', abort);
      forget = () => client.stream.removeListener('close', abort);
      up.once('socket', (socket) => socket.once('connect', () => (connected = true)));
      up.on('error', (error) => {
        if (connected)
          reject(new KiteError(primary ? 'ERR_PROXY_PRIMARY_GONE' : 'ERR_PROXY_TARGET', error.message));
        else resolve(error.message);
      });
      up.once('upgrade', (response, socket, rest) => {
        forget();
        if (isH2c) {
          socket.destroy();
          reject(new KiteError('ERR_PROXY_TARGET', 'it switched to a protocol that was not asked for'));
          return;
        }
        try {
          client.switched(response, endToEnd(response.rawHeaders), protocol);
        } catch (error) {
          socket.destroy();
          reject(new KiteError('ERR_PROXY_TARGET', (error as Error).message));
          return;
        }
        this.#c.count(head.class.kind, primary ? 'primary' : 'local', 101);
        if (rest.length > 0) client.stream.write(rest);
        if (client.early.length > 0) socket.write(client.early);
        this.#add(new Tunnel(client.stream, socket, head.class.kind === 'write', primary?.nodeId));
        resolve(undefined);
      });
      up.once('response', (response) => {
        if (primary && response.headers['kitefs-error'] === 'ERR_PROXY_NOT_PRIMARY') {
          up.destroy();
          resolve(`${primary.nodeId} is not the primary`);
          return;
        }
        this.#c.count(head.class.kind, primary ? 'primary' : 'local', response.statusCode ?? 502);
        client.refused(response, endToEnd(response.rawHeaders));
        response.on('error', () => client.stream.destroy());
        response.once('close', () => response.complete || client.stream.destroy());
        response.pipe(client.stream);
        resolve(undefined);
      });
      up.end();
    });
    try {
      const failed = await asked;
      // Asked again, each time with another listener; an answer that is under way still has to end with its client.
      if (failed !== undefined) forget();
      return failed;
    } catch (error) {
      forget();
      throw error;
    }
  }

  #add(tunnel: Tunnel): void {
    this.#tunnels.add(tunnel);
    void tunnel.ended.then(() => this.#tunnels.delete(tunnel));
    if (this.#c.draining()) tunnel.endBy(monotonicMs() + this.#c.settings.drainMs);
  }

  #roleChanged(): void {
    const { now } = this.#c.view;
    const primary = isPrimary(now.role) ? undefined : now.primary?.nodeId;
    // Between two primaries nothing is known: the successor may be the same one.
    if (!isPrimary(now.role) && primary === undefined) return;
    const untilMs = monotonicMs() + this.#c.settings.drainMs;
    for (const tunnel of this.#tunnels)
      if (tunnel.needsPrimary && tunnel.at !== primary) tunnel.endBy(untilMs);
  }
}

/** A client and the one it talks to. */
class Tunnel {
  readonly needsPrimary: boolean;
  /** The primary whose proxy it leads to; undefined: the application of this node. */
  readonly at: string | undefined;
  readonly ended: Promise<void>;
  readonly #sockets: readonly [Duplex, Socket];
  #end: NodeJS.Timeout | undefined;

  constructor(client: Duplex, to: Socket, needsPrimary: boolean, at: string | undefined) {
    this.needsPrimary = needsPrimary;
    this.at = at;
    this.#sockets = [client, to];
    for (const socket of this.#sockets) {
      if (socket instanceof Socket) {
        socket.setTimeout(0);
        socket.setNoDelay(true);
        // A peer that is gone without a word is noticed at last.
        socket.setKeepAlive(true, 60_000);
      }
      socket.on('error', () => this.cut());
    }
    client.pipe(to);
    to.pipe(client);
    this.ended = Promise.all(this.#sockets.map(closed)).then(() => clearTimeout(this.#end));
    for (const socket of this.#sockets) socket.once('close', () => this.cut());
  }

  endBy(atMs: number): void {
    this.#end ??= setTimeout(() => this.cut(), Math.max(0, atMs - monotonicMs()));
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
}

const closed = (socket: Duplex): Promise<void> =>
  new Promise((resolve) => {
    if (socket.closed) resolve();
    else socket.once('close', () => resolve());
  });

function answerHead({ statusCode, statusMessage }: IncomingMessage, headers: readonly string[]): Buffer {
  let text = `HTTP/1.1 ${statusCode} ${statusMessage}\r\n`;
  for (let i = 0; i + 1 < headers.length; i += 2) text += `${headers[i]}: ${headers[i + 1]}\r\n`;
  return Buffer.from(`${text}\r\n`, 'latin1');
}
