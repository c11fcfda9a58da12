// Restores several moments in one process: node restore-moments.mjs URL FOLDER MOMENT... writes FOLDER/MOMENT.db for each: milliseconds,
// or x and a TXID of the cluster in hex.
import { join } from 'node:path';
import { openDestination, parseDestinationUrl } from '../../dist/backup/open.js';
import { restore } from '../../dist/restore/restore.js';

const [url, folder, ...moments] = process.argv.slice(2);
const from = await openDestination(parseDestinationUrl(url));
for (const moment of moments) {
  const wanted = moment.startsWith('x')
    ? { kind: 'cluster-txid', txid: BigInt(`0${moment}`) }
    : { kind: 'time', timestampMs: Number(moment) };
  const output = join(folder, `${moment}.db`);
  const say = (line) => console.error(line);
  await restore({ from, folder: '', output, wanted, parallelism: 4, integrityCheck: 'none', say });
}
from.close();
