import { KiteError, toKiteError } from '../errors.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import type { Ack } from './generated/kitefs/v1/Ack.js';
import type { Chunk__Output } from './generated/kitefs/v1/Chunk.js';
import type { ChecksumsWanted__Output } from './generated/kitefs/v1/ChecksumsWanted.js';
import type { DatabaseFailed__Output } from './generated/kitefs/v1/DatabaseFailed.js';
import type { File__Output } from './generated/kitefs/v1/File.js';
import type { ToPrimary } from './generated/kitefs/v1/ToPrimary.js';
import type { ChecksumSource, IncomingFile, ReplicationStore } from './store.js';
import { fromWireFile, fromWirePosition, toWirePosition } from './wire.js';

const FIRST_RETRY_MS = 100;
const RETRY_MS_MAX = 30_000;

/** What a receiver needs of its stream. */
export interface ReceiverStream {
  readonly store: ReplicationStore;
  /** The epoch under which the primary sends. */
  readonly epoch: bigint;
  /** The database's acknowledgement has changed; `awaited`: a commit at the primary waits for it, so it goes out now. */
  changed(receiver: DatabaseReceiver, awaited: boolean): void;
  /** The database is stopped for `retryMs`; the primary is told. */
  failed(receiver: DatabaseReceiver, error: KiteError, retryMs: number): void;
  /** Sends a message; resolves when there is room for more. */
  send(message: Omit<ToPrimary, 'epoch'>): Promise<void>;
  /** Begin anew after what the log holds. */
  restart(receiver: DatabaseReceiver): void;
  dropped(name: string): void;
}

/** The file that is on its way in. */
interface Incoming {
  readonly header: Omit<LogFile, 'path'>;
  readonly durable: boolean;
  readonly file: IncomingFile;
  receivedBytes: number;
}

/** The primary has asked which pages are here: what it was told, and what it sends next need not follow the log. */
interface Told {
  readonly fork: EpochPosition | undefined;
  /** Undefined: there were no pages to tell of, so a snapshot comes. */
  readonly source: ChecksumSource | undefined;
}

/**
 * Takes in one database of one stream: what arrives is handled in order, one step at a time, and no other
 * database waits for it. An error gives up the file under way, stops this database, and begins anew after
 * a pause from where the log ends.
 */
export class DatabaseReceiver {
  readonly name: string;
  readonly #stream: ReceiverStream;
  readonly #steps: (() => Promise<void>)[] = [];
  #working: Promise<void> | undefined;
  #incoming: Incoming | undefined;
  #told: Told | undefined;
  /** Files of another attempt were sent before the primary knew that this database had to begin anew. */
  #attempt = 0;
  #failures = 0;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;
  #consumedBytes = 0;
  /** Of the last file. */
  #awaited = false;
  #durable: EpochPosition | undefined;

  constructor(name: string, stream: ReceiverStream) {
    this.name = name;
    this.#stream = stream;
  }

  get attempt(): number {
    return this.#attempt;
  }

  acknowledgement(): Ack {
    const { store } = this.#stream;
    return {
      database: this.name,
      consumedBytes: String(this.#consumedBytes),
      received: toWirePosition(this.name, store.position(this.name)),
      durable: toWirePosition(this.name, store.isGrounded(this.name) ? this.#durable : undefined),
      applied: toWirePosition(this.name, store.appliedPosition(this.name)),
    };
  }

  file(file: File__Output): void {
    this.#step(file.data.length, async () => {
      this.#awaited = file.awaited;
      if (file.attempt !== this.#attempt || this.#retry !== undefined) return;
      if (!file.difference && (await this.#isKnown(file))) return;
      await this.#begin(file);
      await this.#take(file.data, file.last);
    });
  }

  chunk(chunk: Chunk__Output): void {
    this.#step(chunk.data.length, async () => {
      // Without a file under way it belongs to one that was given up.
      if (this.#incoming !== undefined) await this.#take(chunk.data, chunk.last);
    });
  }

  /** The primary's log has nothing that follows ours: it is told what the pages are. */
  checksumsWanted(wanted: ChecksumsWanted__Output): void {
    this.#step(0, async () => {
      if (wanted.attempt !== this.#attempt || this.#retry !== undefined) return;
      // It may come in place of the rest of a file that the primary found damaged.
      await this.#giveUp();
      this.#checkEpoch();
      const source = await this.#stream.store.pageChecksums(this.name, wanted.pageSize);
      const fork = wanted.fork ? fromWirePosition(wanted.fork) : undefined;
      this.#told = { fork, source };
      await this.#tell(source);
    });
  }

  async #tell(source: ChecksumSource | undefined): Promise<void> {
    const head = {
      database: this.name,
      attempt: this.#attempt,
      txid: String(source?.txid ?? 0n),
      checksum: String(source?.checksum ?? 0n),
      pages: source?.pages ?? 0,
    };
    for await (const checksums of source?.chunks() ?? []) {
      if (this.#closed) return;
      await this.#stream.send({ pageChecksums: { ...head, checksums, last: false } });
    }
    await this.#stream.send({ pageChecksums: { ...head, checksums: Buffer.alloc(0), last: true } });
  }

  /** What is on its way is of no use any more. */
  beginAnew(): void {
    this.#step(0, async () => {
      // After an error it begins anew anyway, a moment later.
      if (this.#retry !== undefined) return;
      await this.#giveUp();
      this.#attempt++;
      this.#stream.restart(this);
    });
  }

