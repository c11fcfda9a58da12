import type { Progress, Repaired, RewindPlan } from '../daemon/rewind.js';
import type { Halted, HaltRequest } from '../halt/locks.js';
import type { NodeStatus } from '../observability/node-status.js';
import type { Wanted } from '../restore/restore.js';
import type { TokenEntry } from '../proxy/token.js';
import type { PrimaryChange } from './events.js';

/** What the admin server asks of a node. Failures are KiteErrors: their rows say the HTTP status. */
export interface NodeApi {
  status(): NodeStatus;
  readonly databases: DatabaseApi;
  /** Makes this node the primary; resolves when it is. `waitMs`: how long the hand-off may wait for writers. */
  promote(request: { readonly waitMs: number; readonly acceptLoss: boolean }): Promise<void>;
  /** On the primary: hands over to this node, or to whichever candidate has everything; resolves with its id. */
  handOff(target: string | undefined, waitMs: number): Promise<string>;
  /** Whether this node is the primary, and where the primary is, as LiteFS says it. */
  primary(): PrimaryChange;
  /** Calls back at each change from now on; returns what ends that. */
  watch(listener: (change: NodeChange) => void): () => void;
}

/** What is asked of a node about its databases, by name. Those that it does not have: ERR_HTTP_NOT_FOUND. */
export interface DatabaseApi {
  /** A consistent copy of a database as one SQLite file; the source is closed when the iteration ends or is left. */
  export(name: string): Promise<ExportedDatabase>;
  /**
   * Makes the SQLite file at `path` the content of the database (created when there is none), as one
   * transaction. Resolves with the new position `<txid>/<checksum>`. With `ifNotExists` nothing is done where there is such a
   * database. The file is the caller's to remove.
   */
  import(
    name: string,
    path: string,
    options?: { readonly ifNotExists: boolean },
  ): Promise<{ readonly position: string; readonly imported: boolean }>;
  /** On the primary: resolves when all backups have what was committed before, of one database or of all. */
  sync(waitMs: number, name: string | undefined): Promise<void>;
  /** On the primary: restores a moment of the backups beside the data and says what would change; see Rewinds. */
  prepareRewind(name: string, wanted: Wanted, onProgress: Progress): Promise<RewindPlan>;
  /** Makes it true, as one transaction; resolves with the position after it. */
  commitRewind(id: string): Promise<string>;
  cancelRewind(id: string): void;
  /** On the primary: makes a database that is out of service anew from its backup. */
  repair(name: string, onProgress: Progress): Promise<Repaired>;
  /** Lets applications of this node write a database though it is a replica (HALT); on the primary it does nothing. */
  halt(request: HaltRequest): Promise<Halted>;
  unhalt(name: string, id: number): Promise<void>;
  /** Resolves with true when readers here see this transaction (or never will), with false after `timeoutMs`. */
  waitFor(name: string, entry: TokenEntry, timeoutMs: number, signal: AbortSignal): Promise<boolean>;
  /** What a client that has been answered by this node until now may have seen of a database; undefined: there is none. */
  seen(name: string): Promise<TokenEntry | undefined>;
}

export type NodeChange =
  | ({ readonly kind: 'primary' } & PrimaryChange)
  /** Readers of this node see it now; under load several transactions at once. */
  | {
      readonly kind: 'transaction';
      readonly name: string;
      readonly txID: string;
      readonly postApplyChecksum: string;
      readonly pageSize: number;
      readonly commit: number;
    };

export interface ExportedDatabase {
  readonly sizeBytes: number;
  chunks(): AsyncIterable<Buffer>;
}
