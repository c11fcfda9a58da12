import { KiteError } from '../errors.js';
import { formatTxid } from '../ltx/position.js';
import type { Destination } from './destination.js';

/** Where the head of a destination is; no database can have this name. */
export const HEAD_KEY = '.kitefs/head';

/** What the head knows of a database. All of it is a hint: the objects of level 0 decide. */
export interface HeadDatabase {
  /** Level 0 has at least the objects up to this one (decimal TXID of the bucket). */
  readonly level0: bigint;
  /** It was dropped then (wall clock); its objects stay until the retention ends. */
  readonly droppedMs?: number | undefined;
}

/**
 * The one object of a destination that is changed: whose backups these are. A primary writes its epoch into it, under
 * compare-and-set, before anything else; whoever finds a higher one there ships nothing more.
 */
export interface Head {
  readonly clusterId: string;
  readonly epoch: bigint;
  /** Who writes. */
  readonly nodeId: string;
  /** By encoded name. */
  readonly databases: Readonly<Record<string, HeadDatabase>>;
}

export function formatHead(head: Head): Buffer {
  const databases = Object.fromEntries(
    Object.entries(head.databases).map(([name, { level0, droppedMs }]) => [
      name,
      {
        level0: formatTxid(level0),
        ...(droppedMs === undefined ? {} : { dropped: new Date(droppedMs).toISOString() }),
      },
    ]),
  );
  const { clusterId, epoch, nodeId } = head;
  return Buffer.from(
    `${JSON.stringify({ version: 1, clusterId, epoch: String(epoch), nodeId, databases }, undefined, 1)}\n`,
  );
}

/** Takes the bytes of a head. Throws ERR_BACKUP_OTHER_CLUSTER for what is none: it is not ours to change. */
export function parseHead(bytes: Buffer, url: string): Head {
  try {
    const raw = JSON.parse(bytes.toString()) as Record<string, unknown>;
    if (raw['version'] !== 1 || typeof raw['clusterId'] !== 'string') throw new Error('another version');
    const databases: Record<string, HeadDatabase> = {};
    for (const [name, value] of Object.entries(raw['databases'] as object)) {
      const { level0, dropped } = value as { level0: string; dropped?: string };
      databases[name] = {
        level0: BigInt(`0x${level0}`),
        ...(dropped !== undefined && { droppedMs: Date.parse(dropped) }),
      };
    }
    const { clusterId, epoch, nodeId } = raw as { clusterId: string; epoch: string; nodeId: string };
    return { clusterId, epoch: BigInt(epoch), nodeId, databases };
  } catch (error) {
    const why = `${url}: ${HEAD_KEY} is not what this version of KiteFS writes`;
    throw new KiteError('ERR_BACKUP_OTHER_CLUSTER', why, { cause: error });
  }
}

/** The head of a destination, or undefined when KiteFS has never written there. */
export async function readHead(from: Destination): Promise<Head | undefined> {
  const { bytes, version } = await from.read(HEAD_KEY);
  return version === undefined ? undefined : parseHead(bytes, from.url);
}

const PROBE_KEY = '.kitefs/made-once';

/**
 * Throws ERR_BACKUP_UNSUPPORTED for a store that overwrites what it was told only to make: some S3 compatibles take no notice of the
 * condition, and nothing would keep a fenced primary from replacing its successor's objects. The other kinds are known to do it.
 */
export async function checkConditions(at: Destination): Promise<void> {
  if (at.type !== 's3') return;
  const bytes = Buffer.from('KiteFS has seen that this store makes an object only once.\n');
  const first = await at.create(PROBE_KEY, bytes, Date.now());
  if (first === 'exists' || (await at.create(PROBE_KEY, bytes, Date.now())) === 'exists') return;
  throw new KiteError(
    'ERR_BACKUP_UNSUPPORTED',
    `${at.url}: the store overwrites objects although it is told not to (If-None-Match)`,
  );
}

/** Who wants to write the backups. */
export interface Writer {
  readonly clusterId: string;
  readonly epoch: bigint;
  readonly nodeId: string;
}

/**
 * Changes the head in the name of a writer, whose epoch it says from then on. Throws ERR_BACKUP_FENCED when it names a higher
 * epoch, ERR_BACKUP_OTHER_CLUSTER when these are another cluster's backups.
 */
export async function changeHead(
  at: Destination,
  writer: Writer,
  change: (databases: Head['databases']) => Head['databases'] = (databases) => databases,
): Promise<Head> {
  for (;;) {
    const { bytes, version } = await at.read(HEAD_KEY);
    const old = version === undefined ? undefined : parseHead(bytes, at.url);
    if (old && old.clusterId !== writer.clusterId) {
      throw new KiteError(
        'ERR_BACKUP_OTHER_CLUSTER',
        `${at.url} has the backups of cluster ${old.clusterId}, this is ${writer.clusterId}`,
      );
    }
    if (old && old.epoch > writer.epoch) throw fenced(at.url, old.epoch, writer.epoch);
    const head = { ...writer, databases: change(old?.databases ?? {}) };
    const next = formatHead(head);
    if (next.equals(bytes)) return head;
    if (await at.compareAndSet(HEAD_KEY, version, next)) return head;
  }
}

export const fenced = (url: string, epoch: bigint, ours: bigint): KiteError =>
  new KiteError('ERR_BACKUP_FENCED', `${url} is written by the primary of epoch ${epoch}, ours is ${ours}`);
