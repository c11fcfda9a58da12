import fs from 'node:fs';
import { dirname, join } from 'node:path';

import { WAL_VERSION } from '../sqlite/database-header.js';
import { writeFully } from '../util/files.js';

/** Announces opens to the mount, so that it takes them for the applier's (names in the mount). */
export type Arm = (names: readonly string[]) => Promise<void>;

/**
 * The applier's own descriptors of a database, beside those of its SQLite connection. POSIX locks belong to the
 * process: closing any descriptor of a file gives up all of them, so these are closed after the last connection
 * of this process, and never before.
 */
export class DatabaseFiles {
  readonly path: string;
  readonly databaseFd: number;
  readonly walFd: number;
  readonly shmFd: number;
  /** What the kernel called the descriptors when they were opened. */
  readonly #names: readonly (string | undefined)[];

  private constructor(path: string, flags: number) {
    this.path = path;
    const opened: number[] = [];
    const open = (file: string, how: number): number => {
      const fd = fs.openSync(file, how);
      opened.push(fd);
      return fd;
    };
    try {
      this.databaseFd = open(path, fs.constants.O_RDONLY);
      this.walFd = open(`${path}-wal`, flags);
      this.shmFd = open(`${path}-shm`, flags);
      this.#names = [nameOf(this.walFd), nameOf(this.shmFd)];
    } catch (error) {
      for (const fd of opened) fs.closeSync(fd);
      throw error;
    }
  }

  /** A connection in WAL mode must be open: it has made `-wal` and `-shm`. */
  static async open(mountDir: string, name: string, arm: Arm | undefined): Promise<DatabaseFiles> {
    await arm?.([`${name}-wal`, `${name}-shm`]);
    return new DatabaseFiles(join(mountDir, name), openFlags(arm));
  }

  /**
   * Whether the paths still lead to the files that are open here (trap 15). The kernel knows without asking the mount: it
   * calls an open file that was unlinked or replaced by another name.
   */
  areCurrent(): boolean {
    const [wal, shm] = this.#names;
    if (wal !== undefined && wal === nameOf(this.walFd) && shm !== undefined && shm === nameOf(this.shmFd))
      return true;
    return isSameFile(this.walFd, `${this.path}-wal`) && isSameFile(this.shmFd, `${this.path}-shm`);
  }

  close(): void {
    for (const fd of [this.databaseFd, this.walFd, this.shmFd]) fs.closeSync(fd);
  }
}

/** Path of an open file, which ends with `(deleted)` once it has no name any more; undefined without /proc. */
function nameOf(fd: number): string | undefined {
  try {
    return fs.readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return undefined;
  }
}

function isSameFile(fd: number, path: string): boolean {
  const there = fs.statSync(path, { throwIfNoEntry: false });
  const here = fs.fstatSync(fd);
  return there !== undefined && there.ino === here.ino && there.dev === here.dev;
}

/** O_SYNC is what a mount that knows no pids goes by; without one it would cost an fsync per write. */
const openFlags = (arm: Arm | undefined): number => fs.constants.O_RDWR | (arm ? fs.constants.O_SYNC : 0);

/** Makes an empty database in WAL mode, so that its first transaction can come through the WAL as all others do. */
export async function createDatabase(
  mountDir: string,
  name: string,
  pageSize: number,
  arm: Arm | undefined,
): Promise<void> {
  const path = join(mountDir, name);
  fs.mkdirSync(dirname(path), { recursive: true });
  await arm?.([name]);
  // No SQLite connection of this process has it open, so closing gives no lock up.
  const fd = fs.openSync(path, openFlags(arm) | fs.constants.O_CREAT, 0o644);
  try {
    writeFully(fd, emptyFirstPage(pageSize), 0);
  } finally {
    fs.closeSync(fd);
  }
}

/** Page 1 of a database without tables (sqlite.org/fileformat2.html §1.3 and §1.6), in WAL mode. */
export function emptyFirstPage(pageSize: number): Buffer {
  const page = Buffer.alloc(pageSize);
  page.write('SQLite format 3\0', 0, 'latin1');
  page.writeUInt16BE(pageSize === 65_536 ? 1 : pageSize, 16);
  page.set([WAL_VERSION, WAL_VERSION, 0, 64, 32, 32], 18);
  page.writeUInt32BE(1, 24); // change counter
  page.writeUInt32BE(1, 28); // pages
  page.writeUInt32BE(4, 44); // schema format
  page.writeUInt32BE(1, 56); // UTF-8
  page.writeUInt32BE(1, 92); // "pages" is valid for this change counter
  page.writeUInt32BE(3_045_000, 96); // any SQLite that knows WAL
  page.writeUInt8(0x0d, 100); // an empty leaf of a table: sqlite_schema
  page.writeUInt16BE(pageSize === 65_536 ? 0 : pageSize, 105);
  return page;
}

/** Removes a database through the mount: the database itself last, so that it never stands without its WAL. */
export async function removeDatabase(mountDir: string, name: string, arm: Arm | undefined): Promise<void> {
  const names = ['-wal', '-shm', '-journal', ''].map((suffix) => name + suffix);
  const there = names.filter((each) => fs.existsSync(join(mountDir, each)));
  if (there.length === 0) return;
  await arm?.(there);
  for (const each of there) fs.rmSync(join(mountDir, each), { force: true });
}
