import { EventEmitter, once } from 'node:events';
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';

import { KiteError } from '../errors.js';
import type { TxidRange } from '../ltx/position.js';
import type { CheckProgress } from '../store/background-check.js';
import type { EpochPosition, LogContents, LogFile } from '../store/types.js';
import { CommitSignal } from './commit-signal.js';
import type { GateEndpoint } from './gate-client.js';
import type {
  CaptureCalls,
  CaptureNotice,
  CommittedPages,
  DifferingPages,
  PromotedDatabase,
} from './messages.js';
import { SMALL_YOUNG_GENERATION } from '../util/young-generation.js';

export interface CaptureOptions {
  readonly dataDir: string;
  readonly nodeId: string;
  /** Buffer of the daemon's ControlBlock. */
  readonly control: SharedArrayBuffer;
  /** How much the full check behind a start may read per second; 0: it is not made. */
  readonly checkBytesPerSecond: number;
}

/** What the worker is started with. */
export interface CaptureThreadData extends CaptureOptions {
  readonly port: MessagePort;
  readonly signal: SharedArrayBuffer;
}

export interface CaptureEvents {
  /** One more file in the log. `bytes` is the file itself when it is at most 256 KiB. */
  transaction: [{ name: string; file: LogFile; bytes?: Buffer }];
  /** First transaction of a database; before its `transaction`. */
  created: [string];
  /** The database was dropped; after the `transaction` of its deletion. */
  dropped: [string];
  /** How far the full check of a database is. */
  checked: [{ name: string; progress: CheckProgress }];
  /** A dead writer's commit was taken back by a transaction of ours (trap 1); after its `transaction`. */
  compensated: [string];
  /** A commit waits until replicas have this position: `replicasHave` ends that. undefined: it does not wait any more. */
  awaits: [{ id: number; name: string; position: EpochPosition | undefined }];
  /** This database is not captured at the moment, and why. The others go on. */
  failed: [{ name: string; error: KiteError }];
  /** The thread ended by itself: the node may not stay primary. */
  died: [KiteError];
}

interface Waiting {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: KiteError) => void;
}

/**
 * The main thread's handle of the capture thread. Order of a start on a node that was primary: `recover`
 * each database before SQLite touches it, let the applier open them, then `promote`. While this node is a
 * replica the thread idles and touches no database.
 */
export class Capture extends EventEmitter<CaptureEvents> {
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #signal: CommitSignal;
  readonly #waiting = new Map<number, Waiting>();
  #nextId = 1;
  #stopping = false;

