import type { ClientRequest, IncomingMessage } from 'node:http';
import { parseAddress } from '../config/values.js';
import { KiteError, toKiteError } from '../errors.js';
import { monotonicMs } from '../util/clock.js';
import { answerHeaders, readNeeds } from './annotate.js';
import { type AnsweredBy, type Head, type ProxyContext, readHead } from './context.js';
import type { ReadNeeds } from './decide-read.js';
import { decide } from './decide.js';
import { sendError } from './error-answer.js';
import { endToEnd, ERROR, FORWARD, trailerPairs } from './headers.js';
import type { ProxyAnswer, ProxyRequest } from './inbound.js';
import type { PrimaryView } from './node-view.js';
import { proveForwarding } from './peer-proof.js';
import { RequestBody } from './request-body.js';
import { mayRepeat, type Outcome, send } from './upstream.js';
import { nodeChange, route } from './wait.js';

/** How often a request goes out at most, however often its connection breaks. */
const ATTEMPTS_MAX = 4;
/** After the named primary did not answer as such: how long until it is asked again, unless the node hears of a change before. */
const ASK_AGAIN_MS = 50;
/** For so long an application at the primary may believe that it is at a replica. */
const LEARNS_MS = 1000;

/** Answers one request: decides where it goes, sends it there, passes the answer on. Never throws. */
export async function serve(
  request: ProxyRequest,
  response: ProxyAnswer,
  context: ProxyContext,
  expectContinue = false,
): Promise<void> {
  const exchange = new Exchange(request, response, context, expectContinue);
  try {
    await exchange.run();
  } catch (thrown) {
    exchange.fail(toKiteError(thrown));
  }
}

class Exchange {
  readonly #request: ProxyRequest;
  readonly #response: ProxyAnswer;
  readonly #c: ProxyContext;
  readonly #expectContinue: boolean;
  readonly #body: RequestBody;
  readonly #arrivedMs = monotonicMs();
  /** The client has gone away. */
  #isGone = false;
  /** Tells that to what waits; made when something does, because most requests wait for nothing. */
  #gone: AbortController | undefined;
  /** What was sent on, and is not answered yet. */
  #up: ClientRequest | undefined;
  /** The application of this node has asked for the primary. */
  #mustForward = false;
  /** How long an application that asks for the primary, though it is there, is asked again. */
  #learnsUntilMs: number | undefined;
  #saidContinue = false;
  #attempts = 0;
  /** For the node to be what the request needs. */
  #waitedMs = 0;
  #head: Head | undefined;

  constructor(request: ProxyRequest, response: ProxyAnswer, context: ProxyContext, expectContinue: boolean) {
    this.#request = request;
    this.#response = response;
    this.#c = context;
    this.#expectContinue = expectContinue;
    this.#body = new RequestBody(request, context.settings.bufferBytes);
    // A client that goes away takes its request with it, wherever that is.
    response.once('close', () => {
      if (response.writableFinished) return;
      this.#isGone = true;
      this.#gone?.abort();
      this.#up?.destroy();
    });
  }

  get #signal(): AbortSignal {
    this.#gone ??= new AbortController();
    if (this.#isGone) this.#gone.abort();
    return this.#gone.signal;
  }

