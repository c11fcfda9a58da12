import { setTimeout as sleep } from 'node:timers/promises';

import { status, type ClientDuplexStream, type ServiceError } from '@grpc/grpc-js';

import { ERRORS, type ErrorCode, KiteError, toKiteError } from '../errors.js';
import { monotonicMs } from '../util/clock.js';
import { checkEpochClaim } from './claims.js';
import type { ReplicationClientOptions } from './client.js';
import { DatabaseReceiver, type ReceiverStream } from './database-receiver.js';
import { bytesOf, inChunks } from './database-sender.js';
import type { Freshness } from './freshness.js';
import type { Position } from './generated/kitefs/v1/Position.js';
import type { Challenge__Output } from './generated/kitefs/v1/Challenge.js';
import type { Envelope, Envelope__Output } from './generated/kitefs/v1/Envelope.js';
import type { ProbeAnswer__Output } from './generated/kitefs/v1/ProbeAnswer.js';
import type { HaltAnswer__Output } from './generated/kitefs/v1/HaltAnswer.js';
import type { Refusal__Output } from './generated/kitefs/v1/Refusal.js';
import type { ToPrimary } from './generated/kitefs/v1/ToPrimary.js';
import type { ToReplica__Output } from './generated/kitefs/v1/ToReplica.js';
import { agree, peerClient } from './peer-call.js';
import { type EnvelopeMac, makeNonce } from './peer-secret.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import type { PrimaryHint } from './store.js';
import {
  DEFAULT_HEARTBEAT_MS,
  DEFAULT_SILENCE_MS,
  PROTOCOL,
  type Replication,
  checkedName,
  decodeToReplica,
  encodeToPrimary,
  fromWirePosition,
  toWireFile,
  toWirePosition,
} from './wire.js';

/** Longest wait for the primary's answer to a goodbye. */
const GOODBYE_MS = 200;
const DRAIN_POLL_MS = 5;
/** Acknowledgements for which nobody waits go out together: two messages less for each transaction at 500 commits/s. */
const UNAWAITED_ACK_MS = 5;

/** What the primary says about a database that this node writes, or wants to. */
export interface HaltAnswer {
  readonly position: EpochPosition | undefined;
  readonly ttlMs: number;
}

interface HaltRequest {
  resolve(answer: HaltAnswer): void;
  reject(error: KiteError): void;
}

/** What a session tells its client. */
export interface PrimarySessionHost {
  readonly options: ReplicationClientOptions;
  readonly freshness: Freshness;
  connected(primaryNodeId: string, epoch: bigint): void;
  /** Called once, when nothing of this session uses the store any more. */
  ended(error: KiteError, primary: PrimaryHint | undefined): void;
}

/** One stream to the primary, seen from the replica. */
export class PrimarySession implements ReceiverStream {
  readonly #host: PrimarySessionHost;
  readonly #client: InstanceType<typeof Replication>;
  readonly #call: ClientDuplexStream<Envelope, Envelope__Output>;
  /** The gRPC call has ended on both sides. */
  readonly #over: Promise<unknown>;
  readonly #receivers = new Map<string, DatabaseReceiver>();
  readonly #unacknowledged = new Set<DatabaseReceiver>();
  readonly #nonce = makeNonce();
  readonly #heartbeat: NodeJS.Timeout;
  readonly #silentBeatsMax: number;
  #state: 'hello' | 'streaming' | 'ended' = 'hello';
  #epoch = 0n;
  #macUp: EnvelopeMac | undefined;
  #macDown: EnvelopeMac | undefined;
  #silentBeats = 0;
  #probeId = 0;
  /** The question for the primary's role that is under way. */
  #handOff = { id: 0, refused: (_why: KiteError): void => undefined };
  /** Requests about HALT that wait for their answer. */
  readonly #haltRequests = new Map<number, HaltRequest>();
  #haltRequestId = 0;
  #unawaited: NodeJS.Timeout | undefined;
  #unsubscribe: (() => void) | undefined;

