import type { LoadedConfig } from '../config/load.js';
import { DataDirectory, newNodeId } from '../store/data-directory.js';
import { print } from './output.js';

/**
 * `kitefs node reset-id`: gives a data directory that was copied from another node an id of its own: `node.id`, or a new
 * one. The node must be stopped: throws ERR_STORE_LOCKED while it runs.
 */
export function resetNodeId({ config }: LoadedConfig): void {
  const nodeId = newNodeId(config.node.id);
  const data = DataDirectory.open(config.data.dir, { nodeId });
  try {
    const before = data.node.nodeId;
    data.updateNode({ nodeId });
    print(`${config.data.dir}: ${before} is now ${data.node.nodeId}`);
  } finally {
    data.close();
  }
}