  async run(): Promise<void> {
    const head = (this.#head = readHead(this.#request, false, this.#c));
    const needs = readNeeds(this.#request.headers, this.#c.settings);
    for (;;) {
      const question = {
        class: this.#mustForward ? { ...head.class, kind: 'write' as const } : head.class,
        needs,
        arrivedMs: this.#arrivedMs,
        forwardedEpoch: head.forwardedEpoch,
      };
      const { settings, view } = this.#c;
      const now = decide({ ...question, nowMs: monotonicMs() }, settings, view.now);
      const where =
        now.kind === 'wait'
          ? await route(question, settings, view, this.#signal, (ms) => (this.#waitedMs += ms))
          : now;
      if (this.#isGone) return;
      if (where.kind === 'refuse') throw new KiteError(where.code, where.why);
      const done =
        where.kind === 'local' ? await this.#local(head, needs) : await this.#atPrimary(head, where.primary);
      if (done || this.#isGone) return;
    }
  }

  // --- at the application of this node

  /** false: it has to go elsewhere, or once more. */
  async #local(head: Head, needs: ReadNeeds | undefined): Promise<boolean> {
    const { targets, settings, view, writes } = this.#c;
    const to = targets.next();
    if (!to) {
      const untilMs = this.#arrivedMs + settings.targetWaitMs;
      if (monotonicMs() >= untilMs)
        throw new KiteError('ERR_PROXY_TARGET_DOWN', 'the application takes no connections');
      await targets.anyUp(untilMs, this.#signal);
      return false;
    }
    const send = () => this.#send(to, targets.agent, head.headers);
    const outcome = await (head.class.kind === 'write' ? writes.during(send) : send());
    if (outcome.kind === 'failed') {
      if (!outcome.sent) {
        if (this.#isGone) return true;
        this.#throwUnlessConnecting(outcome);
        targets.down(to);
        return false;
      }
      return this.#afterBreak(outcome, 'ERR_PROXY_TARGET', 'the application broke the connection off');
    }
    const { request, response } = outcome;
    if (this.#asksForPrimary(response)) {
      const isPrimary = view.now.role === 'primary';
      // What it knows of its node may be a moment old, after a hand-off.
      this.#learnsUntilMs ??= monotonicMs() + LEARNS_MS;
      const learns = isPrimary && monotonicMs() < this.#learnsUntilMs;
      if (isPrimary ? learns && this.#body.repeatable : !this.#mustForward || head.forwardedEpoch) {
        discard(request, response);
        this.#body.detach();
        // Whoever sent it here looks for the primary anew.
        if (!isPrimary && head.forwardedEpoch)
          throw new KiteError('ERR_PROXY_NOT_PRIMARY', 'this node is not the primary any more');
        if (!this.#body.repeatable)
          throw new KiteError(
            'ERR_PROXY_TOO_LARGE',
            `the application asks for the primary, and the body is larger than ${settings.bufferBytes} bytes`,
          );
        if (learns) await nodeChange(view, ASK_AGAIN_MS, this.#signal);
        else this.#mustForward = true;
        return false;
      }
    }
    const answered = {
      kind: head.class.kind,
      needs,
      headers: this.#request.headers,
      waitedMs: this.#waitedMs,
      status: response.statusCode ?? 502,
      rawHeaders: response.rawHeaders,
    };
    const added = answerHeaders(answered, view, settings, monotonicMs());
    this.#pass(outcome, 'local', added instanceof Promise ? await added : added);
    return true;
  }

  /** `kitefs-forward: primary`, or what LiteFS's applications answer: a fly-replay to an instance, where nobody but us can do that. */
  #asksForPrimary({ headers }: IncomingMessage): boolean {
    if (headers[FORWARD] === 'primary') return true;
    const replay = headers['fly-replay'];
    return (
      this.#c.settings.replay === 'off' && typeof replay === 'string' && /^\s*(instance|region)=/.test(replay)
    );
  }

  // --- at the primary

  async #atPrimary(head: Head, primary: PrimaryView): Promise<boolean> {
    const { settings, view, peers } = this.#c;
    if (this.#replays(primary)) return true;
    const to = parseAddress(primary.proxyAddress);
    if (!to) throw new KiteError('ERR_PROXY_NO_PRIMARY', `${primary.nodeId} says no address of its proxy`);
    const proof = proveForwarding(
      {
        clusterId: view.now.clusterId,
        epoch: view.now.epoch,
        from: view.now.nodeId,
        method: head.method,
        url: head.url,
      },
      head.headers,
      settings.secret,
    );
    const outcome = await this.#send(to, peers, [...head.headers, 'Kitefs-Forwarded', proof]);
    if (outcome.kind === 'failed') {
      if (!outcome.sent) {
        this.#throwUnlessConnecting(outcome);
        return await this.#askAgain(`${primary.nodeId} at ${primary.proxyAddress} does not answer`);
      }
      return this.#afterBreak(outcome, 'ERR_PROXY_PRIMARY_GONE', 'the primary broke the connection off');
    }
    const { request, response } = outcome;
    // It has not been carried out: the node says so before it sends anything on.
    if (response.headers[ERROR] === 'ERR_PROXY_NOT_PRIMARY') {
      discard(request, response);
      this.#body.detach();
      if (this.#body.repeatable) return await this.#askAgain(`${primary.nodeId} is not the primary`);
      throw new KiteError('ERR_PROXY_NO_PRIMARY', 'the primary changed while the body was sent');
    }
    this.#pass(outcome, 'primary', []);
    return true;
  }

  /** Lets Fly.io's edge send the request to the primary's Machine. */
  #replays({ instance, region }: PrimaryView): boolean {
    const { replay, replayMaxBodyBytes } = this.#c.settings;
    const to = replay === 'instance' ? instance : replay === 'region' ? region || undefined : undefined;
    // Replayed to here already: the primary has moved meanwhile, and a second replay may chase it for ever.
    const wasReplayed = this.#request.headers['fly-replay-src'] !== undefined;
    const { sizeBytes } = this.#body;
    if (replay === 'off' || to === undefined || wasReplayed || this.#attempts > 0) return false;
    if (sizeBytes === undefined || sizeBytes > replayMaxBodyBytes) return false;
    this.#count('replay', 409);
    // LiteFS answers an empty 200; where no edge takes this up, that would look like success.
    this.#response.writeHead(409, 'Conflict', ['fly-replay', `${replay}=${to}`, 'content-length', '0']);
    this.#response.end();
    return true;
  }

  async #askAgain(why: string): Promise<false> {
    if (monotonicMs() >= this.#arrivedMs + this.#c.settings.primaryWaitMs)
      throw new KiteError('ERR_PROXY_NO_PRIMARY', why);
    await nodeChange(this.#c.view, ASK_AGAIN_MS, this.#signal);
    return false;
  }

  // --- both

  async #send(
    to: { host: string; port: number },
    agent: ProxyContext['peers'],
    end: readonly string[],
  ): Promise<Outcome> {
    const { settings } = this.#c;
    const body = this.#body;
    const headers = [...end];
    const toPeer = agent === this.#c.peers;
    // What may be refused at the head, and cannot be sent twice, waits until it is wanted.
    const expect = !this.#saidContinue && (this.#expectContinue || (toPeer && body.exists && !this.#keeps));
    if (expect) headers.push('Expect', '100-continue');
    if (body.isChunked) headers.push('Transfer-Encoding', 'chunked');
    // Node would make it a chunked one otherwise.
    else if (
      !body.exists &&
      this.#request.headers['content-length'] === undefined &&
      !isBodiless(this.#head!.method)
    )
      headers.push('Content-Length', '0');
    this.#attempts++;
    return await send({
      agent,
      to,
      method: this.#head!.method,
      path: this.#head!.url,
      headers,
      body,
      maxHeaderBytes: settings.maxHeaderBytes,
      timeoutMs: settings.writeTimeoutMs,
      expectContinue: expect,
      onRequest: (up) => (this.#up = up),
      onContinue: () => this.#continue(),
      onInformation:
        this.#request.httpVersion !== '1.0' ? (status, info) => this.#inform(status, info) : undefined,
    });
  }

  get #keeps(): boolean {
    return this.#body.sizeBytes !== undefined && this.#body.sizeBytes <= this.#c.settings.bufferBytes;
  }

  #continue(): void {
    if (!this.#expectContinue || this.#saidContinue) return;
    this.#saidContinue = true;
    this.#response.writeContinue();
  }

  #inform(status: number, headers: IncomingMessage['headers']): void {
    const response = this.#response;
    if (response.headersSent) return;
    if (status === 102) response.writeProcessing();
    if (status !== 103 || headers.link === undefined) return;
    try {
      response.writeEarlyHints(headers as Record<string, string>);
    } catch {
      // A hint that Node does not take for one is only a hint.
    }
  }

  /** A request that may have been carried out goes out once more only when that changes nothing. */
  #afterBreak(
    outcome: Extract<Outcome, { kind: 'failed' }>,
    code: 'ERR_PROXY_TARGET' | 'ERR_PROXY_PRIMARY_GONE',
    what: string,
  ): false {
    if (outcome.timedOut) throw new KiteError('ERR_PROXY_TIMEOUT', 'no answer within proxy.write-timeout');
    const isWorthIt = outcome.reused || code === 'ERR_PROXY_PRIMARY_GONE';
    const { method, headers } = this.#request;
    const inTime = monotonicMs() < this.#arrivedMs + this.#c.settings.primaryWaitMs;
    if (
      isWorthIt &&
      inTime &&
      this.#attempts < ATTEMPTS_MAX &&
      this.#body.repeatable &&
      mayRepeat(method ?? '', headers)
    )
      return false;
    throw new KiteError(code, `${what}: ${outcome.error.message}`, { cause: outcome.error });
  }

  /** What Node refuses to send is the client's mistake, and no reason to think that nobody listens. */
  #throwUnlessConnecting({ error, timedOut }: Extract<Outcome, { kind: 'failed' }>): void {
    if (timedOut) throw new KiteError('ERR_PROXY_TIMEOUT', 'no connection within proxy.write-timeout');
    if (error.code?.startsWith('ERR_') === true)
      throw new KiteError('ERR_PROXY_REQUEST', error.message, { cause: error });
  }

  #pass(
    { request, response: from }: Extract<Outcome, { kind: 'answered' }>,
    by: AnsweredBy,
    added: readonly string[],
  ): void {
    const response = this.#response;
    const status = from.statusCode ?? 502;
    this.#count(by, status);
    if (this.#isGone) {
      request.destroy();
      return;
    }
    const headers = endToEnd(from.rawHeaders);
    headers.push(...added);
    const code = by === 'primary' ? from.headers[ERROR] : undefined;
    if (typeof code === 'string') headers.push('Kitefs-Error', code);
    response.sendDate = false;
    // What is left of the body would be read as the next request, or keep the connection for ever.
    if (!this.#body.complete || this.#c.draining()) response.shouldKeepAlive = false;
    try {
      response.writeHead(status, from.statusMessage ?? '', headers);
    } catch (error) {
      request.destroy();
      throw new KiteError('ERR_PROXY_TARGET', `its answer cannot be passed on: ${(error as Error).message}`);
    }
    let whole = false;
    // By hand: most answers are one piece, and `pipe` would set up and take down more than that costs.
    from.on('data', (chunk: Buffer) => {
      if (!response.write(chunk)) from.pause();
    });
    response.on('drain', () => from.resume());
    from.once('end', () => {
      whole = true;
      const trailers = trailerPairs(from.rawTrailers);
      if (trailers.length > 0) response.addTrailers(trailers);
      response.end();
    });
    // Half an answer must not look like a whole one.
    from.once('close', () => whole || response.destroy());
    from.on('error', () => response.destroy());
    // An answer that comes bit by bit shows its head at once; of others head and body go in one packet.
    setImmediate(() => response.destroyed || response.writableEnded || response.flushHeaders());
  }

  fail(error: KiteError): void {
    if (this.#isGone) return;
    if (error.row.http >= 500)
      this.#c.log('debug', `${this.#request.method} ${this.#request.url}: ${error.describe()}`);
    this.#count('proxy', error.row.http);
    sendError(this.#request, this.#response, error, this.#c.settings);
  }

  #count(by: AnsweredBy, status: number): void {
    const kind = this.#head?.class.kind ?? 'read';
    this.#c.count(kind, by, status);
    if (this.#c.settings.debug)
      this.#c.log(
        'debug',
        `${this.#request.method} ${this.#request.url} ${status}, a ${kind}, answered by ${by}`,
      );
  }
}

/** Node sends no body with these unless told to. */
const isBodiless = (method: string): boolean =>
  ['GET', 'HEAD', 'OPTIONS', 'DELETE', 'TRACE', 'CONNECT'].includes(method);

/** An answer that nobody gets; its connection is given up rather than read to an end that may never come. */
function discard(request: ClientRequest, response: IncomingMessage): void {
  response.on('error', () => undefined);
  request.on('error', () => undefined);
  request.destroy();
}
