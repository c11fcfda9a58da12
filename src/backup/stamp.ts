import type { LtxHeader } from '../ltx/format.js';
import type { EpochPosition } from '../store/types.js';

/**
 * What an object in the bucket says of the cluster: the epoch of who wrote it, and the cluster's position (TXID and database
 * checksum) that a database has when everything up to this object is applied. It is in the LTX header's reserved
 * bytes, so it is there exactly when the object is, on every kind of destination; Litestream's readers ignore them.
 */
export type Stamp = EpochPosition;

/** The stamp of an LTX file; undefined for a file that KiteFS has not written for a bucket. */
export const stampOf = (header: LtxHeader): Stamp | undefined =>
  header.clusterChecksum === 0n
    ? undefined
    : { epoch: header.epoch, txid: header.clusterTxid, checksum: header.clusterChecksum };

/** The fields of an LTX header that carry it. */
export const stampFields = (stamp: Stamp): Pick<LtxHeader, 'epoch' | 'clusterTxid' | 'clusterChecksum'> => ({
  epoch: stamp.epoch,
  clusterTxid: stamp.txid,
  clusterChecksum: stamp.checksum,
});
