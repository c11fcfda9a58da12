import { MountState, type ControlBlock } from './control-block.js';

/**
 * Read-only files that KiteFS makes itself, with LiteFS's names: `.primary` (on replicas only, as there),
 * `<db>-pos`, `.lag`, and `.kitefs/status.json`. Their content comes from the main thread at each open.
 */

const FOLDER = '.kitefs';
const POSITION = '-pos';

/** Whether this path (no leading slash) belongs to KiteFS. */
export const isSpecialPath = (path: string): boolean =>
  path === '.primary' ||
  path === '.lag' ||
  path === FOLDER ||
  path.startsWith(`${FOLDER}/`) ||
  path.endsWith(POSITION);

/** Whether a special path can be opened now. */
export function specialExists(
  path: string,
  control: ControlBlock,
  databaseExists: (name: string) => boolean,
): boolean {
  if (path === '.primary') return control.state === MountState.replica;
  if (path.endsWith(POSITION)) return databaseExists(path.slice(0, -POSITION.length));
  return path === '.lag' || path === FOLDER || path === `${FOLDER}/status.json` || path === `${FOLDER}/wake`;
}

/** What a listing of the top folder shows of them: name and whether it is a folder. */
export const specialEntries = (control: ControlBlock): [string, boolean][] => [
  ...(control.state === MountState.replica ? ([['.primary', false]] as [string, boolean][]) : []),
  ['.lag', false],
  [FOLDER, true],
];
