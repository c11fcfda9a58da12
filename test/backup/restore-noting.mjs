// Restores the latest state and says on stdout after each part how far it is: node restore-noting.mjs URL OUTPUT. To be killed.
import { writeSync } from 'node:fs';
import { openDestination, parseDestinationUrl } from '../../dist/backup/open.js';
import { restore } from '../../dist/restore/restore.js';

const [url, output] = process.argv.slice(2);
const from = await openDestination(parseDestinationUrl(url));
await restore({
  from,
  folder: '',
  output,
  wanted: { kind: 'latest' },
  parallelism: 2,
  integrityCheck: 'none',
  noteMs: 0,
  say: (line) => writeSync(1, `said ${line}\n`),
  onProgress: (done) => writeSync(1, `done ${done}\n`),
});
writeSync(1, 'restored\n');
