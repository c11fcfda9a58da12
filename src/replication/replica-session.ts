import type { ServerDuplexStream } from '@grpc/grpc-js';

import { KiteError, toKiteError } from '../errors.js';
import type { EpochPosition } from '../store/types.js';
import { monotonicMs } from '../util/clock.js';
import { checkEpochClaim, checkPositionClaim } from './claims.js';
import { bytesOf, DatabaseSender, inChunks, type SenderStream } from './database-sender.js';
import type { Ack__Output } from './generated/kitefs/v1/Ack.js';
import type { Envelope, Envelope__Output } from './generated/kitefs/v1/Envelope.js';
import type { HaltWrite__Output } from './generated/kitefs/v1/HaltWrite.js';
import type { Hello__Output } from './generated/kitefs/v1/Hello.js';
import type { Position__Output } from './generated/kitefs/v1/Position.js';
import type { ToPrimary__Output } from './generated/kitefs/v1/ToPrimary.js';
import type { ToReplica } from './generated/kitefs/v1/ToReplica.js';
import { EnvelopeMac, makeNonce } from './peer-secret.js';
import { Permits } from './permits.js';
import type {
  Acknowledged,
  HaltHost,
  IncomingTransaction,
  ReplicaStatus,
  ReplicationServerOptions,
} from './server.js';
import type { StoreChange } from './store.js';
import {
  DEFAULT_HEARTBEAT_MS,
  DEFAULT_SILENCE_MS,
  PROTOCOL,
  checkedName,
  decodeToPrimary,
  encodeToReplica,
  fromWireFile,
  fromWirePosition,
  toWireFile,
  toWirePosition,
} from './wire.js';

/** Messages with file bytes that may wait for the socket: with 256 KiB each, 2 MiB per replica. */
const MESSAGES_IN_FLIGHT = 8;
/** File bytes that a replica may have taken from the socket and not yet written, all databases together. */
const SESSION_WINDOW_BYTES = 32 * 1024 * 1024;
/** Answers that may wait for the socket; a replica that asks and never reads gets no more. */
const ANSWERS_IN_FLIGHT = 16;

/** What a session tells its server. */
export interface SessionHost {
  readonly options: ReplicationServerOptions;
  /** The replica has proved itself; a former stream of the same node ends now. */
  started(session: ReplicaSession): void;
  ended(session: ReplicaSession, error: KiteError | undefined): void;
}

/** One stream of one replica, seen from the primary. */
export class ReplicaSession implements SenderStream {
  readonly #call: ServerDuplexStream<Envelope__Output, Envelope>;
  readonly #host: SessionHost;
  readonly #permits = new Permits(MESSAGES_IN_FLIGHT, () => this.#inFlightBytes < SESSION_WINDOW_BYTES);
  readonly #senders = new Map<string, DatabaseSender>();
  readonly #acknowledged = new Map<string, Acknowledged>();
  /** The highest TXID that the replica may say it has of a database; undefined: any (dropped, or written under HALT, in this stream). */
  readonly #furthest = new Map<string, bigint | undefined>();
  /** Positions as last answered, `<txid>/<checksum>` of each database: an answer holds only what changed. */
  readonly #answered = new Map<string, string>();
  readonly #connectedAtMs = monotonicMs();
  readonly #heartbeat: NodeJS.Timeout;
  readonly #silentBeatsMax: number;
  #state: 'hello' | 'start' | 'streaming' | 'pulled' | 'ended' = 'hello';
  #wasStreaming = false;
  #epoch = 0n;
  #nodeId = '';
  #macUp: EnvelopeMac | undefined;
  #macDown: EnvelopeMac | undefined;
  #silentBeats = 0;
  /** File bytes sent that the replica has not taken yet. */
  #inFlightBytes = 0;
  #answersInFlight = 0;
  #probe = { id: 0, sentAtMs: 0 };
  #roundTripMs: number | undefined;
  #unsubscribe: (() => void) | undefined;
  /** Transactions of the replica that come in (HALT), by request. */
  readonly #transactions = new Map<number, IncomingTransaction>();

