import type { Attributes } from './protocol.js';
import type { DatabaseFiles } from './database-files.js';
import { WAKE_NODE_ID } from './waker.js';

/**
 * What the kernel knows by number. A number is never used for a second file: the kernel would show the
 * old one's cached pages (trap 26).
 */

export type NodeKind =
  | 'folder'
  | 'database'
  | 'wal'
  | 'journal'
  | 'shm'
  /** Kept on this node only, in `<data>/tree`; or a file of which it is not known yet what it is. */
  | 'file'
  | 'special'
  | 'wake';

export const ROOT_NODE_ID = 1;

let nextId = WAKE_NODE_ID + 1;

export class FsNode {
  readonly id: number;
  kind: NodeKind;
  /** Folder and name; undefined for the top, and after an unlink. */
  parent: FsNode | undefined;
  name: string;
  /** Of a folder: what has been looked up in it. */
  readonly children = new Map<string, FsNode>();
  /** Of `database`, `wal`, `journal`, `shm`. */
  database: DatabaseFiles | undefined;
  /** Of a file with open handles: the descriptor of the file behind it. */
  fd = -1;
  opens = 0;
  /** Of `shm`. */
  memory: MemoryFile | undefined;
  /** Removed from its folder while open: still readable. */
  unlinked = false;
  /** References that the kernel holds. */
  lookups = 0;

  constructor(kind: NodeKind, parent: FsNode | undefined, name: string, id = nextId++) {
    this.id = id;
    this.kind = kind;
    this.parent = parent;
    this.name = name;
    parent?.children.set(name, this);
  }

  /** Path in the mount, without a leading slash. */
  get path(): string {
    const above = this.parent?.path ?? '';
    return above === '' ? this.name : `${above}/${this.name}`;
  }

  /** Takes it out of its folder; whoever has it open goes on. */
  detach(): void {
    this.parent?.children.delete(this.name);
    this.unlinked = true;
  }
}

/** A file that lives in memory: `-shm`, whose failed write-back would damage the wal-index (trap 17). */
export class MemoryFile {
  #bytes = Buffer.alloc(0);
  #size = 0;
  mode: number;
  uid: number;
  gid: number;
  #mtimeMs = Date.now();

  constructor(mode: number, uid: number, gid: number) {
    this.mode = mode;
    this.uid = uid;
    this.gid = gid;
  }

  get attributes(): Attributes {
    return {
      size: this.#size,
      blocks: Math.ceil(this.#size / 512),
      mode: 0o100000 | this.mode,
      nlink: 1,
      uid: this.uid,
      gid: this.gid,
      atimeMs: this.#mtimeMs,
      mtimeMs: this.#mtimeMs,
      ctimeMs: this.#mtimeMs,
    };
  }

  read(offset: number, sizeBytes: number): Buffer {
    return this.#bytes.subarray(Math.min(offset, this.#size), Math.min(offset + sizeBytes, this.#size));
  }

  write(offset: number, data: Uint8Array): void {
    if (offset + data.length > this.#size) this.resize(offset + data.length);
    this.#bytes.set(data, offset);
    this.#mtimeMs = Date.now();
  }

  resize(sizeBytes: number): void {
    if (sizeBytes > this.#bytes.length) {
      const larger = Buffer.alloc(Math.max(sizeBytes, this.#bytes.length * 2, 65_536));
      this.#bytes.copy(larger, 0, 0, this.#size);
      this.#bytes = larger;
    } else if (sizeBytes < this.#size) {
      this.#bytes.fill(0, sizeBytes, this.#size);
    }
    this.#size = sizeBytes;
    this.#mtimeMs = Date.now();
  }
}