  private constructor(worker: Worker, port: MessagePort, signal: CommitSignal) {
    super();
    this.#worker = worker;
    this.#port = port;
    this.#signal = signal;
    port.on('message', (notice: CaptureNotice) => this.#take(notice));
    worker.on('error', (error) => this.#died(error.message));
    worker.on('exit', () => this.#died('it exited'));
  }

  static async start(options: CaptureOptions): Promise<Capture> {
    const signal = new CommitSignal();
    const { port1, port2 } = new MessageChannel();
    const data: CaptureThreadData = { ...options, port: port2, signal: signal.buffer };
    const worker = new Worker(new URL('./capture-thread.js', import.meta.url), {
      name: 'capture',
      workerData: data,
      transferList: [port2],
      resourceLimits: SMALL_YOUNG_GENERATION,
      // Descriptors of databases pass from one thread to another here; Node's bookkeeping of them would only warn.
      trackUnmanagedFds: false,
    });
    const capture = new Capture(worker, port1, signal);
    await once(worker, 'online');
    return capture;
  }

  /** An end of the gate for the mount's thread; transfer its port. */
  async gateEndpoint(): Promise<GateEndpoint> {
    const { port1, port2 } = new MessageChannel();
    await this.#call('gate', { port: port2 }, [port2]);
    return { port: port1, signal: this.#signal.buffer };
  }

  /** How to wake the mount thread after an answer: the `buffer` of the mount's Waker. Not needed with an event loop. */
  setWaker(waker: SharedArrayBuffer): Promise<void> {
    return this.#call('waker', { waker });
  }

  /**
   * Before SQLite touches anything: commits in the WAL that the log lacks are added to it, under the epoch
   * of the log's last file. Returns the log's end; undefined when there is neither log nor commit. Rejects
   * with ERR_CAPTURE_* / ERR_LTX_* when this database cannot be recovered.
   */
  recover(name: string): Promise<EpochPosition | undefined> {
    return this.#call('recover', { name });
  }

  /**
   * This node is primary now: takes over the page checksums of all databases, compares each with its log,
   * emits one transaction where they differ, and captures from then on under `epoch`. `logs`: what the caller's logs hold, to
   * which it adds nothing more; the folders of others are read.
   */
  promote(epoch: bigint, logs: ReadonlyMap<string, LogContents>): Promise<PromotedDatabase[]> {
    return this.#call('promote', { epoch, logs });
  }

  /** Captures what is committed, hands the page checksums over (flushed), and lets go of all databases. */
  demote(): Promise<void> {
    return this.#call('demote', {});
  }

  /**
   * On a replica whose applications are about to write this database (HALT): takes it over from the applier, which has closed it
   * at exactly `at`, the end of the log, and captures from then on under `epoch`. Each commit is told by `awaits`. Rejects
   * with ERR_HALT_ENDED when it is not there.
   */
  halt(name: string, epoch: bigint, at: EpochPosition): Promise<void> {
    return this.#call('halt', { name, epoch, at });
  }

  /** Ends that, as `demote` does for all. Returns the end of the log; undefined when the database was not captured. */
  unhalt(name: string): Promise<EpochPosition | undefined> {
    return this.#call('unhalt', { name });
  }

  /** Where the log ends once what was committed before this call is in it. */
  position(name: string): Promise<EpochPosition | undefined> {
    return this.#call('position', { name });
  }

  /** Resolves when what was committed in these databases before this call is in their logs. */
  async captured(names: readonly string[]): Promise<void> {
    for (const name of names) await this.position(name);
  }

  /** Committed content of these pages, as of the position in the answer. At most 256 pages. */
  readCommittedPages(name: string, pgnos: number[]): Promise<CommittedPages> {
    return this.#call('pages', { name, pgnos });
  }

  /**
   * Which pages from `firstPgno` on have another checksum than these (two halves per page, 0 0 for no page), as of the last
   * committed transaction. Reads no page.
   */
  differingPages(name: string, firstPgno: number, theirs: Uint32Array): Promise<DifferingPages> {
    return this.#call('differing', { name, firstPgno, theirs });
  }

  /** Retention: removes log files whose transactions are all below `txid`; never the last file. */
  removeBefore(name: string, txid: bigint): Promise<TxidRange[]> {
    return this.#call('removeBefore', { name, txid });
  }

  /** Ends a wait: 0, replicas have it; else the errno for the application. */
  replicasHave(id: number, errno: number): void {
    // Nobody waits for an answer to this: it is on the way of each commit.
    this.#port.postMessage({ id: 0, op: 'replicasHave', args: { id, errno } });
  }

  /** As `demote`, then ends the thread. */
  async stop(): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    await this.#call('stop', {});
    this.#port.close();
    await this.#worker.terminate();
  }

  #call<K extends keyof CaptureCalls>(
    op: K,
    args: CaptureCalls[K][0],
    transfer: MessagePort[] = [],
  ): Promise<CaptureCalls[K][1]> {
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as (value: unknown) => void, reject });
      this.#port.postMessage({ id, op, args }, transfer);
    });
  }

  #take(notice: CaptureNotice): void {
    switch (notice.kind) {
      case 'result':
      case 'error': {
        const waiting = this.#waiting.get(notice.id);
        this.#waiting.delete(notice.id);
        if (notice.kind === 'result') waiting?.resolve(notice.value);
        else waiting?.reject(new KiteError(notice.code, notice.message));
        break;
      }
      case 'transaction': {
        const { name, file, bytes } = notice;
        const buffer = bytes && Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
        this.emit('transaction', { name, file, ...(buffer && { bytes: buffer }) });
        break;
      }
      case 'created':
      case 'dropped':
      case 'compensated':
        this.emit(notice.kind, notice.name);
        break;
      case 'checked':
        this.emit('checked', { name: notice.name, progress: notice.progress });
        break;
      case 'awaits':
        this.emit('awaits', notice);
        break;
      case 'failed':
        this.emit('failed', {
          name: notice.name,
          error: new KiteError(notice.code, notice.message),
        });
        break;
    }
  }

  #died(why: string): void {
    if (this.#stopping) return;
    this.#stopping = true;
    const error = new KiteError('ERR_CAPTURE_DIED', `the capture thread has ended: ${why}`);
    for (const waiting of this.#waiting.values()) waiting.reject(error);
    this.#waiting.clear();
    this.emit('died', error);
  }
}
