import { createHash, randomBytes } from 'node:crypto';

import { KiteError } from '../../src/errors.js';
import type {
  IncomingFile,
  ReplicationStore,
  SnapshotSource,
  StoreChange,
} from '../../src/replication/store.js';
import type { EpochPosition, LogFile } from '../../src/store/types.js';

interface StoredFile extends LogFile {
  readonly bytes: Buffer;
}

type Header = Omit<LogFile, 'path'>;

const CHUNK = 256 * 1024;

/** A file of this store: payload, 8 bytes post-apply checksum, 8 bytes digest of all before. */
function makeBytes(payload: Buffer, postApplyChecksum: bigint): Buffer {
  const checksum = Buffer.alloc(8);
  checksum.writeBigUInt64BE(postApplyChecksum);
  const body = Buffer.concat([payload, checksum]);
  return Buffer.concat([body, createHash('sha256').update(body).digest().subarray(0, 8)]);
}

function isWhole(bytes: Buffer, header: Header): boolean {
  if (bytes.length < 16) return false;
  const body = bytes.subarray(0, -8);
  const digest = createHash('sha256').update(body).digest().subarray(0, 8);
  return (
    digest.equals(bytes.subarray(-8)) && body.readBigUInt64BE(body.length - 8) === header.postApplyChecksum
  );
}

/** The node as replication sees it, in memory: the rules of store.ts over files that are no real LTX. */
export class MemoryStore implements ReplicationStore {
  readonly nodeId: string;
  readonly clusterId: string;
  /** Files that are on their way in: zero again when nothing was left behind. */
  openIncoming = 0;
  /** What was set aside: `name txid`. */
  readonly setAside: string[] = [];
  /** `name min-max` of each file that was begun, in order. */
  readonly begun: string[] = [];
  readonly finished: string[] = [];
  bytesRead = 0;
  snapshots = 0;
  appliesAtOnce = true;
  grounded = true;
  /** Awaited before each write of a database's bytes. */
  readonly writeGate = new Map<string, Promise<void>>();
  /** Changes bytes as they are read from the log. */
  damage: ((name: string, bytes: Buffer) => Buffer) | undefined;
  readonly #databases = new Map<string, StoredFile[]>();
  readonly #applied = new Map<string, EpochPosition>();
  readonly #listeners = new Set<(change: StoreChange) => void>();
  #epoch: bigint;

  constructor(nodeId: string, { clusterId = 'c1', epoch = 1n }: { clusterId?: string; epoch?: bigint } = {}) {
    this.nodeId = nodeId;
    this.clusterId = clusterId;
    this.#epoch = epoch;
  }

  epoch(): bigint {
    return this.#epoch;
  }

  setEpoch(epoch: bigint): void {
    this.#epoch = epoch;
  }