  /**
   * At the beginning of a stream: fsyncs what an earlier one has left and acknowledges it, so that the primary knows what
   * this replica has before there is a new transaction.
   */
  announce(): void {
    this.#step(0, async () => {
      const { store } = this.#stream;
      const at = store.position(this.name);
      await store.sync(this.name);
      this.#durable = at;
    });
  }

  /** The primary cannot send this database now. */
  primaryFailed(failed: DatabaseFailed__Output): void {
    this.#step(0, async () => {
      if (failed.attempt !== this.#attempt || this.#retry !== undefined) return;
      throw new KiteError(
        'ERR_REPLICATION_ORDER',
        `The primary cannot send ${this.name}: ${failed.text} [${failed.code}]`,
      );
    });
  }

  /** The primary says that it has no such database. */
  drop(): void {
    this.#step(0, async () => {
      await this.#giveUp();
      this.#checkEpoch();
      await this.#stream.store.drop(this.name, this.#stream.epoch);
      this.#durable = undefined;
      this.#stream.dropped(this.name);
    });
  }

  /** Resolves when what has arrived is in the log. */
  async idle(): Promise<void> {
    await this.#working;
  }

  /** Begins nothing more. */
  stop(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#steps.length = 0;
  }

  /** Gives up what is under way; resolves when the store is no longer used. */
  async close(): Promise<void> {
    this.stop();
    await this.#working;
    await this.#giveUp();
  }

  #step(sizeBytes: number, run: () => Promise<void>): void {
    if (this.#closed) return;
    this.#steps.push(async () => {
      try {
        await run();
      } catch (thrown) {
        await this.#fail(toKiteError(thrown));
      }
      // Bytes that were ignored count too: the primary's window must open again.
      this.#consumedBytes += sizeBytes;
      if (!this.#closed) this.#stream.changed(this, this.#awaited && this.#steps.length === 0);
    });
    this.#working ??= this.#work();
  }

  async #work(): Promise<void> {
    for (let step = this.#steps.shift(); step !== undefined; step = this.#steps.shift()) await step();
    this.#working = undefined;
  }

  /** Whether the log has it already; chunks that follow are ignored, as of any file that is not under way. */
  async #isKnown(wire: File__Output): Promise<boolean> {
    const { store } = this.#stream;
    const header = fromWireFile(wire);
    if ((await store.arrives(this.name, header)) === 'new') return false;
    if (wire.durable) {
      await store.sync(this.name);
      this.#durable = { txid: header.maxTxid, checksum: header.postApplyChecksum, epoch: header.epoch };
    }
    return true;
  }

  async #begin(wire: File__Output): Promise<void> {
    const { store } = this.#stream;
    const header = fromWireFile(wire);
    if (this.#incoming !== undefined) throw this.#outOfOrder('a file began inside another');
    if (header.minTxid < 1n || header.maxTxid < header.minTxid || header.epoch > this.#stream.epoch) {
      throw this.#outOfOrder(`a file of TXIDs ${header.minTxid} to ${header.maxTxid}, epoch ${header.epoch}`);
    }
    const { source, fork } = this.#told ?? {};
    if (wire.difference) {
      if (header.minTxid === 1n || header.preApplyChecksum !== source?.checksum) {
        throw this.#outOfOrder('a difference to something else than what is here');
      }
    } else if (header.minTxid > 1n) {
      const at = store.position(this.name);
      if (at?.txid !== header.minTxid - 1n || at.checksum !== header.preApplyChecksum) {
        throw this.#outOfOrder(`TXID ${header.minTxid} does not follow what the log holds`);
      }
    }
    this.#checkEpoch();
    const replacement = this.#told && { difference: wire.difference, fork };
    const file = await store.receive(this.name, header, replacement);
    this.#incoming = { header, durable: wire.durable, file, receivedBytes: 0 };
  }

  async #take(data: Buffer, last: boolean): Promise<void> {
    const incoming = this.#incoming;
    if (incoming === undefined || this.#closed) return;
    const { header } = incoming;
    incoming.receivedBytes += data.length;
    const sizeBytes = incoming.receivedBytes;
    if (sizeBytes > header.sizeBytes || (last && sizeBytes !== header.sizeBytes)) {
      throw this.#outOfOrder(`a file of ${sizeBytes} bytes was announced with ${header.sizeBytes}`);
    }
    if (data.length > 0) await incoming.file.write(data);
    if (!last || this.#closed) return;
    // Again: this node may have learnt of another primary, or become one, while the file came in.
    this.#checkEpoch();
    await incoming.file.finish({ durable: incoming.durable });
    this.#incoming = undefined;
    this.#forget();
    this.#failures = 0;
    if (incoming.durable) {
      this.#durable = { txid: header.maxTxid, checksum: header.postApplyChecksum, epoch: header.epoch };
    }
  }

  #checkEpoch(): void {
    if (this.#stream.store.epoch() <= this.#stream.epoch) return;
    throw new KiteError(
      'ERR_REPLICATION_EPOCH',
      `This node knows epoch ${this.#stream.store.epoch()}, the primary sends under ${this.#stream.epoch}`,
    );
  }

  async #fail(error: KiteError): Promise<void> {
    await this.#giveUp();
    if (this.#closed) return;
    const retryMs = Math.min(RETRY_MS_MAX, FIRST_RETRY_MS * 2 ** this.#failures++);
    this.#attempt++;
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.#stream.restart(this);
    }, retryMs);
    this.#stream.failed(this, error, retryMs);
  }

  #forget(): void {
    this.#told?.source?.release();
    this.#told = undefined;
  }

  /** Leaves no trace of the file under way. */
  async #giveUp(): Promise<void> {
    this.#forget();
    const incoming = this.#incoming;
    this.#incoming = undefined;
    try {
      await incoming?.file.abort();
    } catch {
      // The store has removed what it could; the next start of the node removes the rest.
    }
  }

  #outOfOrder(what: string): KiteError {
    return new KiteError('ERR_REPLICATION_ORDER', `The stream of ${this.name} is out of order: ${what}`);
  }
}
