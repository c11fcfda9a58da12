// Restores several moments in one process: node restore-moments.mjs URL FOLDER MS... writes FOLDER/MS.db for each.
import { join } from 'node:path';
import { openDestination, parseDestinationUrl } from '../../dist/backup/open.js';
import { restore } from '../../dist/restore/restore.js';

const [url, folder, ...moments] = process.argv.slice(2);
const from = await openDestination(parseDestinationUrl(url));
for (const moment of moments) {
  const wanted = { kind: 'time', timestampMs: Number(moment) };
  const output = join(folder, `${moment}.db`);
  const say = (line) => console.error(line);
  await restore({ from, folder: '', output, wanted, parallelism: 4, integrityCheck: 'none', say });
}
from.close();
