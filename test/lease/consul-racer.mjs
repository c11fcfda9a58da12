// One process of the race in consul.test.ts: raises the heartbeat by compare-and-set so many times, and prints the
// value of each success.
import { join } from 'node:path';

const [dist, url, key, rounds] = process.argv.slice(2);
const { openConsulLease } = await import(join(dist, 'lease/consul.js'));
const adapter = openConsulLease({ url, key });

for (let done = 0; done < Number(rounds);) {
  const { record, version } = await adapter.read(5000);
  const heartbeat = record.heartbeat + 1n;
  if ((await adapter.compareAndSet(version, { ...record, heartbeat }, 5000)) === undefined) continue;
  process.stdout.write(`${heartbeat}\n`);
  done += 1;
}
await adapter.close();
