import { rmSync } from 'node:fs';
import { setPriority } from 'node:os';
import type { Destination } from '../backup/destination.js';
import { openDestination } from '../backup/open.js';
import { toKiteError } from '../errors.js';
import { drill } from './drill.js';
import type { DrillOrder, FromDrill } from './messages.js';
import { lastDrillMs, putReport } from './reports.js';

/** The process of one scheduled drill, forked by Drills (drills.ts): it ends with its report, or with its parent. */

if (!process.send) {
  process.stderr.write('the process of a drill is started by kitefs mount\n');
  process.exit(2);
}
// Restoring and checking take a core: the application and the commit path come first.
setPriority(19);
for (const event of ['disconnect', 'SIGTERM']) process.on(event, () => process.exit(1));
/** Clocks of nodes may differ by this. */
const CLOCKS_MS = 60_000;
process.once('message', (order: DrillOrder) => {
  run(order).then(
    (message) => process.send?.(message, undefined, undefined, () => process.exit(0)),
    (error: unknown) => {
      process.stderr.write(`${toKiteError(error).describe()}\n`);
      process.exit(1);
    },
  );
});

async function run(order: DrillOrder): Promise<FromDrill> {
  // Of a drill before this one, which was killed: as large as a database.
  rmSync(order.scratchDir, { recursive: true, force: true });
  const places = await Promise.all(
    order.backups.map(async ({ destination, ...levels }) => ({
      from: await openDestination(destination),
      folder: '',
      levels,
    })),
  );
  const lastMs = await lastKnown(places.map(({ from }) => from));
  // One in the future is of a clock that was wrong, and must not put drills off until then.
  if (lastMs > order.notSinceMs && lastMs < Date.now() + CLOCKS_MS) return { kind: 'notDue', lastMs };
  const report = await drill(places, order);
  const notKept: string[] = [];
  for (const { from } of places)
    await putReport(from, report).catch((error: unknown) => notKept.push(toKiteError(error).message));
  return { kind: 'report', report, notKept };
}

/** A destination that cannot be asked has no say: the drill will fail there, loudly. */
async function lastKnown(destinations: readonly Destination[]): Promise<number> {
  const times = await Promise.all(destinations.map((from) => lastDrillMs(from).catch(() => 0)));
  return Math.max(0, ...times);
}
