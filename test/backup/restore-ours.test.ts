import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type CliRun, runCli } from '../cli/run-cli.js';
import { run, sqlite, TestCluster } from '../helpers/cluster.js';

/** What a primary has shipped, restored by `kitefs restore` with that node's configuration. */

const dir = mkdtempSync(join(tmpdir(), 'kitefs-restore-ours-'));
const first = join(dir, 'first');
const second = join(dir, 'second');
const SUM = 'SELECT count(*), sum(length(b)), max(id) FROM t';
const steps: { txid: string; sum: string }[] = [];
let config = '';

beforeAll(async () => {
  const quick = { 'sync-interval': '20ms', levels: [{ interval: '500ms' }] };
  const backups = [first, second].map((path) => ({ type: 'file', path, ...quick }));
  const cluster = await TestCluster.start({ nodes: 1, config: { backups } });
  const node = cluster.node(1);
  config = node.configPath;
  for (let step = 0; step < 6; step += 1) {
    await node.sql(
      'app.db',
      'CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, b)',
      'INSERT INTO t (b) VALUES (randomblob(100000)), (randomblob(200000))',
    );
    const answer = await fetch(`http://127.0.0.1:${node.httpPort}/sync?wait=20000`, { method: 'POST' });
    expect(answer.status).toBe(200);
    const position = (await node.database('app.db'))!.position;
    steps.push({ txid: position.slice(0, 16), sum: await node.sql('app.db', SUM) });
  }
  await node.stop();
});

afterAll(() => rmSync(dir, { recursive: true, force: true }));

const newestOfLevel0 = (): string => {
  const level0 = join(first, 'app.db/ltx/0');
  return join(
    level0,
    readdirSync(level0)
      .toSorted()
      .findLast((name) => /^0.*\.ltx$/.test(name))!,
  );
};

let count = 0;
async function restored(...flags: string[]): Promise<{ path: string; ran: CliRun }> {
  const path = join(dir, `restored-${(count += 1)}.db`);
  return { path, ran: await runCli(['restore', '-config', config, '-o', path, ...flags]) };
}

it('restores the last state, whose checksum is the one of the commit, in the journal mode of the primary', async () => {
  const { path, ran } = await restored('-integrity-check', 'quick', 'app.db');
  expect(ran.code, ran.stderr).toBe(0);
  expect(ran.stdout).toContain(`cluster TXID ${steps.at(-1)!.txid}`);
  expect(ran.stdout).toContain('its checksum is the one recorded at that commit');
  expect(await sqlite(path, SUM)).toBe(steps.at(-1)!.sum);
  expect(await sqlite(path, 'PRAGMA journal_mode')).toBe('delete');
});

it('takes no notice of what others have put between its objects, here and in the drill below', async () => {
  for (const folder of ['', 'app.db', 'app.db/ltx', 'app.db/ltx/0', 'app.db/ltx/1', 'photos']) {
    mkdirSync(join(first, folder, 'old.ltx'), { recursive: true });
    for (const name of ['.DS_Store', 'notes.txt', 'x.ltx', `${'0'.repeat(15)}1-${'0'.repeat(15)}1.ltx.part`])
      writeFileSync(join(first, folder, name), 'not ours');
    writeFileSync(join(first, folder, 'old.ltx', `${'f'.repeat(16)}-${'f'.repeat(16)}.ltx`), 'not ours');
  }
  const { path, ran } = await restored('app.db');
  expect(ran.code, ran.stderr).toBe(0);
  expect(ran.stderr).toBe('');
  expect(await sqlite(path, SUM)).toBe(steps.at(-1)!.sum);
});

it('restores a TXID of the cluster, and lists both numberings', async () => {
  const { txid, sum } = steps[2]!;
  const { path, ran } = await restored('-cluster-txid', txid, 'app.db');
  expect(ran.code, ran.stderr).toBe(0);
  expect(await sqlite(path, SUM)).toBe(sum);
  const listed = await runCli(['backups', '-config', config]);
  expect(listed.stdout).toContain(`-cluster-txid ${steps.at(-1)!.txid}`);
  expect(listed.stdout).toContain(`file://${second}/app.db`);
});

it('drills every database at every destination, and fails when one has a flipped byte', async () => {
  const good = await runCli(['drill', '-config', config]);
  expect(good.code, good.stderr).toBe(0);
  const report = JSON.parse(good.stdout) as { ok: boolean; restores: { url: string; moment: string }[] };
  expect(report.ok).toBe(true);
  expect(report.restores.map(({ url, moment }) => `${moment} ${url}`)).toEqual(
    [first, second].flatMap((path) => [`latest file://${path}/app.db`, `random file://${path}/app.db`]),
  );
  const newest = newestOfLevel0();
  const whole = readFileSync(newest);
  // Wherever it is on the path or not: what is only there is gone.
  rmSync(join(first, 'app.db/ltx/1'), { recursive: true, force: true });
  const bytes = Buffer.from(whole);
  bytes[bytes.length - 30]! ^= 4;
  writeFileSync(newest, bytes);
  const saved = join(dir, 'report.json');
  const bad = await runCli(['drill', '-config', config, '-report', saved]);
  expect(bad.code).toBe(1);
  const { restores } = JSON.parse(readFileSync(saved, 'utf8')) as {
    restores: { url: string; ok: boolean }[];
  };
  expect(restores.find(({ ok }) => !ok)?.url).toBe(`file://${first}/app.db`);
  writeFileSync(newest, whole);
  renameSync(join(first, 'app.db'), join(dir, 'away'));
  const gone = await runCli(['drill', '-config', config, '-objects', 'restored']);
  renameSync(join(dir, 'away'), join(first, 'app.db'));
  expect(gone.code, 'also when all of it is gone').toBe(1);
  // By its name, once the head has it.
  expect(gone.stderr).toMatch(/first: there is no backup|first\/app\.db: .*has no backup/);
});

it('takes the next destination when one has lost something, and says so', async () => {
  const newest = newestOfLevel0();
  const bytes = readFileSync(newest);
  bytes[bytes.length - 30]! ^= 4;
  writeFileSync(newest, bytes);
  rmSync(join(first, 'app.db/ltx/1'), { recursive: true, force: true });
  const { path, ran } = await restored('app.db');
  expect(ran.code, ran.stderr).toBe(0);
  expect(ran.stderr).toContain(`Trying file://${second}`);
  expect(await sqlite(path, SUM)).toBe(steps.at(-1)!.sum);
});

it('says that the disk is full, and goes on after what is there when there is room', async () => {
  // Without compactions and snapshots, so that the path has several objects.
  for (const level of ['1', '9']) rmSync(join(second, 'app.db/ltx', level), { recursive: true, force: true });
  const disk = join(dir, 'disk');
  mkdirSync(disk);
  await run('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk]);
  try {
    const path = join(disk, 'app.db');
    const call = ['restore', '-o', path, `file://${second}/app.db`];
    const full = await runCli(call);
    expect(full.code).toBe(1);
    expect(full.stderr).toContain('[ERR_RESTORE_FULL]');
    expect(existsSync(path)).toBe(false);
    await run('mount', ['-o', 'remount,size=8m', disk]);
    const again = await runCli(call);
    expect(again.code, again.stderr).toBe(0);
    expect(again.stderr).toMatch(/going on after [1-9]\d* of \d+ objects/);
    expect(again.stdout).toContain('its checksum is the one recorded at that commit');
    expect(await sqlite(path, SUM)).toBe(steps.at(-1)!.sum);
    expect(readdirSync(disk)).toEqual(['app.db']);
  } finally {
    await run('umount', [disk]);
  }
});