  constructor(host: PrimarySessionHost) {
    this.#host = host;
    const { primaryAddress, store } = host.options;
    const { heartbeatMs = DEFAULT_HEARTBEAT_MS, silenceMs = DEFAULT_SILENCE_MS } = host.options;
    this.#silentBeatsMax = Math.ceil(silenceMs / heartbeatMs);
    this.#client = peerClient(primaryAddress);
    this.#call = this.#client.Replicate();
    this.#heartbeat = setInterval(() => this.#beat(), heartbeatMs);
    this.#call.on('data', (envelope: Envelope__Output) => this.#receive(envelope));
    this.#call.on('error', (error: ServiceError) => this.end(fromServiceError(error, primaryAddress)));
    this.#call.on('end', () => this.end(disconnected()));
    this.#over = new Promise((resolve) => {
      this.#call.on('status', resolve);
    });
    this.#call.on('drain', () => this.#flush());
    this.#send({
      hello: {
        protocol: PROTOCOL,
        clusterId: store.clusterId,
        nodeId: store.nodeId,
        nonce: this.#nonce,
      },
    });
  }

  get streaming(): boolean {
    return this.#state === 'streaming';
  }

  /** Ends the stream; the primary hears a goodbye with our epoch. */
  end(error: KiteError, primary?: PrimaryHint): void {
    if (this.#state === 'ended') return;
    if (this.#macUp !== undefined) this.#send({ goodbye: {} });
    this.#state = 'ended';
    clearInterval(this.#heartbeat);
    clearTimeout(this.#unawaited);
    this.#unsubscribe?.();
    // Whether the primary did it is not known.
    for (const request of this.#haltRequests.values()) request.reject(error);
    this.#haltRequests.clear();
    this.#call.end();
    void this.#close(error, primary);
  }

  async #close(reason: KiteError, primary: PrimaryHint | undefined): Promise<void> {
    for (const receiver of this.#receivers.values()) receiver.stop();
    for (const receiver of this.#receivers.values()) await receiver.close();
    // The primary ends the stream when it has the goodbye, which tells it our epoch; one that doesn't is cut off.
    if (this.#macUp !== undefined) await Promise.race([this.#over, sleep(GOODBYE_MS)]);
    this.#call.cancel();
    this.#client.close();
    this.#host.ended(reason, primary);
  }

  /**
   * Asks the primary to hand over to this node. With success the stream ends and the lease names this node; `refused`
   * is called with the reason when it does not. A stream that ends otherwise leaves the question open.
   */
  requestHandOff(waitMs: number, refused: (why: KiteError) => void): void {
    if (!this.streaming) return refused(disconnected());
    this.#handOff = { id: this.#handOff.id + 1, refused };
    this.#send({ handOff: { id: this.#handOff.id, waitMs } });
  }

  /** Asks for HALT on a database, or to hold on what is held. Rejects with why not. */
  halt(name: string, id: number, how: { waitMs: number } | 'renew'): Promise<HaltAnswer> {
    return this.#request((request) => {
      const more = how === 'renew' ? { renew: true } : how;
      this.#send({ halt: { request, database: name, id: String(id), ...more } });
    });
  }

  /** Sends a transaction of ours for the primary to commit; resolves with where the primary then is. */
  haltWrite(name: string, id: number, file: LogFile): Promise<HaltAnswer> {
    return this.#request((request) => void this.#sendHaltWrite(request, name, id, file));
  }

  haltEnd(name: string, id: number): Promise<HaltAnswer> {
    return this.#request((request) => {
      this.#send({ haltEnd: { request, database: name, id: String(id) } });
    });
  }

  #request(send: (request: number) => void): Promise<HaltAnswer> {
    if (!this.streaming) return Promise.reject(disconnected());
    const request = ++this.#haltRequestId;
    return new Promise((resolve, reject) => {
      this.#haltRequests.set(request, { resolve, reject });
      send(request);
    });
  }

  async #sendHaltWrite(request: number, name: string, id: number, file: LogFile): Promise<void> {
    const head = { request, database: name, id: String(id) };
    try {
      await this.send({ haltWrite: { ...head, file: toWireFile(name, file), last: false } });
      for await (const data of inChunks(bytesOf(this.store, file))) {
        await this.send({ haltWrite: { ...head, data, last: false } });
      }
      await this.send({ haltWrite: { ...head, last: true } });
    } catch (thrown) {
      // The piece that is missing keeps the primary from committing anything; HALT ends.
      this.#haltRequests.get(request)?.reject(toKiteError(thrown));
      this.#haltRequests.delete(request);
    }
  }

  #haltAnswered({ request, position, ttlMs, code, text }: HaltAnswer__Output): void {
    const waiting = this.#haltRequests.get(request);
    this.#haltRequests.delete(request);
    if (code !== '') return waiting?.reject(new KiteError(knownCode(code), text));
    waiting?.resolve({ position: position ? fromWirePosition(position) : undefined, ttlMs });
  }

  /** The database is no longer what its log says: the primary has to send it otherwise than from its log. */
  resync(name: string): void {
    if (this.streaming) this.#receiver(name).beginAnew();
  }

  // For the receivers

  get store() {
    return this.#host.options.store;
  }

  get epoch(): bigint {
    return this.#epoch;
  }

  changed(receiver: DatabaseReceiver, awaited: boolean): void {
    this.#unacknowledged.add(receiver);
    if (awaited) this.#flush();
    else this.#unawaited ??= setTimeout(() => this.#flush(), UNAWAITED_ACK_MS);
  }

  failed(receiver: DatabaseReceiver, error: KiteError, retryMs: number): void {
    const { name, attempt } = receiver;
    this.#send({ failed: { database: name, code: error.code, text: error.message, attempt } });
    this.#host.options.onEvent?.({ kind: 'database-failed', name, error, retryMs });
    // Not this database's trouble: the whole stream is of the past.
    if (error.code === 'ERR_REPLICATION_EPOCH') this.end(error);
  }

  restart(receiver: DatabaseReceiver): void {
    const { name, attempt } = receiver;
    this.#send({ restart: this.#position(name, attempt) });
  }

  /** Sends page checksums; resolves when the socket has room for more. */
  async send(message: Omit<ToPrimary, 'epoch'>): Promise<void> {
    this.#send(message);
    // The stream may end instead of draining, and then does not wait here.
    while (this.#state !== 'ended' && this.#call.writableNeedDrain) await sleep(DRAIN_POLL_MS);
  }

  dropped(name: string): void {
    this.#host.freshness.dropped(name);
  }

  // What arrives

  #receive(envelope: Envelope__Output): void {
    if (this.#state === 'ended') return;
    this.#silentBeats = 0;
    try {
      const message = decodeToReplica(envelope.body);
      // Nothing is proved yet, and a refusal changes nothing but the pause before the next attempt.
      if (this.#macDown === undefined && message.refusal) return this.#refused(message.refusal);
      if (this.#state === 'hello' && message.challenge) this.#agree(message.challenge);
      if (this.#macDown === undefined) throw unexpected(message);
      this.#macDown.check(envelope.body, envelope.mac);
      if (message.refusal) return this.#refused(message.refusal);
      this.#checkEpoch(BigInt(message.epoch));
      if (message.challenge) this.#start(message.challenge);
      else this.#handle(message);
    } catch (thrown) {
      this.end(toKiteError(thrown));
    }
  }

  #agree(challenge: Challenge__Output): void {
    const { store, secret, primaryAddress: address } = this.#host.options;
    const { clusterId, nodeId } = store;
    const macs = agree(challenge, { clusterId, nodeId, secret, nonce: this.#nonce, address });
    if (this.#macDown !== undefined) {
      throw new KiteError('ERR_REPLICATION_MESSAGE', 'The primary sent a second challenge');
    }
    this.#macUp = macs.up;
    this.#macDown = macs.down;
  }

  #checkEpoch(theirs: bigint): void {
    const ours = this.store.epoch();
    if (theirs < ours) {
      // The goodbye that follows tells them our epoch.
      throw new KiteError(
        'ERR_REPLICATION_EPOCH',
        `${this.#host.options.primaryAddress} sends under epoch ${theirs}, this node knows ${ours}`,
      );
    }
    checkEpochClaim(theirs, ours, this.#host.options.primaryAddress);
    if (theirs > ours) this.#host.options.onHigherEpoch?.(theirs);
    if (this.streaming && theirs !== this.#epoch) {
      throw new KiteError('ERR_REPLICATION_MESSAGE', 'The epoch changed within the stream');
    }
    this.#epoch = theirs;
  }

  #start(challenge: Challenge__Output): void {
    this.#state = 'streaming';
    this.#host.freshness.streamStarted();
    this.#unsubscribe = this.store.subscribe((change) => {
      if (change.kind === 'applied') this.changed(this.#receiver(change.name), false);
    });
    const positions = this.store.announced().map((name) => this.#position(name, 0));
    this.#send({ start: { positions } });
    for (const name of this.store.databases()) this.#receiver(name).announce();
    this.#probe();
    this.#host.connected(challenge.nodeId, this.#epoch);
  }

  #position(name: string, attempt: number): Position {
    const resync = this.store.needsResync(name);
    return resync
      ? toWirePosition(name, resync.at, attempt, true)
      : toWirePosition(name, this.store.position(name), attempt);
  }

  #handle(message: ToReplica__Output): void {
    switch (message.message) {
      case 'files':
        for (const file of message.files!.files) this.#receiver(file.database).file(file);
        return;
      case 'chunk':
        return this.#receiver(message.chunk!.database).chunk(message.chunk!);
      case 'databases': {
        const theirs = new Set(message.databases!.names);
        for (const name of this.store.databases()) {
          if (!theirs.has(name)) this.#receiver(name).drop();
        }
        return;
      }
      case 'dropped':
        return this.#receiver(message.dropped!.database).drop();
      case 'checksumsWanted':
        return this.#receiver(message.checksumsWanted!.database).checksumsWanted(message.checksumsWanted!);
      case 'failed':
        return this.#receiver(message.failed!.database).primaryFailed(message.failed!);
      case 'probe':
        return this.#send({ probeAnswer: { id: message.probe!.id } });
      case 'probeAnswer':
        return this.#answered(message.probeAnswer!);
      case 'goodbye':
        return this.end(disconnected());
      case 'handOffRefused': {
        const { id, code, text } = message.handOffRefused!;
        if (id === this.#handOff.id) this.#handOff.refused(new KiteError(knownCode(code), text));
        return;
      }
      case 'haltAnswer':
        return this.#haltAnswered(message.haltAnswer!);
      default:
        throw unexpected(message);
    }
  }

  #answered(answer: ProbeAnswer__Output): void {
    const changed = answer.positions.flatMap((wire) => {
      const at = fromWirePosition(wire);
      return at === undefined ? [] : [[wire.database, at] as const];
    });
    this.#host.freshness.answered(answer.id, answer.leaseValid, changed);
    this.#host.options.onEvent?.({ kind: 'fresher' });
  }

  #refused(refusal: Refusal__Output): void {
    this.end(
      new KiteError(knownCode(refusal.code), `${this.#host.options.primaryAddress} refuses: ${refusal.text}`),
      refusal.primary ?? undefined,
    );
  }

  #receiver(name: string): DatabaseReceiver {
    let receiver = this.#receivers.get(name);
    if (receiver === undefined) {
      receiver = new DatabaseReceiver(checkedName(name), this);
      this.#receivers.set(name, receiver);
    }
    return receiver;
  }

  // What goes out

  #beat(): void {
    // Beats are counted, not time: a pause of this process is no silence of the peer.
    if (++this.#silentBeats > this.#silentBeatsMax) {
      const { primaryAddress } = this.#host.options;
      return this.end(new KiteError('ERR_REPLICATION_SILENT', `${primaryAddress} says nothing`));
    }
    if (this.streaming) this.#probe();
  }

  #probe(): void {
    this.#probeId++;
    this.#host.freshness.probeSent(this.#probeId, monotonicMs());
    this.#send({ probe: { id: this.#probeId } });
  }

  #flush(): void {
    clearTimeout(this.#unawaited);
    this.#unawaited = undefined;
    // While the primary does not read they wait here, one per database; 'drain' sends them.
    if (this.#state === 'ended' || this.#call.writableNeedDrain) return;
    for (const receiver of this.#unacknowledged) this.#send({ ack: receiver.acknowledgement() });
    this.#unacknowledged.clear();
  }

  #send(message: Omit<ToPrimary, 'epoch'>): void {
    if (this.#state === 'ended') return;
    const body = encodeToPrimary(this.store.epoch(), message);
    this.#call.write({ body, mac: this.#macUp?.next(body) ?? Buffer.alloc(0) });
  }
}

/** The code that a peer sent, if this version has it too. */
const knownCode = (code: string): ErrorCode =>
  Object.hasOwn(ERRORS, code) ? (code as ErrorCode) : 'ERR_REPLICATION_DISCONNECTED';

const disconnected = (): KiteError =>
  new KiteError('ERR_REPLICATION_DISCONNECTED', 'The primary has ended the stream');

const unexpected = (message: ToReplica__Output): KiteError =>
  new KiteError('ERR_REPLICATION_MESSAGE', `The primary sent ${message.message ?? 'nothing'} out of turn`);

function fromServiceError(error: ServiceError, address: string): KiteError {
  const codes: Partial<Record<status, ErrorCode>> = {
    [status.UNAVAILABLE]: 'ERR_REPLICATION_UNREACHABLE',
    [status.RESOURCE_EXHAUSTED]: 'ERR_REPLICATION_MESSAGE_SIZE',
    [status.UNIMPLEMENTED]: 'ERR_REPLICATION_VERSION',
  };
  const code = codes[error.code] ?? 'ERR_REPLICATION_DISCONNECTED';
  return new KiteError(code, `The stream from ${address} ended: ${error.details}`, { cause: error });
}