  constructor(call: ServerDuplexStream<Envelope__Output, Envelope>, host: SessionHost) {
    this.#call = call;
    this.#host = host;
    const { heartbeatMs = DEFAULT_HEARTBEAT_MS, silenceMs = DEFAULT_SILENCE_MS } = host.options;
    this.#silentBeatsMax = Math.ceil(silenceMs / heartbeatMs);
    this.#heartbeat = setInterval(() => this.#beat(), heartbeatMs);
    call.on('data', (envelope: Envelope__Output) => this.#receive(envelope));
    call.on('end', () => this.end());
    call.on('cancelled', () => this.end());
    // Without a listener a reset connection would end the process.
    call.on('error', (cause: Error) => {
      this.end(new KiteError('ERR_REPLICATION_DISCONNECTED', cause.message, { cause }));
    });
  }

  get nodeId(): string {
    return this.#nodeId;
  }

  get peer(): string {
    return this.#call.getPeer();
  }

  get streaming(): boolean {
    return this.#state === 'streaming';
  }

  /** Whether it was streaming when it ended. */
  get wasStreaming(): boolean {
    return this.#wasStreaming;
  }

  get caughtUp(): boolean {
    return [...this.#senders.values()].every((sender) => sender.caughtUp);
  }

  status(): ReplicaStatus {
    return {
      nodeId: this.#nodeId,
      peer: this.peer,
      connectedMs: monotonicMs() - this.#connectedAtMs,
      roundTripMs: this.#roundTripMs,
      databases: this.#acknowledged,
    };
  }

  /** Ends the stream; the replica is told why. */
  end(error?: KiteError): void {
    if (this.#state === 'ended') return;
    this.#control(error === undefined ? { goodbye: {} } : { refusal: this.#refusal(error) });
    this.#wasStreaming = this.streaming;
    this.#state = 'ended';
    clearInterval(this.#heartbeat);
    this.#unsubscribe?.();
    // Senders first: a sender that is refused a permit must know that it is over.
    for (const sender of this.#senders.values()) sender.close();
    this.#permits.close();
    for (const transaction of this.#transactions.values()) transaction.abort();
    this.#transactions.clear();
    this.#call.end();
    this.#host.ended(this, error);
  }

  // For the senders

  get store() {
    return this.#host.options.store;
  }

  durable(name: string): boolean {
    return this.#host.options.durable?.(name) ?? false;
  }

  awaited(name: string): boolean {
    return this.#host.options.awaited?.(name) ?? false;
  }

  acquire(): boolean | Promise<boolean> {
    return this.#permits.acquire();
  }

  release(): void {
    this.#permits.release();
  }

  writeBytes(message: Omit<ToReplica, 'epoch'>, sizeBytes: number): void {
    // Asked before every message: once another node may be primary, nothing more may come from here.
    const role = this.#host.options.role();
    if (!role.primary || role.epoch !== this.#epoch) {
      this.#permits.release();
      return this.end(notPrimary());
    }
    this.#inFlightBytes += sizeBytes;
    this.#write(message, () => this.#permits.release());
  }

  ask(message: Omit<ToReplica, 'epoch'>): void {
    this.#control(message);
  }

  replaces(name: string, replacement: 'difference' | 'snapshot', reason: string): void {
    const { onEvent } = this.#host.options;
    onEvent?.({ kind: 'replaced', nodeId: this.#nodeId, name, replacement, reason });
  }

  failed(name: string, error: KiteError, attempt: number): void {
    this.#control({ failed: { database: name, code: error.code, text: error.message, attempt } });
    this.#databaseFailed(name, error.message);
  }

  // What arrives

  #receive(envelope: Envelope__Output): void {
    if (this.#state === 'ended') return;
    this.#silentBeats = 0;
    this.#host.options.onBytes?.('received', envelope.body.length);
    try {
      if (this.#state === 'hello') return this.#hello(decodeToPrimary(envelope.body));
      // The first envelope that passes is the replica's proof.
      this.#macUp?.check(envelope.body, envelope.mac);
      const message = decodeToPrimary(envelope.body);
      if (this.#state === 'start' && message.pull) return void this.#sendLog(message);
      this.#checkEpoch(message);
      if (this.#state === 'start') this.#start(message);
      else this.#handle(message);
    } catch (thrown) {
      this.end(toKiteError(thrown));
    }
  }

  #hello(message: ToPrimary__Output): void {
    const hello = message.hello;
    if (!hello) throw unexpected(message);
    this.#checkHello(hello);
    this.#nodeId = hello.nodeId;
    const { store, secret, role } = this.#host.options;
    const nonce = makeNonce();
    const transcript = {
      protocol: PROTOCOL,
      clusterId: store.clusterId,
      replicaId: hello.nodeId,
      primaryId: store.nodeId,
      replicaNonce: hello.nonce,
      primaryNonce: nonce,
    };
    this.#macUp = new EnvelopeMac(secret, transcript, 'up');
    this.#macDown = new EnvelopeMac(secret, transcript, 'down');
    const now = role();
    this.#epoch = now.primary ? now.epoch : store.epoch();
    this.#state = 'start';
    this.#control({
      challenge: { protocol: PROTOCOL, clusterId: store.clusterId, nodeId: store.nodeId, nonce },
    });
  }

  #checkHello(hello: Hello__Output): void {
    const { store } = this.#host.options;
    if (hello.protocol !== PROTOCOL) {
      throw new KiteError(
        'ERR_REPLICATION_VERSION',
        `Node ${store.nodeId} speaks protocol ${PROTOCOL}, the replica ${hello.protocol}`,
      );
    }
    if (hello.clusterId !== store.clusterId) {
      throw new KiteError(
        'ERR_REPLICATION_CLUSTER',
        `Node ${store.nodeId} is of cluster ${store.clusterId}, the replica of ${hello.clusterId}`,
      );
    }
    if (hello.nodeId === store.nodeId) {
      throw new KiteError('ERR_REPLICATION_NODE_ID', `Two nodes have the id ${store.nodeId}`);
    }
  }

  #checkEpoch(message: ToPrimary__Output): void {
    const theirs = BigInt(message.epoch);
    if (theirs <= this.#epoch) return;
    checkEpochClaim(theirs, this.#epoch, this.#nodeId);
    // Somebody else became primary: whatever this node would send is of the past.
    this.#host.options.onHigherEpoch?.(theirs);
    throw new KiteError(
      'ERR_REPLICATION_EPOCH',
      `Node ${this.store.nodeId} is at epoch ${this.#epoch}, the replica knows ${theirs}`,
    );
  }

  #start(message: ToPrimary__Output): void {
    const start = message.start;
    if (!start) throw unexpected(message);
    if (!this.#host.options.role().primary) throw notPrimary();
    this.#state = 'streaming';
    this.#host.started(this);
    // Subscribed before the log is read, so that nothing falls between the two.
    this.#unsubscribe = this.store.subscribe((change) => this.#changed(change));
    const names = this.store.databases();
    this.#control({ databases: { names: [...names] } });
    for (const position of start.positions) {
      const { database, attempt, resync } = position;
      const name = checkedName(database);
      this.#addSender(name, this.#announced(name, position), attempt, resync);
    }
    for (const name of names) this.#sender(name);
  }

  /** Everything that follows the positions of a node that has won the lease, whatever this node's role is. */
  async #sendLog(message: ToPrimary__Output): Promise<void> {
    this.#state = 'pulled';
    const { store } = this;
    const epoch = BigInt(message.epoch);
    try {
      checkEpochClaim(epoch, store.epoch(), this.#nodeId);
      if (epoch > store.epoch()) this.#host.options.onHigherEpoch?.(epoch);
      for (const at of message.pull!.positions) {
        await this.#sendLogOf(checkedName(at.database), fromWirePosition(at) ?? NOTHING);
      }
      await this.#taken({ pulled: {} });
      this.end();
    } catch (thrown) {
      this.end(toKiteError(thrown));
    }
  }

  async #sendLogOf(name: string, after: EpochPosition): Promise<void> {
    const { store } = this;
    const hold = store.hold(name, after.txid);
    try {
      for (let at = after; ;) {
        const files = store.filesAfter(name, at) ?? [];
        if (files.length === 0) return;
        for (const file of files) {
          await this.#taken({ files: { files: [{ ...toWireFile(name, file), last: false }] } });
          for await (const data of inChunks(bytesOf(store, file))) {
            await this.#taken({ chunk: { database: name, data, last: false } });
          }
          await this.#taken({ chunk: { database: name, last: true } });
          at = { txid: file.maxTxid, checksum: file.postApplyChecksum, epoch: file.epoch };
        }
      }
    } finally {
      hold.release();
    }
  }

  /** Resolves when the socket has taken the message, which bounds what waits in memory. */
  #taken(message: Omit<ToReplica, 'epoch'>): Promise<void> {
    if (this.#state === 'ended') {
      throw new KiteError('ERR_REPLICATION_DISCONNECTED', 'The node that pulled is gone');
    }
    return new Promise((resolve) => {
      this.#write(message, () => resolve());
    });
  }

  #handle(message: ToPrimary__Output): void {
    switch (message.message) {
      case 'ack':
        // A replica that does not know this epoch has not promised to refuse the primaries before it: its word counts
        // for nothing.
        if (BigInt(message.epoch) < this.#epoch) {
          const text = `An acknowledgement under epoch ${message.epoch}, the primary is at ${this.#epoch}`;
          throw new KiteError('ERR_REPLICATION_EPOCH', text);
        }
        return this.#acknowledge(message.ack!);
      case 'probe':
        return this.#answer(message.probe!.id);
      case 'probeAnswer':
        if (message.probeAnswer!.id === this.#probe.id) {
          this.#roundTripMs = monotonicMs() - this.#probe.sentAtMs;
        }
        return;
      case 'restart': {
        const { database, attempt, resync } = message.restart!;
        const name = checkedName(database);
        return this.#sender(name).restart(this.#announced(name, message.restart!), attempt, resync);
      }
      case 'pageChecksums':
        return this.#senders.get(message.pageChecksums!.database)?.checksums(message.pageChecksums!);
      case 'failed': {
        const { database, code, text } = message.failed!;
        this.#senders.get(database)?.refused(code, text);
        return this.#databaseFailed(database, text);
      }
      case 'goodbye':
        return this.end();
      case 'handOff':
        return void this.#handOff(message.handOff!.id, message.handOff!.waitMs);
      case 'halt': {
        const { request, waitMs, renew, database } = message.halt!;
        // It writes into its own log before this node has it.
        this.#furthest.set(database, undefined);
        return void this.#answerHalt(request, (host) => {
          const of = this.#haltOf(message.halt!);
          return renew ? host.renew(of) : host.acquire(of, waitMs);
        });
      }
      case 'haltWrite':
        return this.#haltWrite(message.haltWrite!, BigInt(message.epoch));
      case 'haltEnd': {
        const { request } = message.haltEnd!;
        return void this.#answerHalt(request, (host) => host.release(this.#haltOf(message.haltEnd!)));
      }
      default:
        throw unexpected(message);
    }
  }

  /** Where a replica says that it is. Any history may be: what does not follow ours gets the pages that differ. */
  #announced(name: string, wire: Position__Output): EpochPosition | undefined {
    const at = fromWirePosition(wire);
    checkPositionClaim(at, { who: this.#nodeId, name, epoch: this.#epoch, end: undefined });
    this.#mayHave(name, at?.txid ?? 0n);
    return at;
  }

  #mayHave(name: string, txid: bigint): bigint | undefined {
    const before = this.#furthest.has(name) ? this.#furthest.get(name) : 0n;
    const furthest = before === undefined || before > txid ? before : txid;
    this.#furthest.set(name, furthest);
    return furthest;
  }

  #acknowledge(ack: Ack__Output): void {
    const sender = this.#senders.get(ack.database);
    if (sender === undefined) return;
    // What it announced itself, and what it can have been sent: nothing is sent that is not in the log here.
    const end = this.#mayHave(ack.database, this.store.position(ack.database)?.txid ?? 0n);
    const limits = { who: this.#nodeId, name: ack.database, epoch: this.#epoch, end };
    for (const wire of [ack.received, ack.durable, ack.applied]) {
      if (wire) checkPositionClaim(fromWirePosition(wire), limits);
    }
    this.#inFlightBytes -= sender.consumed(Number(ack.consumedBytes));
    this.#permits.kick();
    const acknowledged: Acknowledged = {
      received: ack.received ? fromWirePosition(ack.received) : undefined,
      durable: ack.durable ? fromWirePosition(ack.durable) : undefined,
      applied: ack.applied ? fromWirePosition(ack.applied) : undefined,
    };
    this.#acknowledged.set(ack.database, acknowledged);
    this.#host.options.onEvent?.({
      kind: 'acknowledged',
      nodeId: this.#nodeId,
      name: ack.database,
      acknowledged,
    });
  }

  /** With success this stream ends by the change of role, so only a refusal is told. */
  async #handOff(id: number, waitMs: number): Promise<void> {
    try {
      const { onHandOff } = this.#host.options;
      if (!onHandOff) throw new KiteError('ERR_LEASE_HANDOFF', 'The primary hands nothing over');
      await onHandOff(this.#nodeId, waitMs);
    } catch (thrown) {
      const { code, message } = toKiteError(thrown);
      this.#control({ handOffRefused: { id, code, text: message } });
    }
  }

  #haltOf({ database, id }: { readonly database: string; readonly id: string }) {
    return { nodeId: this.#nodeId, name: checkedName(database), id: Number(id) };
  }

  async #answerHalt(request: number, work: (host: HaltHost) => Promise<EpochPosition | void>): Promise<void> {
    const { halts } = this.#host.options;
    try {
      if (!halts) throw new KiteError('ERR_HALT_UNSUPPORTED', 'The primary lets no replica write');
      const position = await work(halts);
      const role = this.#host.options.role();
      // Asked again: what is answered after the lease may have been lost to another primary (trap 10).
      if (!role.primary || role.epoch !== this.#epoch || !role.leaseValid) throw notPrimary();
      const at = toWirePosition('', position ?? undefined);
      this.#control({ haltAnswer: { request, position: at, ttlMs: halts.ttlMs } });
    } catch (thrown) {
      const { code, message: text } = toKiteError(thrown);
      this.#control({ haltAnswer: { request, code, text } });
    }
  }

  #haltWrite(message: HaltWrite__Output, epoch: bigint): void {
    const { request, file, data, last } = message;
    const known = this.#transactions.get(request);
    if (!file && !known) return; // the rest of one that was refused
    const refuse = (thrown: unknown): void => {
      known?.abort();
      this.#transactions.delete(request);
      void this.#answerHalt(request, () => Promise.reject(toKiteError(thrown)));
    };
    try {
      if (epoch < this.#epoch)
        throw new KiteError('ERR_REPLICATION_EPOCH', 'a transaction of a former epoch');
      const { halts } = this.#host.options;
      if (!known && file && halts) {
        this.#transactions.set(request, halts.receive(this.#haltOf(message), fromWireFile(file)));
        return;
      }
      if (data.length > 0) known?.write(data);
    } catch (thrown) {
      return refuse(thrown);
    }
    if (!last || !known) return;
    this.#transactions.delete(request);
    void this.#answerHalt(request, () => known.commit());
  }

  #answer(id: number): void {
    if (this.#answersInFlight >= ANSWERS_IN_FLIGHT) return;
    const role = this.#host.options.role();
    if (!role.primary || role.epoch !== this.#epoch) return this.end(notPrimary());
    const positions = [];
    for (const name of this.store.databases()) {
      const at = this.store.position(name);
      if (at === undefined) continue;
      const known = `${at.txid}/${at.checksum}`;
      if (this.#answered.get(name) === known) continue;
      this.#answered.set(name, known);
      positions.push(toWirePosition(name, at));
    }
    this.#answersInFlight++;
    this.#write({ probeAnswer: { id, leaseValid: role.leaseValid, positions } }, () => {
      this.#answersInFlight--;
    });
  }

  // What happens here

  #changed(change: StoreChange): void {
    if (change.kind === 'transaction') {
      this.#sender(change.name).transaction(change.file);
    } else if (change.kind === 'dropped') {
      this.#senders.get(change.name)?.restart(undefined);
      // What is on its way still speaks of the old one.
      this.#furthest.set(change.name, undefined);
      this.#acknowledged.delete(change.name);
      this.#answered.delete(change.name);
      this.#control({ dropped: { database: change.name } });
    }
  }

