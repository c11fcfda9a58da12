import { join } from 'node:path';
import { encodeDatabaseName } from './database-name.js';

/** What a node remembers about itself: `<data>/node.json`. */
export interface NodeState {
  readonly nodeId: string;
  /** Highest epoch this node has seen anywhere. */
  readonly epoch: bigint;
  /** Whether it was primary when it last wrote this. */
  readonly wasPrimary: boolean;
}

/** Where the files of one database are. Pure: any thread may compute it. */
export interface DatabasePaths {
  readonly directory: string;
  readonly database: string;
  readonly wal: string;
  readonly journal: string;
  readonly checksums: string;
  readonly ltx: string;
}

/** Paths of a database in a data directory; throws ERR_STORE_NAME. */
export function databasePaths(dataDir: string, name: string): DatabasePaths {
  const directory = join(dataDir, 'dbs', encodeDatabaseName(name));
  return {
    directory,
    database: join(directory, 'database'),
    wal: join(directory, 'database-wal'),
    journal: join(directory, 'database-journal'),
    checksums: join(directory, 'checksums'),
    ltx: join(directory, 'ltx'),
  };
}

/** `<data>`: made or opened, and owned (an OS lock that dies with the process) until `close`. */
export class DataDirectory {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /**
   * Opens or makes a data directory. `nodeId` names a new directory; an existing one keeps its own.
   * A directory in LiteFS's layout is migrated. Throws ERR_STORE_LOCKED, ERR_STORE_DAMAGED.
   */
  static open(_path: string, _options: { nodeId: string }): DataDirectory {
    throw new Error('coming');
  }

  get node(): NodeState {
    throw new Error('coming');
  }

  /** Changes node.json durably: when it returns, a power cut does not undo it. Never lowers the epoch. */
  updateNode(_change: Partial<NodeState>): void {
    throw new Error('coming');
  }

  /** The cluster that this directory belongs to, or undefined when it never joined one. */
  get clusterId(): string | undefined {
    throw new Error('coming');
  }

  /** Joins a cluster for good; throws ERR_STORE_OTHER_CLUSTER when it belongs to another one. */
  joinCluster(_clusterId: string): void {
    throw new Error('coming');
  }

  /** Names of all databases with a folder here, sorted; also those whose `database` was dropped and whose log is kept. */
  names(): string[] {
    throw new Error('coming');
  }

  /** Makes the folders of a database durable; harmless when they exist. */
  createDatabase(_name: string): DatabasePaths {
    throw new Error('coming');
  }

  /** Real folders and other files of the mount. */
  get tree(): string {
    return join(this.path, 'tree');
  }

  /** Gives the directory up. */
  close(): void {
    throw new Error('coming');
  }
}
