import { toKiteError } from '../errors.js';
import { CHECKSUM_BYTES, parseChecksums } from '../store/page-difference.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import { KiteError } from '../errors.js';
import type { PageChecksums__Output } from './generated/kitefs/v1/PageChecksums.js';
import type { ToReplica } from './generated/kitefs/v1/ToReplica.js';
import type { ReplicaPages, ReplicationStore, SnapshotSource } from './store.js';
import { CHUNK_BYTES_MAX, SMALL_FILE_BYTES_MAX, toWireFile, toWirePosition } from './wire.js';

/** File bytes of one database that may be under way before the replica says it has taken them. */
const WINDOW_BYTES = 4 * 1024 * 1024;
/** Transactions remembered while the stream is busy; beyond it they are read from the log again. */
const LIVE_FILES_MAX = 1024;

const NOTHING: EpochPosition = { txid: 0n, checksum: 0n, epoch: 0n };

/** What a sender needs of its stream. */
export interface SenderStream {
  readonly store: ReplicationStore;
  /** Whether the replica is to fsync each file of this database before it acknowledges it. */
  durable(name: string): boolean;
  /** Whether a commit waits for the acknowledgement. */
  awaited(name: string): boolean;
  /** A turn to send one message; false when the stream has ended. */
  acquire(): boolean | Promise<boolean>;
  release(): void;
  /** Sends file bytes under a permit, which is given back when the socket has taken them. */
  writeBytes(message: Omit<ToReplica, 'epoch'>, sizeBytes: number): void;
  /** Sends a message without file bytes. */
  ask(message: Omit<ToReplica, 'epoch'>): void;
  failed(name: string, error: KiteError, attempt: number): void;
  /** The replica gets `kind` in place of the log, and why. */
  replaces(name: string, kind: 'difference' | 'snapshot', reason: string): void;
}

/** The answer to a question for page checksums, as it comes in. */
interface Question {
  readonly pieces: Uint32Array[];
  bytes: number;
  /** As many pages as we have: what the replica has beyond is cut off anyway, and it may say any number. */
  readonly bytesMax: number;
  resolve(pages: ReplicaPages | undefined): void;
}

/**
 * Sends one database to one replica: what the log holds after the replica's position, or, when the log does not hold that
 * position, the pages that differ or a snapshot; then each transaction as it happens. It runs on its own, so no
 * other database waits for it; an error stops this database until the replica begins anew with it.
 */
export class DatabaseSender {
  readonly #name: string;
  readonly #stream: SenderStream;
  /** The replica's position once it has taken everything sent. */
  #sent: EpochPosition;
  /** That of the replica's announcement: it ignores files of an earlier attempt. */
  #attempt: number;
  /** End of the replica's log, which need not be one that anything here follows. */
  #replicaEnd: EpochPosition | undefined;
  /** Why the log is of no use to this replica, whatever its position. */
  #resync: string | undefined;
  /** Why the replica refused a file of the log. */
  #refusal: string | undefined;
  #question: Question | undefined;
  /** Counts beginnings; work that finds another number than its own is given up. */
  #run = 0;
  #live: LogFile[] = [];
  /** Whether the log must be asked before `#live` may be sent. */
  #behind = true;
  #halted = false;
  #closed = false;
  #sentBytes = 0;
  #consumedBytes = 0;
  #wake: (() => void) | undefined;

  constructor(
    name: string,
    stream: SenderStream,
    position: EpochPosition | undefined,
    attempt: number,
    resync: boolean,
  ) {
    this.#name = name;
    this.#stream = stream;
    this.#sent = NOTHING;
    this.#attempt = attempt;
    this.#begin(position, resync);
  }

  /** Begins to send; the work ends by itself after `close`. */
  start(): void {
    void this.#loop();
  }

