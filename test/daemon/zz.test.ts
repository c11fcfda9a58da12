import { it } from 'vitest';
import { runCli } from '../cli/run-cli.js';
import { TestCluster } from '../helpers/cluster.js';
import { Load } from './load.js';
it('rate', async () => {
  const cluster = await TestCluster.start({ ttl: '3s' });
  const [first, second] = [cluster.node(1), cluster.node(2)];
  await first.sql('app.db', 'PRAGMA journal_mode=wal', Load.table);
  await cluster.caughtUp('app.db');
  const code = `const D=require('better-sqlite3');const d=new D(${JSON.stringify(second.path('app.db'))});const t0=performance.now();let n=0;const l=[];while(performance.now()-t0<2000){const a=performance.now();d.prepare('INSERT INTO t VALUES (?,?,?)').run('r',n++,'x');l.push(performance.now()-a)};l.sort((a,b)=>a-b);console.log(n,'commits in 2 s; p50',l[n>>1],'p99',l[Math.floor(n*.99)]);d.pragma('synchronous=1')`;
  let t = performance.now();
  console.log(
    await runCli([
      'run',
      '--with-halt-lock-on',
      'app.db',
      '--url',
      `http://127.0.0.1:${second.httpPort}`,
      '--',
      process.execPath,
      '-e',
      code,
    ]),
  );
  console.log('whole', performance.now() - t);
  t = performance.now();
  console.log(
    await runCli([
      'run',
      '--with-halt-lock-on',
      'app.db',
      '--url',
      `http://127.0.0.1:${second.httpPort}`,
      '--',
      'sqlite3',
      second.path('app.db'),
      'CREATE TABLE m AS SELECT value, randomblob(900) AS body FROM generate_series(1, 40000)',
    ]),
  );
  console.log('40 MB', performance.now() - t);
  await cluster.assertSame('app.db');
  await cluster.stop();
});
