import { formatPosition, NO_POSITION } from '../ltx/position.js';
import { isPrimary, type NodeStatus } from '../observability/node-status.js';

/** What LiteFS writes when it does not know the lag: the largest 32-bit number. */
const LAG_UNKNOWN_MS = 2_147_483_647;

/** What special files are made from. */
export interface SpecialSources {
  status(): NodeStatus;
  /** The stream from the primary is up. */
  readonly connected: boolean;
}

/**
 * Content of the read-only files in the mount, in LiteFS's formats: `.primary` (the primary's host name, on a
 * connected replica only), `.lag` (milliseconds, sign and nine digits), `<db>-pos`; and `.kitefs/status.json`.
 * Undefined: there is no such file now.
 */
export function specialFile(path: string, sources: SpecialSources): Buffer | undefined {
  const status = sources.status();
  switch (path) {
    case '.primary':
      return sources.connected && status.primary ? line(hostOf(status.primary.advertiseUrl)) : undefined;
    case '.lag':
      return line(`+${String(lagMs(status)).padStart(9, '0')}`);
    case '.kitefs/status.json':
      return Buffer.from(`${JSON.stringify(status, undefined, 2)}\n`);
    default:
      return path.endsWith('-pos') ? positionFile(path.slice(0, -'-pos'.length), status) : undefined;
  }
}

function positionFile(name: string, status: NodeStatus): Buffer {
  const database = status.databases.find((candidate) => candidate.name === name);
  // A database that has no transaction yet is at position 0.
  return line(database?.appliedPosition ?? formatPosition(NO_POSITION));
}

function lagMs(status: NodeStatus): number {
  if (isPrimary(status.role)) return 0;
  const ages = status.databases.map((database) => database.maxAgeMs ?? LAG_UNKNOWN_MS);
  return Math.round(Math.min(LAG_UNKNOWN_MS, Math.max(0, ...(ages.length > 0 ? ages : [LAG_UNKNOWN_MS]))));
}

/** What LiteFS calls the hostname of a node. */
export const hostOf = (url: string): string => (URL.canParse(url) ? new URL(url).hostname : url);

const line = (text: string): Buffer => Buffer.from(`${text}\n`);
