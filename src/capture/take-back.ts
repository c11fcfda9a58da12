import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const MAIN = fileURLToPath(new URL('./take-back-main.js', import.meta.url));

/**
 * Makes a transaction that changes nothing in a database of this primary, as an application would, where a dead writer's
 * commit stands last in the WAL and no reader sees it: it takes the place of those frames, which is what capture takes
 * as the sign to give replicas the pages back (trap 1, decision 008). A process of its own, which lives for
 * moments: it works through the mount, and waits for locks. Rejects when it could not write, or when `signal` ended it: nothing
 * has changed then.
 */
export function takeBack(mountDir: string, name: string, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const options = { signal, killSignal: 'SIGKILL' } as const;
    execFile(process.execPath, [MAIN, join(mountDir, name)], options, (error) =>
      error ? reject(error) : resolve(),
    );
  });
}