  #beat(): void {
    // It has nothing to say; its connection is watched by gRPC.
    if (this.#state === 'pulled') return;
    // Beats are counted, not time: a pause of this process is no silence of the peer.
    if (++this.#silentBeats > this.#silentBeatsMax) {
      return this.end(new KiteError('ERR_REPLICATION_SILENT', `Nothing came from ${this.peer} for seconds`));
    }
    const role = this.#host.options.role();
    if (this.streaming && (!role.primary || role.epoch !== this.#epoch)) return this.end(notPrimary());
    if (!this.streaming || this.#answersInFlight >= ANSWERS_IN_FLIGHT) return;
    this.#probe = { id: this.#probe.id + 1, sentAtMs: monotonicMs() };
    this.#answersInFlight++;
    this.#write({ probe: { id: this.#probe.id } }, () => {
      this.#answersInFlight--;
    });
  }

  /** The sender of a database; one that the replica did not announce begins from nothing. */
  #sender(name: string): DatabaseSender {
    return this.#senders.get(name) ?? this.#addSender(name, undefined, 0, false);
  }

  #addSender(
    name: string,
    position: EpochPosition | undefined,
    attempt: number,
    resync: boolean,
  ): DatabaseSender {
    this.#senders.get(name)?.close();
    const sender = new DatabaseSender(name, this, position, attempt, resync);
    this.#senders.set(name, sender);
    sender.start();
    return sender;
  }

  #databaseFailed(name: string, reason: string): void {
    this.#host.options.onEvent?.({ kind: 'database-failed', nodeId: this.#nodeId, name, reason });
  }

  #refusal(error: KiteError): NonNullable<ToReplica['refusal']> {
    const role = this.#host.options.role();
    return {
      code: error.code,
      text: error.message,
      primary: role.primary || role.holder === undefined ? null : { ...role.holder },
    };
  }

  #control(message: Omit<ToReplica, 'epoch'>): void {
    this.#write(message, undefined);
  }

  #write(message: Omit<ToReplica, 'epoch'>, taken: (() => void) | undefined): void {
    if (this.#state === 'ended') return;
    const body = encodeToReplica(this.#epoch, message);
    const mac = this.#macDown?.next(body) ?? Buffer.alloc(0);
    this.#host.options.onBytes?.('sent', body.length);
    this.#call.write({ body, mac }, taken);
  }
}

const NOTHING: EpochPosition = { txid: 0n, checksum: 0n, epoch: 0n };

const notPrimary = (): KiteError => new KiteError('ERR_REPLICATION_NOT_PRIMARY', 'The node is not primary');

const unexpected = (message: ToPrimary__Output): KiteError =>
  new KiteError('ERR_REPLICATION_MESSAGE', `A replica sent ${message.message ?? 'nothing'} out of turn`);
