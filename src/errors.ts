/**
 * The one error table. Every error that a person or a peer can meet has a code here, with what to do
 * about it, whether trying again can help, and how it shows as an exit code, an HTTP status and a gRPC
 * status. docs/errors.md is made from it (`npm run docs`).
 */

/** What the table says of one error. */
export interface ErrorRow {
  /** What a person should do about it. */
  readonly action: string;
  /** Whether the same call may succeed later with nothing changed. */
  readonly retry: boolean;
  /** Exit code of the command line: 1 failed, 2 usage or configuration. */
  readonly exit: 1 | 2;
  readonly http: number;
  /** gRPC status code number (see grpc.status). */
  readonly grpc: number;
}

const row = (action: string, at: Partial<Omit<ErrorRow, 'action'>> = {}): ErrorRow => ({
  action,
  retry: false,
  exit: 1,
  http: 500,
  grpc: 13,
  ...at,
});

/** Rows are sorted by area; an area is a folder of src/. */
export const ERRORS = {
  ERR_INTERNAL: row('This is a bug in KiteFS: report it with the log.'),

  ERR_APPLIER_DAMAGED: row(
    '`kitefs repair DB` makes it anew from a replica or its backup (docs/runbooks/damaged-database.md). The other databases go on.',
    { http: 503, grpc: 9 },
  ),
  ERR_APPLIER_DIVERGED: row('The node gets the database from the primary again by itself.', {
    retry: true,
    http: 503,
    grpc: 9,
  }),
  ERR_APPLIER_IMPORT: row('Give a whole SQLite database file (`sqlite3 FILE "PRAGMA integrity_check"`).', {
    http: 422,
    grpc: 3,
  }),
  ERR_APPLIER_REPLACE: row(
    '`kitefs repair DB` makes it anew from a replica or its backup. Or remove it from the mount first, or import under another name (docs/runbooks/damaged-database.md).',
    { http: 409, grpc: 9 },
  ),
  ERR_APPLIER_IO: row('Check space and health of data.dir, and that the mount answers.', {
    retry: true,
    grpc: 14,
  }),
  ERR_APPLIER_LOCKED: row('End the process that holds the lock, or try again.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_APPLIER_RESTARTED: row('Nothing: the call is made again.', { retry: true, http: 503, grpc: 14 }),

  ERR_BACKUP_BEHIND: row('Try again, or look at `kitefs status` for what holds the backups up.', {
    retry: true,
    http: 504,
    grpc: 4,
  }),
  ERR_BACKUP_DENIED: row(
    'Check the credentials, and that they may list, read, write and delete below the path (docs/backup.md).',
    { http: 502, grpc: 7 },
  ),
  ERR_BACKUP_FENCED: row('Nothing: the primary of the higher epoch writes the backups.', {
    http: 409,
    grpc: 9,
  }),
  ERR_BACKUP_FULL: row('Free space at the destination of the backups.', { retry: true, http: 507, grpc: 8 }),
  ERR_BACKUP_HOST_KEY: row(
    "Compare the key with the server's own (/etc/ssh/ssh_host_*.pub); if it is the same, give it as host-key or add it to known_hosts.",
    { http: 502, grpc: 7 },
  ),
  ERR_BACKUP_MISSING: row('Check the name; `kitefs backups` lists what there is.', { http: 404, grpc: 5 }),
  ERR_BACKUP_NO_BUCKET: row('Make the bucket or the folder, or correct its name.', { http: 502, grpc: 5 }),
  ERR_BACKUP_OTHER_CLUSTER: row('Give this cluster a path of its own, or remove what is there.', {
    http: 409,
    grpc: 9,
  }),
  ERR_BACKUP_OTHER_WRITER: row(
    'End the other program (Litestream?) that writes to this path, or give KiteFS a path of its own.',
    { retry: true, http: 409, grpc: 9 },
  ),
  ERR_BACKUP_UNREACHABLE: row('Nothing: it is tried again; check the endpoint if it stays.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_BACKUP_UNSUPPORTED: row('Use a server that can do it (docs/backup.md).', { http: 502, grpc: 9 }),
  ERR_BACKUP_URL: row('Give one such as s3://BUCKET/PATH or file:///PATH (docs/backup.md).', {
    exit: 2,
    http: 400,
    grpc: 3,
  }),

  ERR_CAPTURE_COPY: row('Try again when the database is written to less.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_CAPTURE_DAMAGED: row(
    '`kitefs repair DB` makes it anew from a replica or its backup (docs/runbooks/damaged-database.md). The other databases go on.',
    { http: 503, grpc: 9 },
  ),
  ERR_CAPTURE_DIED: row('Look into the log; the node gives its role away and starts again.', { retry: true }),
  ERR_CAPTURE_FENCED: row('Write to the primary; this node is none any more.', { http: 503, grpc: 9 }),
  ERR_CAPTURE_IO: row('Check space and health of data.dir.', { retry: true, grpc: 14 }),
  ERR_CAPTURE_SLOTS: row('Restart the node: it has seen 65536 databases come and go.'),
  ERR_CAPTURE_UNKNOWN: row('Check the name of the database with `kitefs status`.', { http: 404, grpc: 5 }),

  ERR_CLI_CHECKS: row('Follow what each line says, then look again with `kitefs doctor`.'),
  ERR_CLI_DEMO: row('Look into the log that is named; `kitefs doctor` checks the machine.'),
  ERR_CLI_FILE: row('Check the path and its permissions.'),
  ERR_CLI_LOST: row('Look at `kitefs lost ls` for what there is.'),
  ERR_CLI_UNREACHABLE: row('Check that the node runs and that -url is its http.addr.', { retry: true }),
  ERR_CLI_USAGE: row('See `kitefs --help`.', { exit: 2 }),

  ERR_CONFIG_FILE: row('Name the file with -config, or write one (docs/configuration.md).', { exit: 2 }),
  ERR_CONFIG_INVALID: row('Correct the lines named (docs/configuration.md).', { exit: 2 }),

  ERR_DAEMON_NOT_PRIMARY: row('Ask the primary; `kitefs status` names it.', {
    retry: true,
    http: 409,
    grpc: 9,
  }),
  ERR_DAEMON_NOT_READY: row('Nothing: the lease goes to another node, or to this one a little later.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_DAEMON_PORT: row('Choose another address, or end what listens there.', { exit: 2 }),

  ERR_HALT_ENDED: row('Look at the events of both nodes for why; then run the command again.', {
    retry: true,
    http: 409,
    grpc: 9,
  }),
  ERR_HALT_HELD: row('Wait until whoever has it is done, or end that.', { retry: true, http: 409, grpc: 9 }),
  ERR_HALT_JOURNAL_MODE: row(
    'Run `PRAGMA journal_mode=wal` on the primary first, or the command on the primary itself.',
    { http: 409, grpc: 9 },
  ),
  ERR_HALT_UNSUPPORTED: row('Run the command on the primary, or set `fuse.driver: kernel` on this node.', {
    http: 409,
    grpc: 9,
  }),

  ERR_HTTP_EVENT_STREAMS: row(
    'Let one client of /events per application listen and tell the others; close those that are not needed.',
    { retry: true, http: 503, grpc: 8 },
  ),
  ERR_HTTP_LOOPBACK: row('Call it on the node itself, through 127.0.0.1, or set http.token.', {
    http: 403,
    grpc: 7,
  }),
  ERR_HTTP_NOT_FOUND: row('See docs/http-api.md for the paths.', { http: 404, grpc: 5 }),
  ERR_HTTP_NOT_REACHED: row('Wait longer, or ask the primary.', { retry: true, http: 504, grpc: 4 }),
  ERR_HTTP_REQUEST: row('Correct the request (docs/http-api.md).', { http: 400, grpc: 3 }),
  ERR_HTTP_TOKEN: row('Set KITEFS_HTTP_TOKEN to the http.token of the node.', { http: 401, grpc: 16 }),
  ERR_HTTP_TOO_LARGE: row('Raise http.max-import, or free space in data.dir.', { http: 413, grpc: 8 }),

  ERR_LEASE_DENIED: row(
    'Give a Consul token (lease.consul.token) that may read and write lease.consul.key and all keys below it.',
    { exit: 2, http: 503, grpc: 7 },
  ),
  ERR_LEASE_DUPLICATE_NODE: row(
    'Two processes use one node id: stop the other one, or run `kitefs node reset-id` on the copied data.dir (docs/runbooks/node-id.md).',
    { exit: 2, http: 409, grpc: 6 },
  ),
  ERR_LEASE_EPOCH_BACK: row(
    'The lease was put back to an older state: check that the cluster uses one lease, not a restored copy.',
    { retry: true, http: 409, grpc: 9 },
  ),
  ERR_LEASE_HANDOFF: row('Check that the target is a live candidate (`kitefs status`), then try again.', {
    retry: true,
    http: 409,
    grpc: 9,
  }),
  ERR_LEASE_NOT_CANDIDATE: row('Promote another node, or set `lease.candidate: true` on it and restart it.', {
    http: 409,
    grpc: 9,
  }),
  ERR_LEASE_OTHER_CLUSTER: row(
    'Point the lease at the cluster of this data directory, or start with an empty data directory.',
    { exit: 2, http: 409, grpc: 9 },
  ),
  ERR_LEASE_RECORD: row('The lease holds something else: give this cluster a key or file of its own.', {
    exit: 2,
    grpc: 15,
  }),
  ERR_LEASE_UNREACHABLE: row('Check that the lease store runs and can be reached from this node.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),

  ERR_LTX_DAMAGED: row(
    'The LTX file was cut off or changed. Take it from a peer or a backup; KiteFS uses nothing of it.',
    { http: 422, grpc: 15 },
  ),
  ERR_LTX_FOREIGN: row('Give an LTX file, as LiteFS, Litestream or KiteFS writes them.', {
    http: 415,
    grpc: 3,
  }),
  ERR_LTX_INVALID: row('This is a bug in KiteFS: it tried to write an LTX file that the format forbids.'),
  ERR_LTX_NOT_CONTIGUOUS: row(
    'Give files that follow one another, oldest first, with none left out between them.',
    { http: 409, grpc: 9 },
  ),
  ERR_LTX_POSITION: row('Give a position as <txid>/<checksum>, 16 hex digits each.', {
    exit: 2,
    http: 400,
    grpc: 3,
  }),

  ERR_MOUNT_BUSY: row('Choose another `fuse.dir`, or unmount what is there (`umount <dir>`).', { exit: 2 }),
  ERR_MOUNT_DEVICE: row(
    'Load the kernel module (`modprobe fuse`); in a container pass `--device /dev/fuse`.',
  ),
  ERR_MOUNT_DIRECTORY: row('Make `fuse.dir` an existing, empty folder.', { exit: 2 }),
  ERR_MOUNT_DRIVER: row('Install libfuse2 and fuse-native, or set `fuse.driver: kernel`.', { exit: 2 }),
  ERR_MOUNT_FAILED: row('Look at the message of mount(8) and at `dmesg`.'),
  ERR_MOUNT_GONE: row('Start the node again; end whatever unmounts it.'),
  ERR_MOUNT_PERMISSION: row(
    'Run as root (in a container with `--cap-add SYS_ADMIN --device /dev/fuse`), or set `fuse.driver: fuse-native`.',
  ),

  ERR_PROXY_EXPECT: row('Send Expect: 100-continue, or none.', { http: 417, grpc: 3 }),
  ERR_PROXY_HEADERS: row('Make cookies and headers of the request smaller, or raise proxy.max-header.', {
    http: 431,
    grpc: 3,
  }),
  ERR_PROXY_LOOP: row('Check proxy.target and proxy.advertise: one of them leads back to a proxy.', {
    http: 508,
    grpc: 9,
  }),
  ERR_PROXY_METHOD: row('Send requests to the proxy as to a server, not as to a forward proxy.', {
    http: 501,
    grpc: 12,
  }),
  ERR_PROXY_NO_PRIMARY: row('Try again: a primary is elected within about lease.ttl.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_PROXY_NOT_PRIMARY: row('Nothing: the node that sent it asks the new primary.', {
    retry: true,
    http: 421,
    grpc: 9,
  }),
  ERR_PROXY_PEER: row('Give every node the same peer.secret; clients do not send Kitefs-Forwarded.', {
    http: 403,
    grpc: 7,
  }),
  ERR_PROXY_PRIMARY_GONE: row(
    'The primary may have carried it out: look before you send it again, or send an Idempotency-Key.',
    { http: 502, grpc: 14 },
  ),
  ERR_PROXY_REQUEST: row('Correct the request: its framing or a header is malformed (docs/proxy.md).', {
    http: 400,
    grpc: 3,
  }),
  ERR_PROXY_STALE: row('Ask for less freshness, or try again when this node has caught up.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_PROXY_STOPPING: row('Try again: another node, or this one after its restart, answers.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_PROXY_TARGET: row('Look at the log of the application: it ended or broke off its answer.', {
    http: 502,
    grpc: 14,
  }),
  ERR_PROXY_SLOW: row('Send the request faster, or raise proxy.read-timeout.', {
    retry: true,
    http: 408,
    grpc: 4,
  }),
  ERR_PROXY_TARGET_DOWN: row('Start the application, or correct proxy.target.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_PROXY_TOO_LARGE: row('Name the path in proxy.always-forward, or raise proxy.buffer.', {
    http: 413,
    grpc: 8,
  }),
  ERR_PROXY_TIMEOUT: row('Raise proxy.read-timeout or proxy.write-timeout, or send and answer faster.', {
    retry: true,
    http: 504,
    grpc: 4,
  }),

  ERR_REPLICATION_CLUSTER: row(
    'The node belongs to another cluster: correct its peer addresses, or give it an empty data.dir.',
    { http: 409, grpc: 9 },
  ),
  ERR_REPLICATION_DISCONNECTED: row('Nothing: the node connects again by itself.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_REPLICATION_EPOCH: row('Nothing: the node with the lower epoch steps down and follows.', {
    retry: true,
    http: 409,
    grpc: 9,
  }),
  ERR_REPLICATION_INSECURE: row('Set peer.secret, or listen on 127.0.0.1.', { exit: 2, grpc: 9 }),
  ERR_REPLICATION_LISTEN: row('Choose another peer.addr, or end what listens there.', { exit: 2 }),
  ERR_REPLICATION_MESSAGE: row(
    'Run the same version of KiteFS on both nodes; else report it with both logs.',
    {
      http: 400,
      grpc: 3,
    },
  ),
  ERR_REPLICATION_MESSAGE_SIZE: row('Run the same version of KiteFS on both nodes.', { http: 413, grpc: 8 }),
  ERR_REPLICATION_NODE_ID: row('Give one of the two nodes a data.dir of its own.', { http: 409, grpc: 6 }),
  ERR_REPLICATION_NOT_PRIMARY: row('Nothing: the node looks for the primary by itself.', {
    retry: true,
    http: 421,
    grpc: 9,
  }),
  ERR_REPLICATION_ORDER: row('Nothing: the database is fetched anew from where the log ends.', {
    retry: true,
    http: 409,
    grpc: 11,
  }),
  ERR_REPLICATION_SECRET: row('Set the same peer.secret on all nodes.', { http: 401, grpc: 16 }),
  ERR_REPLICATION_SECRET_WEAK: row('Take one from `openssl rand -hex 32`.', { exit: 2 }),
  ERR_REPLICATION_SILENT: row('Check the network between the nodes, and their load.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_REPLICATION_UNREACHABLE: row('Check that the primary runs and that its peer.addr can be reached.', {
    retry: true,
    http: 503,
    grpc: 14,
  }),
  ERR_REPLICATION_VERSION: row('Run the same version of KiteFS on all nodes.', { http: 426, grpc: 12 }),

  ERR_RESTORE_BUSY: row('Wait for the other restore, or end it.', { http: 409, grpc: 9 }),
  ERR_RESTORE_CHECK: row('Restore an earlier moment (`kitefs backups` lists what there is).', { grpc: 15 }),
  ERR_RESTORE_DAMAGED: row(
    'Restore the moment named instead, or from another destination; `kitefs backups` lists what there is.',
    { grpc: 15 },
  ),
  ERR_RESTORE_EXISTS: row('Give -o another path, or move that file away.', { http: 409, grpc: 6 }),
  ERR_RESTORE_FILE: row('Check the folder of the output file and its permissions.'),
  ERR_RESTORE_FULL: row(
    'Free space on that disk and give the same command again: it goes on after the last whole file. Or give -o a path on another disk.',
    { http: 507, grpc: 8 },
  ),
  ERR_RESTORE_MOMENT: row('Take one of those that `kitefs backups` lists.', { http: 404, grpc: 5 }),
  ERR_RESTORE_NOTHING: row('Check the URL or name; `kitefs backups URL` lists what is there.', {
    http: 404,
    grpc: 5,
  }),
  ERR_RESTORE_RUNNING: row(
    'Use `kitefs rewind` at the primary of the running cluster; or restore to a new file with -o; or stop all nodes first.',
    { http: 409, grpc: 9 },
  ),

  ERR_REPAIR_SOUND: row('Nothing; to put a database back to an earlier moment use `kitefs rewind`.', {
    http: 409,
    grpc: 9,
  }),

  ERR_REWIND_GONE: row('Give the command again.', { http: 409, grpc: 9 }),

  ERR_STORE_DAMAGED: row('Restore this file of the data directory, or start with an empty data.dir.'),
  ERR_STORE_DIRECTORY: row('Give data.dir a folder that this user may write to.', { exit: 2 }),
  ERR_STORE_FULL: row('Free space on the disk of data.dir.', { retry: true, http: 507, grpc: 8 }),
  ERR_STORE_LOCKED: row('End the other process, or give each node a data.dir of its own.', { exit: 2 }),
  ERR_STORE_LOG_DAMAGED: row(
    'Move the file named out of the way and get the database from a peer or a backup.',
    { http: 503, grpc: 15 },
  ),
  ERR_STORE_LOG_ORDER: row('The node gets the database from the primary again by itself.', { grpc: 9 }),
  ERR_STORE_NAME: row(
    'Use a path without `.`, `..` or empty parts, of at most 240 bytes when URL-encoded, that does not end as SQLite ends its own files.',
    { http: 400, grpc: 3 },
  ),
  ERR_STORE_OTHER_CLUSTER: row('Use the data.dir or the lease of one cluster only.', {
    exit: 2,
    http: 409,
    grpc: 9,
  }),
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof ERRORS;

/** An error of the table. `message` says what happened and to what; the row says what to do. */
export class KiteError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'KiteError';
    this.code = code;
  }

  get row(): ErrorRow {
    return ERRORS[this.code];
  }

  /** One line for a person: what happened, and what to do. */
  describe(): string {
    return `${this.message}. ${this.row.action} [${this.code}]`;
  }
}

/** Takes anything thrown; returns it as a KiteError (ERR_STORE_FULL for a full disk, ERR_INTERNAL for anything else). */
export function toKiteError(thrown: unknown): KiteError {
  if (thrown instanceof KiteError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  // Whatever part met it, there is one thing to do about it.
  if (
    thrown instanceof Error &&
    'code' in thrown &&
    /^(ENOSPC|EDQUOT|SQLITE_FULL)$/.test(String(thrown.code))
  ) {
    return new KiteError('ERR_STORE_FULL', message, { cause: thrown });
  }
  return new KiteError('ERR_INTERNAL', message, { cause: thrown });
}
