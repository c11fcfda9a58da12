import type { NodeStatus } from '../observability/node-status.js';
import { callNode } from './node-client.js';
import { print } from './output.js';
import { formatStatus } from './status-format.js';

/** `kitefs status`. */
export async function showStatus(url: string, json: boolean): Promise<void> {
  const response = await callNode(url, '/status');
  const status = (await response.json()) as NodeStatus;
  print(json ? JSON.stringify(status, null, 2) : formatStatus(status));
}
