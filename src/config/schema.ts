import { z } from 'zod';
import { BadValue, parseBackups, parseFollow } from './backups.js';
import { parseAddresses, parsePatterns, parseRoutes } from './proxy.js';
import { LOG_LEVELS } from '../observability/log.js';
import {
  parseAddress,
  parseBoolean,
  parseDatabaseDurability,
  parseDuration,
  parseExec,
  parseInteger,
  parseList,
  parseMode,
  parseSize,
  parseText,
  parseWaitFor,
} from './values.js';

/**
 * The one description of the configuration: keys of kitefs.yml, KITEFS_… variables, flags, defaults,
 * `--help` and docs/configuration.md come from it. Keys are LiteFS's wherever LiteFS has one, with its
 * default. A property's name is its key in camel case, with the unit of its value (`ttlMs` is `ttl`).
 */

interface About {
  /** What it does, for --help and the documentation; a sentence. */
  readonly doc: string;
  /** What a value looks like. */
  readonly form: string;
  /** The default as one would write it. */
  readonly default: string | undefined;
  /** In words, for a value that is worked out from others when it is not given. */
  readonly derived: string | undefined;
  /** A key that is read and does nothing: why, said wherever it is set. */
  readonly noEffect: string | undefined;
  /** Names of other programs in the environment: read when nothing else says the value. */
  readonly alsoEnv: readonly string[];
  readonly secret: boolean;
  /** true/false: as a flag it needs no value. */
  readonly isSwitch: boolean;
}

type Parser<T> = (raw: unknown) => T | undefined;
type Options = {
  default?: string;
  derived?: string;
  noEffect?: string;
  secret?: boolean;
  alsoEnv?: string[];
};

const registry = z.registry<About>();

/** Builds the settings of one kind: with a default its value is always there. */
function kind<T>(form: string, parse: Parser<T>) {
  function setting(doc: string, options: Options & { default: string }): z.ZodType<T>;
  function setting(doc: string, options?: Options): z.ZodType<T | undefined>;
  function setting(doc: string, options: Options = {}): z.ZodType<T | undefined> {
    const type = z.unknown().transform((given, context): T | undefined => {
      const raw = given ?? options.default;
      if (raw === undefined) return undefined;
      try {
        const value = parse(raw);
        if (value === undefined) context.addIssue(`expected ${form}`);
        return value;
      } catch (error) {
        if (!(error instanceof BadValue)) throw error;
        context.addIssue(error.message);
        return undefined;
      }
    });
    return type.register(registry, {
      doc,
      form,
      default: options.default,
      derived: options.derived,
      noEffect: options.noEffect,
      alsoEnv: options.alsoEnv ?? [],
      secret: options.secret ?? false,
      isSwitch: (parse as unknown) === parseBoolean,
    });
  }
  return setting;
}

const text = kind('text', parseText);
const flag = kind('true or false', parseBoolean);
const integer = kind('a whole number', parseInteger);
const mode = kind('permission bits in octal such as 0644', parseMode);
const duration = kind('a duration such as 500ms, 10s or 1m30s', parseDuration);
const size = kind('a size such as 64MB or 2GB', parseSize);
const list = kind('a list of words', parseList);
const address = kind('an address such as 127.0.0.1:20202 or :20202', parseAddress);
const waitFor = kind('async, quorum or replicas: <number>', parseWaitFor);
const databaseDurability = kind(
  'a list of {name, commit, backup, acknowledge, timeout, on-timeout}',
  parseDatabaseDurability,
);
const backups = kind('a list of {type: s3 | gs | abs | sftp | file, bucket, path, …}, or URLs', parseBackups);
const follow = kind('a URL such as s3://bucket/path or file:///path', parseFollow);
const exec = kind('a command, or a list of {cmd, if-candidate}', parseExec);
const addresses = kind('an address such as localhost:8080, or a list of them', parseAddresses);
const patterns = kind(
  'a list of paths with * for any characters, each with a method before it or not',
  parsePatterns,
);
const routes = kind(
  'a list of {path, methods, as: read | write | passthrough, without-primary, upgrade, max-staleness, read-wait}',
  parseRoutes,
);
const oneOf = <const T extends string>(...words: readonly T[]) =>
  kind(`one of ${words.join(', ')}`, (raw) => words.find((word) => word === raw));

