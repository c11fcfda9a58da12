import type { DatabaseStatus, NodeStatus } from '../observability/node-status.js';

const EVENTS_SHOWN = 5;

/** A node's status for a terminal. */
export function formatStatus(status: NodeStatus): string {
  const { primary, databases, members, otherFiles, events } = status;
  const facts = [
    ['node', `${status.nodeId}${status.region && ` in ${status.region}`}`],
    ['role', `${status.role}, epoch ${status.epoch}${status.ready ? '' : ', not ready'}`],
    ['primary', primary ? `${primary.nodeId} at ${primary.peerAddress}` : 'none known'],
    ...(status.leaseRemainingMs === undefined
      ? []
      : [['lease', `good for ${formatDuration(status.leaseRemainingMs)} without a renewal`]]),
    ['mount', `${status.mount.dir} (${status.mount.driver})`],
    ['data', status.dataDir],
    ['cluster', status.clusterId],
  ];
  const sections = [table(facts)];
  sections.push(
    databases.length === 0
      ? 'no databases'
      : table([
          ['DATABASE', 'POSITION', 'BEHIND', 'AGE', 'SIZE', 'LOG', 'WAL', ''],
          ...databases.map(databaseRow),
        ]),
  );
  if (members.length > 0) {
    sections.push(
      table([
        ['MEMBER', 'ADDRESS', 'REGION', 'PRIORITY', 'BEHIND', ''],
        ...members.map((member) => [
          member.nodeId,
          member.peerAddress,
          member.region,
          String(member.priority),
          member.lagTransactions === undefined ? '' : String(member.lagTransactions),
          [member.candidate ? 'candidate' : '', member.connected ? 'connected' : '']
            .filter(Boolean)
            .join(', '),
        ]),
      ]),
    );
  }
  const { backups } = status;
  if (backups.length > 0) {
    sections.push(
      table([
        ['BACKUP', 'DATABASE', 'TXID', 'AGE', ''],
        ...backups.flatMap(({ url, error = '', databases }) =>
          databases.length === 0 || error
            ? [[url, '', '', '', error]]
            : databases.map((database) => [
                url,
                database.name,
                database.txid,
                formatDuration(database.lagMs),
                database.error ?? '',
              ]),
        ),
      ]),
    );
  }
  const { drill } = status;
  if (drill) {
    const result = drill.ok ? 'ok' : 'FAILED';
    const facts = [
      drill.endedAt,
      result,
      `${drill.restores} restores`,
      `${drill.restoreSeconds} s`,
      drill.report,
    ];
    sections.push(table([['LAST DRILL'], facts, ...drill.problems.map((problem) => ['', problem])]));
  }
  if (otherFiles.length > 0)
    sections.push(table([['ON THIS NODE ONLY'], ...otherFiles.map((name) => [name])]));
  if (events.length > 0) {
    sections.push(table(events.slice(-EVENTS_SHOWN).map((event) => [event.time, event.kind, event.message])));
  }
  return sections.join('\n');
}

function databaseRow(database: DatabaseStatus): string[] {
  return [
    database.name,
    database.appliedPosition,
    String(database.lagTransactions),
    database.maxAgeMs === undefined ? '?' : formatDuration(database.maxAgeMs),
    formatSize(database.sizeBytes),
    `${database.logFiles} files`,
    formatSize(database.walBytes),
    [haltOf(database), database.error ?? ''].filter(Boolean).join('; '),
  ];
}

function haltOf({ halt }: DatabaseStatus): string {
  if (!halt) return '';
  const { nodeId, id, remainingMs } = halt;
  return `${nodeId} writes it (HALT ${id}), for ${formatDuration(remainingMs)} unless renewed`;
}

/** Columns as wide as their widest cell, two spaces between them. */
function table(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows)
    for (const [index, cell] of row.entries()) widths[index] = Math.max(widths[index] ?? 0, cell.length);
  return rows
    .map(
      (row) =>
        `${row
          .map((cell, index) => cell.padEnd(widths[index] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}

function formatSize(bytes: number): string {
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  let index = 0;
  let value = bytes;
  for (; value >= 1024 && index < units.length - 1; index++) value /= 1024;
  return `${index === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[index]}`;
}

function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} m ${Math.round((ms % 60_000) / 1000)} s`;
}
