import { parseDuration } from '../config/values.js';
import { KiteError } from '../errors.js';
import type { BackupStatus } from '../observability/node-status.js';
import { callNode } from './node-client.js';
import { print } from './output.js';

/** `kitefs sync`: has the primary ship its backups now; with `wait`, returns when all of them have everything. */
export async function sync(
  url: string,
  name: string | undefined,
  options: { readonly wait: boolean; readonly timeout: string },
): Promise<void> {
  const timeoutMs = parseDuration(options.timeout);
  if (timeoutMs === undefined)
    throw new KiteError('ERR_CLI_USAGE', '-timeout: expected a duration such as 30s');
  const query = new URLSearchParams({ wait: String(options.wait ? Math.round(timeoutMs) : 0) });
  if (name !== undefined) query.set('name', name);
  try {
    const response = await callNode(url, `/sync?${String(query)}`, { method: 'POST' });
    const { backups } = (await response.json()) as { backups: readonly BackupStatus[] };
    if (backups.length === 0) throw new KiteError('ERR_CLI_USAGE', 'this node has no backups configured');
    for (const backup of backups) print(`${backup.url} has everything`);
  } catch (error) {
    if (options.wait || !(error instanceof KiteError) || error.code !== 'ERR_BACKUP_BEHIND') throw error;
    print(`under way: ${error.message}`);
  }
}
