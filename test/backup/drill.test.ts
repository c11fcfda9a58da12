import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import type { DrillReport } from '../../src/drill/drill.js';
import { runCli } from '../cli/run-cli.js';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { flip } from '../helpers/flip.js';

/** Drills by schedule, by a real node: of a backup that is right, and of ones that are not. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-drill-test-'));
const bucket = join(dir, 'bucket');
let cluster: TestCluster | undefined;
afterAll(async () => {
  await cluster?.stop();
  rmSync(dir, { recursive: true, force: true });
});

const reports = (folder: string): DrillReport[] =>
  readdirSync(folder)
    .filter((name) => name.endsWith('.json'))
    .toSorted()
    .map((name) => JSON.parse(readFileSync(join(folder, name), 'utf8')) as DrillReport);

/** What the next drill says that begins after now. */
async function nextDrill(node: TestNode) {
  const now = new Date().toISOString();
  let found: Awaited<ReturnType<TestNode['status']>>['drill'];
  await waitFor('a drill', async () => {
    found = (await node.status()).drill;
    return found !== undefined && found.startedAt > now;
  });
  return found!;
}

it('drills by schedule, keeps reports here and in the backups, and is loud about what is wrong', async () => {
  const seen = join(dir, 'seen');
  const check = join(dir, 'check.sh');
  writeFileSync(check, `sqlite3 "$KITEFS_DRILL_FILE" 'SELECT count(*) FROM t' >> ${seen}\n`);
  chmodSync(check, 0o755);
  cluster = await TestCluster.start({
    nodes: 1,
    config: {
      backups: [
        {
          type: 'file',
          path: bucket,
          'sync-interval': '10ms',
          levels: [{ interval: '300ms' }],
          retention: { enabled: false },
        },
      ],
      drill: { interval: '1s', exec: `sh ${check}`, 'recovery-objective': '1m' },
    },
  });
  const node = cluster.node(1);
  await node.sql('app.db', 'CREATE TABLE t(id INTEGER PRIMARY KEY, b)');
  for (let i = 0; i < 5; i += 1) await node.sql('app.db', 'INSERT INTO t(b) VALUES (randomblob(3000))');
  const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=20000`, { method: 'POST' });
  expect(answer.status).toBe(200);

  const good = await nextDrill(node);
  expect(good).toMatchObject({ ok: true, problems: [], restores: 2 });
  expect(readFileSync(seen, 'utf8')).toMatch(/^5$/m);
  for (const folder of [join(node.dataDir, 'drills'), join(bucket, '.kitefs/drills')]) {
    const report = reports(folder).at(-1)!;
    expect(report).toMatchObject({ ok: true, recoveryObjectiveSeconds: 60 });
    expect(report.objectsRead).toBeGreaterThan(0);
    expect(report.restores[0]).toMatchObject({ moment: 'latest', checksumCompared: true, rows: { t: 5 } });
  }
  expect(await node.metric('kitefs_drill_ok')).toBe(1);
  expect(await node.metric('kitefs_drill_timestamp_seconds')).toBeGreaterThan(1e9);

  // A byte of an object that no restore of the latest state needs.
  await node.stop();
  const level0 = join(bucket, 'app.db/ltx/0');
  const first = join(level0, readdirSync(level0).toSorted()[0]!);
  flip(first, 150);
  // As a container that lives for a moment: what is due goes by the last report, in the backups too.
  rmSync(join(node.dataDir, 'drills'), { recursive: true });
  await node.start();
  const bad = await nextDrill(node);
  expect(bad.ok).toBe(false);
  expect(bad.problems.join()).toContain(readdirSync(level0).toSorted()[0]!);
  const { events } = await node.status();
  expect(events.filter(({ kind }) => kind === 'drill-failed')).not.toEqual([]);
  expect(await node.metric('kitefs_drill_ok')).toBe(0);
  const shown = await runCli(['status', '--url', `http://127.0.0.1:${node.httpPort}`]);
  expect(shown.stdout).toMatch(/LAST DRILL[^]*FAILED/);
  const scratch = join(node.dataDir, 'tmp');
  await waitFor('the scratch space to be removed', () =>
    readdirSync(scratch).every((name) => !name.startsWith('kitefs-drill')),
  );
  await node.stop();
  flip(first, 150);
});

it('by hand fails for a missing level, a check of the application’s, and what takes too long', async () => {
  const { configPath } = cluster!.node(1);
  const report = join(dir, 'report.json');
  const drilled = async (...flags: string[]): Promise<DrillReport & { code: number }> => {
    const { code, stderr } = await runCli(['drill', '-config', configPath, '-report', report, ...flags]);
    if (!existsSync(report)) throw new Error(stderr);
    return { ...(JSON.parse(readFileSync(report, 'utf8')) as DrillReport), code };
  };
  expect(await drilled()).toMatchObject({ code: 0, ok: true });
  const failing = await drilled(
    '-drill.exec',
    'echo no such user >&2; exit 3',
    '-drill.recovery-objective',
    '1ms',
  );
  expect(failing.code).toBe(1);
  expect(failing.restores[0]!.problems.join()).toContain('exit code 3: no such user');
  expect(failing.problems.join()).toContain('the recovery objective is 0.001 s');
  // The snapshots are gone, and so is what was uploaded first: as after a lifecycle rule that knows too little.
  const app = join(bucket, 'app.db/ltx');
  for (const level of ['9', '1']) rmSync(join(app, level), { recursive: true, force: true });
  rmSync(join(app, '0', readdirSync(join(app, '0')).toSorted()[0]!));
  const missing = await drilled('-objects', 'restored');
  expect(missing.code).toBe(1);
  expect(missing.restores[0]!.ok).toBe(false);
});