  /** Everything that the log has was sent and taken. */
  get caughtUp(): boolean {
    if (this.#halted || this.#stream.store.position(this.#name) === undefined) return true;
    return !this.#behind && this.#live.length === 0 && this.#sentBytes === this.#consumedBytes;
  }

  transaction(file: LogFile): void {
    if (this.#live.length < LIVE_FILES_MAX) {
      this.#live.push(file);
    } else {
      this.#live = [];
      this.#behind = true;
    }
    this.#wakeUp();
  }

  /** The replica has taken so many bytes in all; returns how many of them are new. */
  consumed(totalBytes: number): number {
    // Never more than was sent, whatever the replica says.
    const consumedBytes = Math.max(this.#consumedBytes, Math.min(totalBytes, this.#sentBytes));
    const newBytes = consumedBytes - this.#consumedBytes;
    this.#consumedBytes = consumedBytes;
    this.#wakeUp();
    return newBytes;
  }

  /** Gives up what is under way and begins after `position`. */
  restart(
    position: EpochPosition | undefined,
    attempt: number = this.#attempt,
    resync: boolean = false,
  ): void {
    this.#giveUp();
    this.#begin(position, resync);
    this.#attempt = attempt;
    this.#live = [];
    this.#behind = true;
    this.#halted = false;
    this.#wakeUp();
  }

  /** The replica refuses what it was sent; stops until `restart`. */
  refused(code: string, text: string): void {
    this.halt();
    // The same bytes would be refused again: what the log cannot give comes out of the database.
    if (code === 'ERR_LTX_DAMAGED') this.#refusal = text;
  }

  /** Stops until `restart`: the replica cannot take this database now. */
  halt(): void {
    this.#giveUp();
    this.#live = [];
    this.#behind = true;
    this.#halted = true;
    this.#wakeUp();
  }

  close(): void {
    this.#giveUp();
    this.#closed = true;
    this.#wakeUp();
  }

  /** A piece of the replica's page checksums, which it was asked for. */
  checksums(answer: PageChecksums__Output): void {
    const question = this.#question;
    if (question === undefined || answer.attempt !== this.#attempt) return;
    const piece = answer.checksums.subarray(0, question.bytesMax - question.bytes);
    question.pieces.push(parseChecksums(piece));
    question.bytes += piece.length;
    if (!answer.last) return;
    this.#question = undefined;
    if (answer.pages === 0) return question.resolve(undefined);
    const halves = new Uint32Array(question.bytes / 4);
    let at = 0;
    for (const part of question.pieces) {
      halves.set(part, at);
      at += part.length;
    }
    question.resolve({ txid: BigInt(answer.txid), checksum: BigInt(answer.checksum), halves });
  }

  #begin(position: EpochPosition | undefined, resync: boolean): void {
    this.#sent = position ?? NOTHING;
    this.#replicaEnd = position;
    this.#resync = resync ? 'what it has is not what its log says' : this.#refusal;
    this.#refusal = undefined;
    if (this.#resync !== undefined) this.#sent = NOTHING;
  }

  #giveUp(): void {
    this.#run++;
    this.#question?.resolve(undefined);
    this.#question = undefined;
  }

  async #loop(): Promise<void> {
    while (!this.#closed) {
      const run = this.#run;
      try {
        if (this.#halted) await this.#sleep();
        else if (this.#behind) await this.#catchUp(run);
        else await this.#follow(run);
      } catch (thrown) {
        if (run !== this.#run) continue;
        const error = toKiteError(thrown);
        if (error.code === 'ERR_STORE_LOG_DAMAGED' && this.#resync === undefined) {
          // Trying again would not mend the log: what it cannot give comes out of the database.
          this.#resync = error.message;
          this.#behind = true;
        } else {
          this.halt();
          this.#stream.failed(this.#name, error, this.#attempt);
        }
      }
    }
  }

  async #follow(run: number): Promise<void> {
    const next = this.#live[0];
    if (next === undefined) return this.#sleep();
    if (next.maxTxid <= this.#sent.txid) {
      this.#live.shift(); // It went out with what the log held.
    } else if (follows(this.#sent, next)) {
      await this.#sendNext(this.#live, run);
    } else {
      this.#behind = true;
    }
  }

  async #catchUp(run: number): Promise<void> {
    const { store } = this.#stream;
    const files = this.#resync === undefined ? store.filesAfter(this.#name, this.#sent) : undefined;
    if (files === undefined) {
      // A database without a transaction yet; the first one wakes this up.
      if (store.position(this.#name) === undefined) return this.#sleep();
      return this.#sendReplacement(run);
    }
    if (files.length === 0) {
      this.#behind = false;
      return;
    }
    const queue = [...files];
    // Retention must not remove what is about to be read; without it a slow replica would never arrive.
    const hold = store.hold(this.#name, this.#sent.txid);
    try {
      while (queue.length > 0 && run === this.#run) {
        await this.#sendNext(queue, run);
        if (run === this.#run) hold.move(this.#sent.txid);
      }
    } finally {
      hold.release();
    }
  }

  /** Sends what brings the replica here from wherever it is: the pages that differ, or all of them. */
  async #sendReplacement(run: number): Promise<void> {
    const { store } = this.#stream;
    // What happens while it is made and sent must still be in the log after it.
    const hold = store.hold(this.#name, store.position(this.#name)?.txid ?? 0n);
    try {
      const difference = await this.#difference(run);
      if (run !== this.#run) return;
      const source = difference ?? (await store.snapshot(this.#name));
      const kind = difference ? 'difference' : 'snapshot';
      const reason = this.#resync ?? (this.#replicaEnd ? 'its position is not in the log' : 'it has nothing');
      this.#stream.replaces(this.#name, kind, reason);
      await this.#sendPieces(source.file, source.chunks(), run, difference !== undefined);
      if (run === this.#run) this.#begin(endOf(source.file), false);
    } finally {
      hold.release();
    }
  }

  /** Undefined when there is nothing to compare with, or no difference can be made. */
  async #difference(run: number): Promise<SnapshotSource | undefined> {
    const { store } = this.#stream;
    if (this.#replicaEnd === undefined && this.#resync === undefined) return undefined;
    const fork = store.endOfEpoch(this.#name, this.#replicaEnd?.epoch ?? 0n);
    const replica = await this.#askChecksums(fork);
    if (replica === undefined || run !== this.#run) return undefined;
    // Beyond the fork it has another history: the difference stands for what is here after that.
    const txid = fork && replica.txid > fork.txid ? fork.txid : replica.txid;
    try {
      return await store.difference(this.#name, { ...replica, txid });
    } catch (error) {
      if (error instanceof KiteError && error.code === 'ERR_CAPTURE_COPY') return undefined;
      throw error;
    }
  }

  async #askChecksums(fork: EpochPosition | undefined): Promise<ReplicaPages | undefined> {
    const { pageSize = 0, pages = 0 } = this.#stream.store.pagesOf(this.#name) ?? {};
    const answer = new Promise<ReplicaPages | undefined>((resolve) => {
      this.#question = { pieces: [], bytes: 0, bytesMax: pages * CHECKSUM_BYTES, resolve };
    });
    const attempt = this.#attempt;
    this.#stream.ask({
      checksumsWanted: { database: this.#name, attempt, pageSize, fork: toWirePosition(this.#name, fork) },
    });
    return await answer;
  }

  /** Takes the first file of the queue, and the small ones behind it, and sends them. */
  async #sendNext(queue: LogFile[], run: number): Promise<void> {
    const first = queue[0];
    if (first === undefined) return;
    if (first.sizeBytes > SMALL_FILE_BYTES_MAX) {
      queue.shift();
      return this.#sendPieces(first, this.#readPieces(first), run);
    }
    if (!(await this.#turn(run))) return;
    let written = false;
    try {
      // Taken only now: while the stream was busy more have come, and they share one message.
      const files: LogFile[] = [];
      let end: EpochPosition = this.#sent;
      let sizeBytes = 0;
      for (let file = queue[0]; file !== undefined; file = queue[0]) {
        if (sizeBytes + file.sizeBytes > SMALL_FILE_BYTES_MAX) break;
        if (files.length > 0 && !follows(end, file)) break;
        queue.shift();
        files.push(file);
        end = endOf(file);
        sizeBytes += file.sizeBytes;
      }
      const bodies: Buffer[] = [];
      for (const file of files) bodies.push(await this.#readWhole(file));
      if (run !== this.#run) return;
      this.#write(
        {
          files: {
            files: files.map((file, index) => ({
              ...this.#header(file),
              data: bodies[index]!,
              last: true,
            })),
          },
        },
        sizeBytes,
      );
      written = true;
      this.#sent = end;
    } finally {
      if (!written) this.#stream.release();
    }
  }

  /** Sends a file in pieces, asking for a turn before each, so that other databases have theirs. */
  async #sendPieces(
    file: Omit<LogFile, 'path'>,
    source: AsyncIterable<Buffer>,
    run: number,
    difference = false,
  ): Promise<void> {
    const pieces = inChunks(source);
    try {
      for (let first = true; ; first = false) {
        if (!(await this.#turn(run))) return;
        let written = false;
        try {
          // Read only under a permit: so memory is bounded by the permits, not by the databases.
          const next = await pieces.next();
          if (run !== this.#run) return;
          const data: Buffer = next.done === true ? Buffer.alloc(0) : next.value;
          const last = next.done === true;
          const message = first
            ? { files: { files: [{ ...this.#header(file), difference, data, last }] } }
            : { chunk: { database: this.#name, data, last } };
          this.#write(message, data.length);
          written = true;
          if (last) {
            this.#sent = endOf(file);
            return;
          }
        } finally {
          if (!written) this.#stream.release();
        }
      }
    } finally {
      await pieces.return(undefined);
    }
  }

  /** Waits for the window and for a permit; false: given up, and no permit is held. */
  async #turn(run: number): Promise<boolean> {
    while (this.#sentBytes - this.#consumedBytes >= WINDOW_BYTES && run === this.#run) await this.#sleep();
    if (run !== this.#run) return false;
    const permit = this.#stream.acquire();
    const granted = permit === true || (await permit);
    if (granted && run !== this.#run) {
      this.#stream.release();
      return false;
    }
    return granted;
  }

  async *#readPieces(file: LogFile): AsyncGenerator<Buffer> {
    const data = this.#stream.store.readFile(file);
    if (data instanceof Promise) yield await data;
    else yield* data;
  }

  async #readWhole(file: LogFile): Promise<Buffer> {
    const data = this.#stream.store.readFile(file);
    if (data instanceof Promise) return data;
    const pieces: Buffer[] = [];
    for await (const piece of data) pieces.push(piece);
    return Buffer.concat(pieces);
  }

  #header(file: Omit<LogFile, 'path'>) {
    const name = this.#name;
    const [durable, awaited] = [this.#stream.durable(name), this.#stream.awaited(name)];
    return { ...toWireFile(name, file), attempt: this.#attempt, durable, awaited };
  }

  #write(message: Omit<ToReplica, 'epoch'>, sizeBytes: number): void {
    this.#sentBytes += sizeBytes;
    this.#stream.writeBytes(message, sizeBytes);
  }

  #sleep(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}

const follows = (at: EpochPosition, file: LogFile): boolean =>
  file.minTxid === at.txid + 1n && file.preApplyChecksum === at.checksum;

const endOf = (file: Omit<LogFile, 'path'>): EpochPosition => ({
  txid: file.maxTxid,
  checksum: file.postApplyChecksum,
  epoch: file.epoch,
});

/** Pieces of at most 256 KiB. Leaving it early leaves `source` too, which closes its file. */
export async function* inChunks(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer, undefined> {
  for await (const piece of source) {
    for (let at = 0; at < piece.length; at += CHUNK_BYTES_MAX) {
      yield piece.subarray(at, at + CHUNK_BYTES_MAX);
    }
  }
  return undefined;
}

/** A file of the log as it can be sent. */
export async function* bytesOf(store: ReplicationStore, file: LogFile): AsyncGenerator<Buffer> {
  const data = store.readFile(file);
  if (data instanceof Promise) yield await data;
  else yield* data;
}
