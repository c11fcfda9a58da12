import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { loadPackageDefinition, logVerbosity, setLogVerbosity } from '@grpc/grpc-js';
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader';

import { KiteError } from '../errors.js';
import type { EpochPosition, LogFile } from '../store/types.js';
import type { ProtoGrpcType } from './generated/kitefs.js';
import type { File, File__Output } from './generated/kitefs/v1/File.js';
import type { Position, Position__Output } from './generated/kitefs/v1/Position.js';
import type { ToPrimary, ToPrimary__Output } from './generated/kitefs/v1/ToPrimary.js';
import type { ToReplica, ToReplica__Output } from './generated/kitefs/v1/ToReplica.js';

/**
 * The edge between the messages of proto/kitefs.proto, whose 64-bit numbers are decimal strings, and the
 * program, whose are bigints.
 */

/** Nodes of different protocol versions refuse each other. */
export const PROTOCOL = 1;
/** Largest message that either side takes, bytes. */
export const MESSAGE_BYTES_MAX = 4 * 1024 * 1024;
/** Largest piece of a file in one message, bytes. */
export const CHUNK_BYTES_MAX = 256 * 1024;
/** Files up to this size travel whole, and several together up to it, bytes. */
export const SMALL_FILE_BYTES_MAX = 64 * 1024;

export const DEFAULT_HEARTBEAT_MS = 500;
/** Six heartbeats: seconds, not minutes, and still more than a busy machine delays a message. */
export const DEFAULT_SILENCE_MS = 3000;

/** gRPC options of both sides. */
export const CHANNEL_OPTIONS = {
  'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
  'grpc.max_send_message_length': MESSAGE_BYTES_MAX,
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5000,
};

/** Finds the contract in the package, whether this runs from src/, dist/ or the benchmarks' build. */
function contractPath(): string {
  for (let folder = import.meta.dirname; ; folder = dirname(folder)) {
    const path = join(folder, 'proto', 'kitefs.proto');
    if (existsSync(path)) return path;
    if (folder === dirname(folder)) {
      throw new KiteError('ERR_INTERNAL', 'proto/kitefs.proto is missing from the package');
    }
  }
}

// The library writes errors to stderr beside rejecting with them; ours go into the log once.
if (process.env['GRPC_VERBOSITY'] === undefined) setLogVerbosity(logVerbosity.NONE);

// The same options as `npm run types:proto`, so that the generated types are true.
const definition = loadSync(contractPath(), {
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});

/** The gRPC service, for `Server.addService` and as a client's constructor. */
export const Replication = (loadPackageDefinition(definition) as unknown as ProtoGrpcType).kitefs.v1
  .Replication;

const upType = definition['kitefs.v1.ToPrimary'] as MessageTypeDefinition<ToPrimary, ToPrimary__Output>;
const downType = definition['kitefs.v1.ToReplica'] as MessageTypeDefinition<ToReplica, ToReplica__Output>;

export const encodeToPrimary = (epoch: bigint, message: Omit<ToPrimary, 'epoch'>): Buffer =>
  upType.serialize({ ...message, epoch: String(epoch) });
export const encodeToReplica = (epoch: bigint, message: Omit<ToReplica, 'epoch'>): Buffer =>
  downType.serialize({ ...message, epoch: String(epoch) });

export const decodeToPrimary = (body: Buffer): ToPrimary__Output => decode(upType, body);
export const decodeToReplica = (body: Buffer): ToReplica__Output => decode(downType, body);

function decode<O>(
  type: MessageTypeDefinition<never, O> | MessageTypeDefinition<object, O>,
  body: Buffer,
): O {
  try {
    return type.deserialize(body);
  } catch (cause) {
    throw new KiteError('ERR_REPLICATION_MESSAGE', 'a peer sent bytes that are no message', { cause });
  }
}

/** A position as it travels; undefined travels as TXID 0. */
export const toWirePosition = (
  database: string,
  at: EpochPosition | undefined,
  attempt = 0,
  resync = false,
): Position => ({
  resync,
  database,
  txid: String(at?.txid ?? 0n),
  checksum: String(at?.checksum ?? 0n),
  epoch: String(at?.epoch ?? 0n),
  attempt,
});

export function fromWirePosition(wire: Position__Output): EpochPosition | undefined {
  const txid = BigInt(wire.txid);
  if (txid === 0n) return undefined;
  return { txid, checksum: BigInt(wire.checksum), epoch: BigInt(wire.epoch) };
}

/** A file's header as it travels; the caller adds data, last, attempt, durable and difference. */
export const toWireFile = (database: string, file: Omit<LogFile, 'path'>): File => ({
  database,
  minTxid: String(file.minTxid),
  maxTxid: String(file.maxTxid),
  preApplyChecksum: String(file.preApplyChecksum),
  postApplyChecksum: String(file.postApplyChecksum),
  epoch: String(file.epoch),
  sizeBytes: String(file.sizeBytes),
  pageSize: file.pageSize,
  commitPages: file.commitPages,
});

export const fromWireFile = (wire: File__Output): Omit<LogFile, 'path'> => ({
  minTxid: BigInt(wire.minTxid),
  maxTxid: BigInt(wire.maxTxid),
  preApplyChecksum: BigInt(wire.preApplyChecksum),
  postApplyChecksum: BigInt(wire.postApplyChecksum),
  epoch: BigInt(wire.epoch),
  sizeBytes: Number(wire.sizeBytes),
  pageSize: wire.pageSize,
  commitPages: wire.commitPages,
});

/** A database's name as a peer sent it; throws ERR_REPLICATION_MESSAGE for one that no mount can have. */
export function checkedName(name: string): string {
  const bad =
    name.length === 0 ||
    name.length > 1024 ||
    name.includes('\0') ||
    // It becomes a path: no peer may lead it out of its folder.
    name.split('/').some((part) => part === '' || part === '.' || part === '..');
  if (bad) {
    throw new KiteError(
      'ERR_REPLICATION_MESSAGE',
      `${JSON.stringify(name.slice(0, 80))} is no database name`,
    );
  }
  return name;
}
