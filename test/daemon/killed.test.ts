import { once } from 'node:events';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { run, TestCluster, waitFor, type TestNode } from '../helpers/cluster.js';

/** What a killed daemon leaves behind, and what an application sees that the daemon supervises. */

let cluster: TestCluster;

// One for each test: a new node does not become primary where another one had data.
beforeEach(async () => {
  cluster = await TestCluster.start({ nodes: 0 });
});
afterEach(async () => {
  await cluster.stop();
});

/** State letters of the processes whose command line names `text`; D never ends by itself. */
function processes(text: string): string[] {
  return readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid) && pid !== String(process.pid))
    .flatMap((pid) => {
      try {
        if (!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(text)) return [];
        return /^State:\s+(\w)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? [];
      } catch {
        return [];
      }
    })
    .filter((state) => state !== 'Z');
}

describe('a daemon that is killed (-9)', () => {
  it('leaves no process behind, nothing that hangs, and the next start serves all that was committed', async () => {
    const node = await cluster.add();
    await node.sql('app.db', 'PRAGMA journal_mode=WAL', 'CREATE TABLE t (x)', 'INSERT INTO t VALUES (1)');
    for (let round = 2; round <= 3; round += 1) {
      await node.kill();
      await waitFor('all its processes to end', () => processes(node.dir).length === 0);
      // Whatever is left of the mount answers at once.
      await run('ls', [node.mountDir], { limitMs: 10_000 }).catch((error: unknown) => {
        expect(String(error)).toMatch(/not connected/);
      });
      await node.start();
      await node.sql('app.db', `INSERT INTO t VALUES (${round})`);
      expect(await node.sql('app.db', 'SELECT count(*) FROM t', 'PRAGMA integrity_check')).toBe(
        `${round}\nok`,
      );
    }
    expect(await node.stop()).toBe(0);
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(` ${node.mountDir} `);
  });

  it('is primary again also when getting ready takes longer than its ttl', async () => {
    const slow = await TestCluster.start({ nodes: 1, ttl: '500ms' });
    try {
      const node = slow.node(1);
      // After a kill every page is compared with its checksum.
      await node.sql('app.db', 'CREATE TABLE t (x)', 'INSERT INTO t VALUES (zeroblob(150000000))');
      await node.kill();
      await node.start();
      await waitFor('a write to be taken', async () => {
        return await node.sql('app.db', "INSERT INTO t VALUES ('y')").then(
          () => true,
          () => false,
        );
      });
    } finally {
      await slow.stop();
    }
  });

  it('takes its application with it, which would go on on a dead mount', async () => {
    const node = await cluster.prepare();
    node.spawn('sh', '-c', `trap '' TERM; echo $$ > '${node.dir}/pid'; while :; do sleep 0.05; done`);
    await waitFor(
      'the application',
      () => existsSync(join(node.dir, 'pid')) && statSync(join(node.dir, 'pid')).size > 0,
    );
    const pid = readFileSync(join(node.dir, 'pid'), 'utf8').trim();
    await node.kill();
    await waitFor('the application to be gone', () => !existsSync(`/proc/${pid}`));
    await waitFor('all its processes to end', () => processes(node.dir).length === 0);
  });
});

describe('kitefs mount -- CMD', () => {
  const script = (node: TestNode): string =>
    `trap 'echo usr >> "$0"' USR2; trap 'exit 9' TERM; echo up >> "$0"; sqlite3 '${node.path('app.db')}' 'CREATE TABLE t (x)'; echo ready >> "$0"; while :; do sleep 0.05; done`;

  it('forwards signals and ends with its exit code', async () => {
    const node = await cluster.prepare();
    const said = join(node.dir, 'said');
    writeFileSync(said, '');
    const daemon = node.spawn('sh', '-c', script(node), said);
    await waitFor('the application to be ready', () => readFileSync(said, 'utf8').includes('ready'));
    daemon.kill('SIGUSR2');
    await waitFor('the signal to arrive', () => readFileSync(said, 'utf8').includes('usr'));
    const exited = once(daemon, 'exit');
    daemon.kill('SIGTERM');
    expect(await exited).toEqual([9, null]);
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(` ${node.mountDir} `);
    expect(
      execFileSync('sqlite3', [join(node.dataDir, 'dbs', 'app.db', 'database'), '.tables'], {
        encoding: 'utf8',
      }),
    ).toBe('t\n');
  });

  it('says that a command is not there, and ends as a shell would', async () => {
    const node = await cluster.prepare();
    const [code] = (await once(node.spawn('/nothing/here'), 'exit')) as [number | null];
    expect(code).toBe(127);
    expect(node.log()).toContain('/nothing/here');
    expect(node.log()).not.toMatch(/^\s+at |ERR_INTERNAL/m);
  });
});
