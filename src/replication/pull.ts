import type { ServiceError } from '@grpc/grpc-js';

import { KiteError, toKiteError } from '../errors.js';
import type { EpochPosition } from '../store/types.js';
import { checkEpochClaim } from './claims.js';
import { DatabaseReceiver, type ReceiverStream } from './database-receiver.js';
import type { Challenge__Output } from './generated/kitefs/v1/Challenge.js';
import type { Envelope__Output } from './generated/kitefs/v1/Envelope.js';
import type { ToPrimary } from './generated/kitefs/v1/ToPrimary.js';
import type { ToReplica__Output } from './generated/kitefs/v1/ToReplica.js';
import { agree, peerClient } from './peer-call.js';
import { type EnvelopeMac, makeNonce } from './peer-secret.js';
import type { ReplicationStore } from './store.js';
import { PROTOCOL, checkedName, decodeToReplica, encodeToPrimary, toWirePosition } from './wire.js';

/** A peer that lives answers within this; one that does not must not hold up a failover. */
const ANSWER_LIMIT_MS = 1000;
/** Pieces of a file come one after the other. */
const SILENCE_LIMIT_MS = 3000;

export interface PullOptions {
  /** host:port of the peer. */
  readonly address: string;
  readonly store: ReplicationStore;
  readonly secret?: string | undefined;
  /**
   * The databases that are wanted, each after the end of its log here, also of one that was dropped: a peer that has not
   * heard of that would bring it back. undefined: there is no log.
   */
  readonly after: ReadonlyMap<string, EpochPosition | undefined>;
}

/**
 * Takes into the log of this node what a peer's log has after the end of it, where the two share their history up to there;
 * nothing is given up for it. For a node that has won the lease and lets nobody write yet. Rejects with
 * ERR_REPLICATION_* when the peer does not answer or breaks off; what had come by then stays.
 */
export async function pull(options: PullOptions): Promise<void> {
  const session = new PullSession(options);
  await session.done;
}

class PullSession {
  readonly done: Promise<void>;
  readonly #options: PullOptions;
  readonly #call;
  readonly #nonce = makeNonce();
  readonly #receivers = new Map<string, DatabaseReceiver>();
  #up: EnvelopeMac | undefined;
  #down: EnvelopeMac | undefined;
  #epoch = 0n;
  #failure: KiteError | undefined;
  #timer: NodeJS.Timeout | undefined;
  #end: (error?: KiteError) => void = () => undefined;

  constructor(options: PullOptions) {
    this.#options = options;
    const client = peerClient(options.address);
    this.#call = client.Replicate();
    const ended = new Promise<void>((resolve, reject) => {
      this.#end = (error) => (error ? reject(error) : resolve());
    });
    this.done = this.#closeAfter(ended, client);
    this.#call.on('data', (envelope: Envelope__Output) => this.#receive(envelope));
    this.#call.on('error', (error: ServiceError) => this.#broken(error.details));
    this.#call.on('end', () => this.#broken('it ended the stream'));
    this.#expect(ANSWER_LIMIT_MS);
    const { clusterId, nodeId } = options.store;
    this.#send({ hello: { protocol: PROTOCOL, clusterId, nodeId, nonce: this.#nonce } });
  }

  async #closeAfter(ended: Promise<void>, client: { close(): void }): Promise<void> {
    try {
      await ended;
    } finally {
      clearTimeout(this.#timer);
      this.#call.cancel();
      client.close();
      for (const receiver of this.#receivers.values()) await receiver.close();
    }
  }

  #broken(why: string): void {
    const { address } = this.#options;
    this.#end(new KiteError('ERR_REPLICATION_DISCONNECTED', `${address} gave nothing more: ${why}`));
  }

  #expect(limitMs: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#broken(`no answer within ${limitMs} ms`), limitMs);
  }

  #receive(envelope: Envelope__Output): void {
    try {
      const message = decodeToReplica(envelope.body);
      if (message.challenge && !this.#down) this.#agree(message.challenge);
      if (message.refusal) return this.#broken(message.refusal.text);
      if (!this.#down) throw new KiteError('ERR_REPLICATION_MESSAGE', 'a peer spoke out of turn');
      this.#down.check(envelope.body, envelope.mac);
      this.#expect(SILENCE_LIMIT_MS);
      this.#handle(message);
    } catch (thrown) {
      this.#end(toKiteError(thrown));
    }
  }

  #agree(challenge: Challenge__Output): void {
    const { store, secret, address } = this.#options;
    const { clusterId, nodeId } = store;
    const macs = agree(challenge, { clusterId, nodeId, secret, nonce: this.#nonce, address });
    this.#up = macs.up;
    this.#down = macs.down;
  }

  #handle(message: ToReplica__Output): void {
    const { store, after } = this.#options;
    switch (message.message) {
      case 'challenge': {
        // Files of a higher epoch than the peer itself knows would be of nobody.
        const theirs = BigInt(message.epoch);
        checkEpochClaim(theirs, store.epoch(), this.#options.address);
        this.#epoch = theirs > store.epoch() ? theirs : store.epoch();
        const positions = [...after].map(([name, at]) => toWirePosition(name, at));
        return this.#send({ pull: { positions } });
      }
      case 'files':
        for (const file of message.files!.files) this.#receiver(file.database).file(file);
        return;
      case 'chunk':
        return this.#receiver(message.chunk!.database).chunk(message.chunk!);
      case 'pulled':
        return void this.#finish();
      default:
        throw new KiteError('ERR_REPLICATION_MESSAGE', `a peer sent ${message.message ?? 'nothing'}`);
    }
  }

  async #finish(): Promise<void> {
    clearTimeout(this.#timer);
    for (const receiver of this.#receivers.values()) await receiver.idle();
    this.#end(this.#failure);
  }

  #receiver(name: string): DatabaseReceiver {
    let receiver = this.#receivers.get(name);
    if (receiver === undefined) {
      const stream: ReceiverStream = {
        store: this.#options.store,
        epoch: this.#epoch,
        changed: () => undefined,
        // Nothing is asked of this node here.
        send: async () => undefined,
        // The other databases go on.
        failed: (_receiver, error) => (this.#failure ??= error),
        restart: () => undefined,
        dropped: () => undefined,
      };
      receiver = new DatabaseReceiver(checkedName(name), stream);
      this.#receivers.set(name, receiver);
    }
    return receiver;
  }

  #send(message: Omit<ToPrimary, 'epoch'>): void {
    const body = encodeToPrimary(this.#options.store.epoch(), message);
    this.#call.write({ body, mac: this.#up?.next(body) ?? Buffer.alloc(0) });
  }
}