const BACKUP = 'LiteFS Cloud was shut down; backups to object storage are configured by the list backups';
const TRACING = 'KiteFS writes no trace log; see log.level';

export const configSchema = z.strictObject({
  fuse: z.strictObject({
    dir: text('Where the databases are mounted: applications open them here.', { default: '/litefs' }),
    allowOther: flag('Let other users than the one who mounts into the mount.', { default: 'false' }),
    debug: flag('Log every file-system request (slow).', {
      default: 'false',
      noEffect: 'KiteFS does not log requests; see log.level',
    }),
    driver: oneOf('kernel', 'fuse-native')(
      'kernel: FUSE in TypeScript, the fast one, needs mount(2) (root). fuse-native: libfuse 2, slower, needs only fusermount.',
      { default: 'kernel' },
    ),
    otherFiles: oneOf('refuse', 'local')(
      'Files in the mount that are no SQLite database: refuse them, or keep them on this node only.',
      { default: 'refuse' },
    ),
    endLockHolderAfterMs: duration(
      'End a process that keeps the write lock of a replica’s database for so long; 0: it is only named.',
      { default: '0' },
    ),
    uid: integer('Owner of all files in the mount.', {
      derived: 'the user who creates the file; with fuse-native, which does not tell, the user of the daemon',
    }),
    gid: integer('Group of all files in the mount.', {
      derived: 'the group of the user who creates the file',
    }),
    mode: mode('Permission bits of all new files in the mount.', {
      derived: 'what the application asks for',
    }),
  }),
  data: z.strictObject({
    dir: text('Where the databases and their log are kept; never opened by applications.', {
      default: '/var/lib/litefs',
    }),
    compress: flag('Compress the log (LZ4).', { default: 'true', noEffect: 'the log is always compressed' }),
    retentionMs: duration('How long log files are kept for replicas that were away.', { default: '10m' }),
    checkRateBytes: size(
      'How much of the databases is compared with their checksums behind a start, per second; 0: nothing is.',
      { default: '4MB' },
    ),
    retentionMonitorIntervalMs: duration('How often old log files are looked for.', { default: '1m' }),
    maxLogSizeBytes: size(
      'The most that the log of one database takes, whoever still needs it: a replica that lags further behind gets the pages that differ.',
      { default: '4GB' },
    ),
  }),
  exec: exec('The application: started when the mount is ready; its exit code becomes that of kitefs.', {
    default: '',
  }),
  exitOnError: flag('End when the start fails; false: stay up, so that one can look into it.', {
    default: 'true',
  }),
  skipSync: flag('Start the application without waiting until the databases are caught up.', {
    default: 'false',
  }),
  strictVerify: flag('Check the checksum of the whole database after each transaction.', {
    default: 'false',
    noEffect: 'each transaction is verified by its pages and the rolling checksum',
  }),
  http: z.strictObject({
    addr: address('Where metrics, status, import and export are served.', { default: '127.0.0.1:20202' }),
    token: text(
      'What admin actions (promote, hand-off, import, export) must show as a bearer token; without it they are served to this machine only.',
      { secret: true },
    ),
    maxImportBytes: size('The largest file that an import takes.', { default: '64GB' }),
    snapshotTimeout: text('Limit of a snapshot.', {
      noEffect: 'a first copy takes no lock, so it has no limit',
    }),
  }),
  peer: z.strictObject({
    addr: address('Where other nodes reach this one (gRPC). Other than loopback only with peer.secret.', {
      default: '127.0.0.1:20203',
    }),
    advertise: address('The address that other nodes are told.', {
      derived: 'peer.addr, with lease.hostname when peer.addr is every address',
    }),
    secret: text('Known to every node of the cluster; proved in each call, never sent.', { secret: true }),
  }),
  node: z.strictObject({
    id: text('Name of this node, unique in the cluster.', {
      derived: 'made at the first start, kept in data.dir',
    }),
    region: text('Where this node is: what may be lost at once (durability.spread).', { default: '' }),
    priority: integer('Of candidates that are equally up to date the highest becomes primary.', {
      default: '0',
    }),
  }),
  cluster: z.strictObject({
    id: text('The cluster that this node belongs to; another one is refused.', {
      derived: 'made by the first primary, kept in data.dir',
    }),
  }),
  durability: z.strictObject({
    commit: waitFor(
      'What a COMMIT waits for. async: nothing; replicas: so many replicas have it; quorum: more than half of the members.',
      { default: 'async' },
    ),
    backup: flag(
      'A COMMIT also waits until the first entry of backups has it; with durability.commit: async for nothing else.',
      { default: 'false' },
    ),
    acknowledge: oneOf('fsync', 'memory')(
      'When a replica “has it”. fsync: it survives a power cut there; memory: only the end of the process.',
      { default: 'fsync' },
    ),
    spread: oneOf(
      'any',
      'prefer',
      'require',
    )(
      'Whether one of these replicas must be in another node.region than the primary. prefer: when one there keeps up.',
      { default: 'any' },
    ),
    timeoutMs: duration('How long a COMMIT waits before durability.on-timeout is done.', { default: '10s' }),
    onTimeout: oneOf('block', 'degrade')(
      'block: it goes on waiting. degrade: it returns, as do those after it, until replicas have caught up.',
      { default: 'block' },
    ),
    databases: databaseDurability(
      'Databases that differ, by name with * for any characters; the first that matches counts. As a flag: app.db=quorum,logs/*=async.',
      { default: '' },
    ),
  }),
  lease: z.strictObject({
    type: oneOf(
      'local',
      'static',
      'consul',
    )(
      'Who is primary. local: nodes of one host, elected in a SQLite file; static: lease.candidate says it; consul: elected in a key of Consul.',
      { default: 'local' },
    ),
    candidate: flag('This node may become primary (static: is the primary).', { default: 'true' }),
    promote: flag('Ask the primary to hand over to this node once it is up and caught up.', {
      default: 'false',
    }),
    hostname: text('Name of this machine, as .primary shows it to replicas.', {
      derived: 'the name of the machine',
    }),
    advertiseUrl: text('Where other machines reach this node’s applications, as status shows it.', {
      derived: 'http://<lease.hostname>:<port of http.addr>',
    }),
    primary: address(
      'static: the peer address of the primary, the same on every node: the cluster’s id is made from it.',
      {
        derived: 'the host of lease.advertise-url with the port of peer.addr',
      },
    ),
    path: text('local: the SQLite file that holds the lease, the same for all nodes of the host.', {
      derived: '<data.dir>/lease.db',
    }),
    ttlMs: duration(
      'How long a primary may write without renewing its lease; failover takes about as long.',
      {
        default: '5s',
      },
    ),
    electionWaitMs: duration('How long a candidate that lacks transactions waits for a better one.', {
      default: '5s',
    }),
    reconnectDelay: text('Pause between attempts to reach the primary.', {
      noEffect: 'the pause grows by itself',
    }),
    demoteDelay: text('Pause after a demotion.', {
      noEffect: 'a demoted node follows the new primary at once',
    }),
    databases: list('Databases that this node follows.', { noEffect: 'every node follows every database' }),
    consul: z.strictObject({
      url: text('consul: its address; a password is the ACL token, a path goes before the key.', {
        secret: true,
        alsoEnv: ['FLY_CONSUL_URL', 'CONSUL_HTTP_ADDR'],
      }),
      key: text('consul: the key of the lease, the same for all nodes of the cluster.'),
      ttlMs: duration('consul: takes the place of lease.ttl.', { derived: 'lease.ttl' }),
      lockDelayMs: duration('consul: added to the wait before a silent primary is succeeded.', {
        default: '0',
      }),
      token: text('consul: ACL token.', {
        secret: true,
        derived: 'the password in lease.consul.url',
        alsoEnv: ['CONSUL_HTTP_TOKEN'],
      }),
      caFile: text('consul: PEM file of the authorities that its certificate may come from.', {
        derived: 'those of Node.js',
        alsoEnv: ['CONSUL_CACERT'],
      }),
      clientCert: text('consul: PEM file of this node’s certificate.', { alsoEnv: ['CONSUL_CLIENT_CERT'] }),
      clientKey: text('consul: PEM file of this node’s key.', { alsoEnv: ['CONSUL_CLIENT_KEY'] }),
      tlsServerName: text('consul: the name in its certificate.', {
        derived: 'the host of lease.consul.url',
        alsoEnv: ['CONSUL_TLS_SERVER_NAME'],
      }),
      tlsSkipVerify: flag('consul: take any certificate; whoever is on the way can then be Consul.', {
        default: 'false',
      }),
    }),
  }),
  halt: z.strictObject({
    ttlMs: duration(
      'How long a replica may go on writing a database (kitefs run --with-halt-lock-on) when it is not heard of.',
      { default: '10s' },
    ),
  }),
  proxy: z.strictObject({
    addr: address('Where the proxy listens; nothing: there is none (docs/proxy.md).'),
    target: addresses('Where the application listens: one address, or several that take turns.'),
    db: list('The databases whose positions clients are held to; nothing: all.', { default: '' }),
    advertise: address('The address of the proxy that other nodes are told.', {
      derived: 'the host of peer.advertise with the port of proxy.addr',
    }),
    instance: text('The Fly.io Machine of this node.', { alsoEnv: ['FLY_MACHINE_ID'] }),
    replay: oneOf(
      'auto',
      'off',
      'instance',
      'region',
    )(
      'How a replica passes a write on. off: it sends it to the primary’s proxy; instance, region: it answers with a fly-replay header; auto: instance on Fly.io, off elsewhere.',
      { default: 'auto' },
    ),
    replayMaxBodyBytes: size('Bodies above this, or of unknown length, are never replayed by Fly.io.', {
      default: '1MB',
    }),
    reads: patterns('What is a read though its method is not GET, HEAD or OPTIONS: /path or METHOD /path.', {
      default: '',
    }),
    passthrough: patterns('What goes to the application of this node, whatever it is.', { default: '' }),
    alwaysForward: patterns('What goes to the primary though it looks like a read.', { default: '' }),
    routes: routes(
      'Paths that differ; the first that matches counts. As a flag: /path=write,/other/*=read.',
      { default: '' },
    ),
    withoutPrimary: oneOf('serve', 'refuse')(
      'What reads get while no primary is known: an answer of this node, or 503.',
      { default: 'serve' },
    ),
    token: oneOf(
      'cookie',
      'header',
      'off',
    )(
      'How clients carry what they have seen, so that no node shows them anything older; a client that sends Kitefs-Token gets that back in any case.',
      { default: 'cookie' },
    ),
    tokenSecret: text('Tokens are signed with it, and others are not taken; the same on every node.', {
      secret: true,
    }),
    readWaitMs: duration('How long a read waits until this node has what its client has seen.', {
      default: '5s',
    }),
    maxStalenessMs: duration('No read of this node is older; nothing: there is no bound.'),
    staleReads: oneOf('primary', 'refuse')(
      'What becomes of a read that this node cannot serve as fresh as it must be: the primary answers it, or 503.',
      { default: 'primary' },
    ),
    responseHeaders: flag(
      'Answers say which node has served them and how fresh: Kitefs-Node, Kitefs-Freshness, Kitefs-Position.',
      { default: 'true' },
    ),
    maintenancePage: text('A file that is the body of every 503 of the proxy.'),
    primaryWaitMs: duration('How long a write waits for a primary before it gets 503.', {
      derived: 'proxy.primary-redirect-timeout',
    }),
    primaryRedirectTimeoutMs: duration('LiteFS’s name of proxy.primary-wait.', { default: '5s' }),
    targetWaitMs: duration('How long a request waits for an application that refuses connections.', {
      default: '30s',
    }),
    bufferBytes: size(
      'A request of up to this size can be sent to the primary after all when the application of a replica asks for it.',
      { default: '1MB' },
    ),
    maxHeaderBytes: size('The most that the head of a request or an answer may take.', { default: '32KB' }),
    drainMs: duration(
      'How long requests and WebSockets that run have when this node changes its role, or ends.',
      {
        default: '10s',
      },
    ),
    maxLagMs: duration('Age of its data beyond which a replica is unwell (/litefs/health).', {
      default: '10s',
    }),
    debug: flag('Log each request.', { default: 'false' }),
    readTimeoutMs: duration('How long a whole request may take to arrive; 0: no limit.', { default: '0' }),
    readHeaderTimeoutMs: duration('How long the head of a request may take to arrive; 0: no limit.', {
      default: '10s',
    }),
    writeTimeoutMs: duration('How long an answer may stand still; 0: no limit.', { default: '0' }),
    idleTimeoutMs: duration('How long a connection without a request is kept.', { default: '30s' }),
  }),
  backup: z.strictObject({
    type: text('Kind of backup.', { noEffect: BACKUP }),
    path: text('Folder.', { noEffect: BACKUP }),
    url: text('Service.', { noEffect: BACKUP }),
    cluster: text('Cluster at the service.', { noEffect: BACKUP }),
    authToken: text('Token of the service.', { noEffect: BACKUP, secret: true }),
    delay: text('Pause between uploads.', { noEffect: BACKUP }),
    fullSyncInterval: text('Pause between full comparisons.', { noEffect: BACKUP }),
  }),
  backups: backups(
    'Where the primary ships every transaction to (docs/backup.md). As a flag: URLs, s3://bucket/path?endpoint=… or file:///path.',
    { default: '', secret: true },
  ),
  drill: z.strictObject({
    intervalMs: duration(
      'How often the primary restores its backups into scratch space with every check; 0: only by hand (kitefs drill).',
      { default: '0' },
    ),
    recoveryObjectiveMs: duration(
      'How long restoring the latest state of all databases from one destination may take; a drill that takes longer fails.',
      { derived: 'no limit' },
    ),
    exec: text(
      'The application’s own check of a restored database, for /bin/sh; $KITEFS_DRILL_FILE is its path.',
    ),
    dir: text('Where scratch space is: twice the largest database must be free there.', {
      derived: '<data.dir>/tmp',
    }),
    objects: oneOf('all', 'restored')(
      'all: every object of the backups is read and verified. restored: only those that the restores of the drill need.',
      { default: 'all' },
    ),
  }),
  restoreIfMissing: flag(
    'A node that has nothing, and becomes the primary where no other node has anything, starts from its backups (docs/backup.md).',
    { default: 'false' },
  ),
  follow: follow(
    'Follow this place of backups, without any connection to the primary (docs/backup.md); with lease.type static and lease.candidate false.',
  ),
  followIntervalMs: duration('The pause between two looks at the place that is followed.', { default: '1s' }),
  shutdownSyncTimeoutMs: duration('How long the end of a node may wait until its backups have everything.', {
    default: '30s',
  }),
  log: z.strictObject({
    format: oneOf('auto', 'text', 'json')('auto: text on a terminal, JSON otherwise.', { default: 'auto' }),
    level: oneOf(...LOG_LEVELS)('What is logged.', { default: 'info' }),
    debug: flag('The same as log.level debug.', { default: 'false' }),
    timestamp: text('Whether lines have a time.', { noEffect: 'every line has its time' }),
  }),
  tracing: z.strictObject({
    enabled: text('Write a trace log.', { noEffect: TRACING }),
    path: text('Where.', { noEffect: TRACING }),
    maxSize: text('Size of one file.', { noEffect: TRACING }),
    maxCount: text('Number of files.', { noEffect: TRACING }),
    compress: text('Compress old files.', { noEffect: TRACING }),
  }),
});

/** The values as they were given or default, before those that are worked out from others (see load.ts). */
export type GivenConfig = z.infer<typeof configSchema>;

export interface Setting extends About {
  /** As in the file: `lease.lock-delay`. */
  readonly key: string;
  /** `KITEFS_LEASE_LOCK_DELAY`. */
  readonly env: string;
  /** Where it is in the config object: ['lease', 'lockDelayMs']. */
  readonly path: readonly string[];
}

/** All settings, in the order of the schema. */
export const SETTINGS: readonly Setting[] = settingsOf(configSchema, []);

function settingsOf(schema: z.ZodType, path: readonly string[]): Setting[] {
  if (schema instanceof z.ZodObject) {
    return Object.entries(schema.shape as Record<string, z.ZodType>).flatMap(([name, inner]) =>
      settingsOf(inner, [...path, name]),
    );
  }
  const about = registry.get(schema);
  if (!about) throw new Error(`${path.join('.')} is no setting`);
  const key = path.map(keyOf).join('.');
  return [{ ...about, key, path, env: `KITEFS_${key.replaceAll(/[.-]/g, '_').toUpperCase()}` }];
}

function keyOf(property: string): string {
  const name = property.replace(/(Ms|Bytes)$/, '');
  return name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}
