import { pageChecksumInto } from '../ltx/checksum.js';
import { lockPgno } from '../ltx/format.js';
import { READ_VERSION_OFFSET, WRITE_VERSION_OFFSET } from '../sqlite/database-header.js';
import type { CheckProgress } from '../store/background-check.js';
import type { JournalVersions, PageChecksums } from '../store/page-checksums.js';
import { monotonicMs } from '../util/clock.js';
import { readFully } from './descriptor-io.js';
import { PageReader } from './page-reader.js';
import type { WalConnection } from './wal-connection.js';

/** What the pages should be. */
export interface Committed {
  readonly checksums: PageChecksums;
  readonly journalVersions: JournalVersions;
  readonly pageSize: number;
}

export interface ReplicaCheckResult {
  /** A page that is not as it was committed; the check has ended. */
  readonly damagedPgno?: number;
  readonly more: boolean;
  /** Now and then, and at the end. */
  readonly progress?: CheckProgress;
}

/** Reading the WAL for suspects costs as much as the WAL is long: so many are collected, for so long. */
const SUSPECTS_MAX = 4096;
const SUSPECTS_AGE_MS = 5000;
const PROGRESS_INTERVAL_MS = 1000;

/**
 * The full check of one database of a replica, behind its opening: each page against the checksum with which it was
 * committed. The file is read first, without any lock: what differs there is mostly newer in the WAL, and is looked at
 * again under the write lock, where neither file can change but by a checkpoint, which copies what the WAL holds.
 */
export class ReplicaCheck {
  #nextPgno = 1;
  /** What is added later is verified as it comes. */
  readonly #pages: number;
  readonly #suspects = new Set<number>();
  #confirmAtMs = Infinity;
  #progressAtMs = 0;
  readonly #sum = new Uint32Array(2);

  constructor(pages: number) {
    this.#pages = pages;
  }

  /** To be called between two transactions: `committed` is what the last one has left. */
  step(connection: WalConnection, committed: Committed, maxBytes: number): ReplicaCheckResult {
    const pages = Math.min(this.#pages, committed.checksums.pages);
    if (this.#nextPgno <= pages && this.#suspects.size < SUSPECTS_MAX) {
      this.#readFile(connection.files.databaseFd, committed, pages, maxBytes);
    }
    const nowMs = monotonicMs();
    const ended = this.#nextPgno > pages;
    if (
      this.#suspects.size > 0 &&
      (ended || nowMs >= this.#confirmAtMs || this.#suspects.size >= SUSPECTS_MAX)
    ) {
      const damagedPgno = this.#confirm(connection, committed);
      if (damagedPgno !== undefined) return { damagedPgno, more: false };
    }
    const more = !ended || this.#suspects.size > 0;
    if (more && nowMs < this.#progressAtMs) return { more };
    this.#progressAtMs = nowMs + PROGRESS_INTERVAL_MS;
    const read = Math.min(this.#nextPgno - 1, pages);
    return { more, progress: { checkedPages: Math.max(0, read - this.#suspects.size), pages } };
  }

  #readFile(fd: number, committed: Committed, pages: number, maxBytes: number): void {
    const { pageSize } = committed;
    const first = this.#nextPgno;
    const count = Math.min(pages - first + 1, Math.max(1, Math.floor(maxBytes / pageSize)));
    const bytes = Buffer.alloc(count * pageSize);
    readFully(fd, bytes, (first - 1) * pageSize);
    for (let i = 0; i < count; i += 1) {
      if (this.#isCommitted(first + i, bytes.subarray(i * pageSize, (i + 1) * pageSize), committed)) continue;
      if (this.#suspects.size === 0) this.#confirmAtMs = monotonicMs() + SUSPECTS_AGE_MS;
      this.#suspects.add(first + i);
    }
    this.#nextPgno = first + count;
  }

  /** Looks at the suspects under the write lock, if it can be had; returns one that is damaged. */
  #confirm(connection: WalConnection, committed: Committed): number | undefined {
    let damagedPgno: number | undefined;
    connection.tryReading(() => {
      const reader = new PageReader(connection.files);
      damagedPgno = [...this.#suspects].find(
        (pgno) => pgno <= committed.checksums.pages && !this.#isCommitted(pgno, reader.read(pgno), committed),
      );
      this.#suspects.clear();
    });
    return damagedPgno;
  }

  /** Page 1 is another one here than on the primary by its journal-mode bytes (DESIGN §6). */
  #isCommitted(pgno: number, page: Buffer, { checksums, journalVersions, pageSize }: Committed): boolean {
    if (pgno === lockPgno(pageSize)) return true;
    if (pgno === 1) {
      page[WRITE_VERSION_OFFSET] = journalVersions.write;
      page[READ_VERSION_OFFSET] = journalVersions.read;
    }
    pageChecksumInto(pgno, page, this.#sum, 0);
    return checksums.matches(pgno, this.#sum[0]!, this.#sum[1]!);
  }
}
