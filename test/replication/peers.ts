import { type AddressInfo, type Socket, connect, createServer } from 'node:net';

import { credentials } from '@grpc/grpc-js';

import type { ToPrimary } from '../../src/replication/generated/kitefs/v1/ToPrimary.js';
import type { ToReplica__Output } from '../../src/replication/generated/kitefs/v1/ToReplica.js';
import { ReplicationClient, type ReplicationClientOptions } from '../../src/replication/client.js';
import { ReplicationServer, type ReplicationServerOptions } from '../../src/replication/server.js';
import { agree } from '../../src/replication/peer-call.js';
import type { EnvelopeMac } from '../../src/replication/peer-secret.js';
import { Replication, decodeToReplica, encodeToPrimary } from '../../src/replication/wire.js';
import type { MemoryStore } from './memory-store.js';

/** Waits until `holds`, for as long as the busiest machine may need. */
export async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!holds()) {
    if (Date.now() > deadline) throw new Error(`waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** A TCP relay; while it is down it closes every connection. */
export interface Relay {
  readonly port: number;
  cut(): void;
  setUp(up: boolean): void;
}

/** Starts servers and clients of one test and stops what it started. */
export class Peers {
  readonly #stops: (() => unknown)[] = [];

  async server(
    store: MemoryStore,
    options: Partial<ReplicationServerOptions> = {},
  ): Promise<ReplicationServer> {
    const server = await ReplicationServer.start({
      address: '127.0.0.1:0',
      store,
      role: () => ({ primary: true, epoch: store.epoch(), leaseValid: true }),
      // Far above what a busy machine needs: only the tests of silence want less.
      silenceMs: 20_000,
      ...options,
    });
    this.onEnd(() => server.stop({ drainMs: 0 }));
    return server;
  }

  client(
    store: MemoryStore,
    port: number,
    options: Partial<ReplicationClientOptions> = {},
  ): ReplicationClient {
    const client = ReplicationClient.start({
      primaryAddress: `127.0.0.1:${port}`,
      store,
      silenceMs: 20_000,
      onHigherEpoch: (epoch) => store.setEpoch(epoch),
      ...options,
    });
    this.onEnd(() => client.stop());
    return client;
  }

  onEnd(stop: () => unknown): void {
    this.#stops.push(stop);
  }

  async end(): Promise<void> {
    for (const stop of this.#stops.splice(0).toReversed()) await stop();
  }

  /** A TCP relay in front of `port`, whose connections can be cut. */
  async relay(port: number): Promise<Relay> {
    const sockets = new Set<Socket>();
    let isUp = true;
    const relay = createServer((near) => {
      if (!isUp) {
        near.destroy();
        return;
      }
      const far = connect(port, '127.0.0.1');
      for (const socket of [near, far]) {
        sockets.add(socket);
        socket.setNoDelay();
        socket.on('error', () => {});
        socket.on('close', () => {
          near.destroy();
          far.destroy();
        });
      }
      near.pipe(far);
      far.pipe(near);
    });
    await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
    const cut = (): void => {
      for (const socket of sockets) socket.destroy();
      sockets.clear();
    };
    this.onEnd(() => {
      cut();
      relay.close();
    });
    const setUp = (up: boolean): void => {
      isUp = up;
      if (!up) cut();
    };
    return { port: (relay.address() as AddressInfo).port, cut, setUp };
  }

  /** A replica that says what the test wants. */
  raw(port: number, secret?: string): RawReplica {
    const replica = new RawReplica(port, secret);
    this.onEnd(() => replica.close());
    return replica;
  }
}

const NONCE = Buffer.alloc(32, 1);

/** Speaks the protocol without its rules; with a secret it proves that it knows it. */
export class RawReplica {
  readonly #client: InstanceType<typeof Replication>;
  readonly #call;
  readonly received: ToReplica__Output[] = [];
  /** Says of all file bytes at once that they were taken. */
  acknowledges = false;
  status: number | undefined;
  readonly #takenBytes = new Map<string, number>();
  readonly #secret: string | undefined;
  #hello: { nodeId: string; clusterId: string } | undefined;
  #mac: EnvelopeMac | undefined;

  constructor(port: number, secret?: string) {
    this.#secret = secret;
    this.#client = new Replication(`127.0.0.1:${port}`, credentials.createInsecure(), {
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_http_proxy': 0,
      'grpc.max_send_message_length': -1,
    });
    this.#call = this.#client.Replicate();
    this.#call.on('data', (envelope) => this.#receive(decodeToReplica(envelope.body)));
    this.#call.on('error', () => {});
    this.#call.on('status', (status) => {
      this.status = status.code;
    });
  }

  send(message: Omit<ToPrimary, 'epoch'>, epoch = 1n): void {
    const body = encodeToPrimary(epoch, message);
    this.#call.write(this.#mac === undefined ? { body } : { body, mac: this.#mac.next(body) });
  }

  /** Its refusal, as code and text; waits for it. */
  async refusal(): Promise<string> {
    await until('the refusal', () => this.find('refusal') !== undefined);
    const { code, text } = this.find('refusal')!.refusal!;
    return `${code}: ${text}`;
  }

  #receive(message: ToReplica__Output): void {
    if (message.challenge && this.#hello && this.#secret !== undefined) {
      const proof = { ...this.#hello, secret: this.#secret, nonce: NONCE, address: 'the test' };
      this.#mac = agree(message.challenge, proof).up;
    }
    this.received.push(message);
    const pieces = message.files?.files ?? (message.chunk ? [message.chunk] : []);
    for (const { database, data } of pieces) {
      const bytes = (this.#takenBytes.get(database) ?? 0) + data.length;
      this.#takenBytes.set(database, bytes);
      if (this.acknowledges) this.send({ ack: { database, consumedBytes: bytes } });
    }
  }

  hello(nodeId: string, { protocol = 1, clusterId = 'c1' } = {}): void {
    this.#hello = { nodeId, clusterId };
    this.send({ hello: { protocol, clusterId, nodeId, nonce: NONCE } });
  }

  stopReading(): void {
    this.#call.pause();
  }

  readAgain(): void {
    this.#call.resume();
  }

  find(kind: ToReplica__Output['message']): ToReplica__Output | undefined {
    return this.received.find((message) => message.message === kind);
  }

  close(): void {
    this.#call.cancel();
    this.#client.close();
  }
}