  databases(): readonly string[] {
    return [...this.#databases.keys()];
  }

  files(name: string): readonly LogFile[] {
    return this.#databases.get(name) ?? [];
  }

  position(name: string): EpochPosition | undefined {
    const last = this.#databases.get(name)?.at(-1);
    return last && { txid: last.maxTxid, checksum: last.postApplyChecksum, epoch: last.epoch };
  }

  appliedPosition(name: string): EpochPosition | undefined {
    return this.#applied.get(name);
  }

  isGrounded(): boolean {
    return this.grounded;
  }

  subscribe(listener: (change: StoreChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** An empty database. */
  create(name: string): void {
    this.#databases.set(name, []);
    this.#emit({ kind: 'created', name });
  }

  /** One transaction of `sizeBytes`. */
  commit(name: string, sizeBytes = 200): LogFile {
    const files = this.#databases.get(name) ?? [];
    this.#databases.set(name, files);
    const last = files.at(-1);
    const txid = (last?.maxTxid ?? 0n) + 1n;
    const postApplyChecksum = randomBytes(8).readBigUInt64BE();
    const bytes = makeBytes(Buffer.alloc(sizeBytes, randomBytes(32)), postApplyChecksum);
    const file: StoredFile = {
      path: `${name}/${txid}`,
      minTxid: txid,
      maxTxid: txid,
      sizeBytes: bytes.length,
      epoch: this.#epoch,
      preApplyChecksum: last?.postApplyChecksum ?? 0n,
      postApplyChecksum,
      pageSize: 4096,
      commitPages: 1,
      bytes,
    };
    files.push(file);
    this.#applied.set(name, this.position(name)!);
    this.#emit({ kind: 'transaction', name, file });
    return file;
  }

  async sync(): Promise<void> {
    await Promise.resolve();
  }

  /** Retention: removes all but the newest `count` files. */
  forget(name: string, count: number): void {
    const files = this.#databases.get(name) ?? [];
    this.#databases.set(name, files.slice(-count));
  }

  remove(name: string): void {
    this.#databases.delete(name);
    this.#applied.delete(name);
    this.#emit({ kind: 'dropped', name });
  }

  /** Readers see everything that was received. */
  apply(name: string): void {
    this.#applied.set(name, this.position(name)!);
    this.#emit({ kind: 'applied', name });
  }

  filesAfter(name: string, position: EpochPosition): readonly LogFile[] | undefined {
    const files = this.#databases.get(name);
    if (files === undefined) return undefined;
    if (position.txid === 0n) return files[0]?.minTxid === 1n ? files : undefined;
    const at = files.findIndex((file) => file.maxTxid === position.txid);
    if (at >= 0) return files[at]!.postApplyChecksum === position.checksum ? files.slice(at + 1) : undefined;
    const first = files[0];
    if (first?.minTxid === position.txid + 1n && first.preApplyChecksum === position.checksum) return files;
    return undefined;
  }

  readFile(file: LogFile): Promise<Buffer> | AsyncIterable<Buffer> {
    const name = file.path.slice(0, file.path.lastIndexOf('/'));
    const stored = (file as StoredFile).bytes;
    const bytes = this.damage?.(name, Buffer.from(stored)) ?? stored;
    return bytes.length <= CHUNK ? this.#count(bytes) : this.#pieces(bytes);
  }

  hold(): { move(): void; release(): void } {
    return { move: () => {}, release: () => {} };
  }

  async snapshot(name: string): Promise<SnapshotSource> {
    this.snapshots++;
    const at = this.position(name)!;
    const bytes = makeBytes(randomBytes(300_000), at.checksum);
    const file: Header = {
      minTxid: 1n,
      maxTxid: at.txid,
      sizeBytes: bytes.length,
      epoch: at.epoch,
      preApplyChecksum: 0n,
      postApplyChecksum: at.checksum,
      pageSize: 4096,
      commitPages: 1,
    };
    return { file, chunks: () => this.#pieces(bytes) };
  }

  endOfEpoch(): EpochPosition | undefined {
    return undefined;
  }

  pagesOf(): { pageSize: number; pages: number } {
    return { pageSize: 4096, pages: 1 };
  }

  /** These files hold no pages: whoever asks gets a snapshot. */
  async difference(): Promise<SnapshotSource> {
    throw new KiteError('ERR_CAPTURE_COPY', 'no pages');
  }

  announced(): readonly string[] {
    return this.databases();
  }

  needsResync(): undefined {
    return undefined;
  }

  async pageChecksums(): Promise<undefined> {
    return undefined;
  }

  async arrives(): Promise<'new'> {
    return 'new';
  }

  async receive(name: string, header: Header): Promise<IncomingFile> {
    this.openIncoming++;
    this.begun.push(`${name} ${header.minTxid}-${header.maxTxid}`);
    const pieces: Buffer[] = [];
    const close = (): void => {
      this.openIncoming--;
    };
    return {
      write: async (chunk) => {
        await this.writeGate.get(name);
        pieces.push(chunk);
      },
      abort: async () => close(),
      finish: async () => {
        const bytes = Buffer.concat(pieces);
        if (!isWhole(bytes, header)) throw new KiteError('ERR_LTX_DAMAGED', `${name} came damaged`);
        const at = this.position(name);
        if (header.minTxid === 1n) {
          if (at !== undefined && at.txid > 0n) this.setAside.push(`${name} ${at.txid}`);
          this.#databases.set(name, []);
        }
        const files = this.#databases.get(name) ?? [];
        files.push({ ...header, path: `${name}/${header.maxTxid}`, bytes });
        this.#databases.set(name, files);
        this.finished.push(`${name} ${header.minTxid}-${header.maxTxid}`);
        close();
        if (this.appliesAtOnce) this.apply(name);
      },
    };
  }

  async drop(name: string): Promise<void> {
    this.#databases.delete(name);
    this.#applied.delete(name);
  }

  async #count(bytes: Buffer): Promise<Buffer> {
    this.bytesRead += bytes.length;
    return bytes;
  }

  async *#pieces(bytes: Buffer): AsyncGenerator<Buffer> {
    for (let at = 0; at < bytes.length; at += CHUNK) {
      const piece = bytes.subarray(at, at + CHUNK);
      this.bytesRead += piece.length;
      yield piece;
    }
  }

  #emit(change: StoreChange): void {
    for (const listener of this.#listeners) listener(change);
  }
}

/** Whether a replica's log ends where the primary's does, for every database of both. */
export function sameEnds(primary: MemoryStore, replica: MemoryStore): boolean {
  const names = new Set([...primary.databases(), ...replica.databases()]);
  return [...names].every((name) => {
    const [ours, theirs] = [primary.position(name), replica.position(name)];
    return ours?.txid === theirs?.txid && ours?.checksum === theirs?.checksum;
  });
}
