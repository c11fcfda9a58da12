import { KiteError } from '../errors.js';

/**
 * Where a database is in its history: the last transaction and the rolling checksum after it. Written
 * `<txid>/<checksum>`, each 16 hex digits, as LiteFS writes its `-pos` file.
 */
export interface Position {
  readonly txid: bigint;
  readonly checksum: bigint;
}

/** A database that has no transaction yet. */
export const NO_POSITION: Position = Object.freeze({ txid: 0n, checksum: 0n });

const hex16 = (value: bigint): string => value.toString(16).padStart(16, '0');

/** A TXID as 16 hex digits. */
export const formatTxid = hex16;

export const formatPosition = (at: Position): string => `${hex16(at.txid)}/${hex16(at.checksum)}`;

/** Takes `<txid>/<checksum>`; throws ERR_LTX_POSITION for anything else. */
export function parsePosition(text: string): Position {
  const match = /^([0-9a-f]{16})\/([0-9a-f]{16})$/.exec(text.trim());
  if (!match) throw new KiteError('ERR_LTX_POSITION', `${JSON.stringify(text)} is no position`);
  return { txid: BigInt(`0x${match[1]}`), checksum: BigInt(`0x${match[2]}`) };
}

export const samePosition = (a: Position, b: Position): boolean =>
  a.txid === b.txid && a.checksum === b.checksum;

/** The TXIDs that one LTX file holds, both inclusive. */
export interface TxidRange {
  readonly minTxid: bigint;
  readonly maxTxid: bigint;
}

/** `<min16>-<max16>.ltx`. */
export const ltxFileName = (range: TxidRange): string =>
  `${hex16(range.minTxid)}-${hex16(range.maxTxid)}.ltx`;

/** The range that a file name says, or undefined when it is no LTX file's name. */
export function parseLtxFileName(name: string): TxidRange | undefined {
  const match = /^([0-9a-f]{16})-([0-9a-f]{16})\.ltx$/.exec(name);
  if (!match) return undefined;
  const range = { minTxid: BigInt(`0x${match[1]}`), maxTxid: BigInt(`0x${match[2]}`) };
  return range.minTxid > 0n && range.minTxid <= range.maxTxid ? range : undefined;
}
