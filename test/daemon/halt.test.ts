import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { formatStatus } from '../../src/cli/status-format.js';
import { CLI, runCli, type CliRun } from '../cli/run-cli.js';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { Network } from '../helpers/network.js';
import { Shell } from '../helpers/shell.js';
import { Load } from './load.js';

/** HALT: a command writes a database from a replica, and the primary commits each of its transactions first. */
let cluster: TestCluster;
const migrations: Migration[] = [];

afterEach(() => {
  for (const migration of migrations.splice(0)) migration.run.kill('SIGKILL');
});

const NAME = 'app.db';
const WRITER = join(process.cwd(), 'test/daemon/halt-writer.mjs');
/** Nodes in network namespaces are other machines. */
const TOKEN = 'a token of this test';

const urlOf = (node: TestNode): string => `http://${node.place.address}:${node.httpPort}`;
const runOn = (node: TestNode, ...words: string[]): Promise<CliRun> =>
  runCli(['run', '--with-halt-lock-on', NAME, '--url', urlOf(node), '--wait', '20s', '--', ...words]);
const insert = (writer: string): string => `INSERT INTO t VALUES ('${writer}', 1, '')`;
const halt = (node: TestNode, method: string, query: string): Promise<Response> =>
  fetch(`${urlOf(node)}/halt?name=${NAME}&${query}`, { method });
const haltOf = async (node: TestNode): Promise<unknown> => (await node.database(NAME))?.halt;
const ended = async (node: TestNode): Promise<string[]> =>
  (await node.status()).events.filter(({ kind }) => kind === 'halt-ended').map(({ message }) => message);

/** `kitefs run --with-halt-lock-on app.db -- halt-writer` on a node. */
class Migration {
  readonly run: ChildProcess;
  readonly #writer: string;
  #output = '';

  constructor(node: TestNode, writer: string) {
    this.#writer = writer;
    const words = ['run', '--with-halt-lock-on', NAME, '--url', urlOf(node)];
    const command = [process.execPath, WRITER, writer, node.path(NAME)];
    this.run = spawn(process.execPath, [CLI, ...words, '--', ...command], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: { ...process.env, KITEFS_HTTP_TOKEN: TOKEN },
    });
    this.run.stdout?.on('data', (text: Buffer) => (this.#output += text.toString()));
    migrations.push(this);
  }

  /** The command's own process. */
  get pid(): number {
    return Number(/^pid (\d+)$/m.exec(this.#output)?.[1]);
  }

  get acked(): number[] {
    return [...this.#output.matchAll(/^(\d+)$/gm)].map(([, n]) => Number(n));
  }

  get error(): string | undefined {
    return /^error (.*)$/m.exec(this.#output)?.[1];
  }

  async goesOn(rows = 5): Promise<void> {
    const before = this.acked.length;
    await waitFor(`${rows} rows`, () => this.acked.length >= before + rows);
  }

  /** Resolves with its exit code when it has ended. */
  async end(): Promise<number | null> {
    if (this.run.exitCode === null && this.run.signalCode === null) await once(this.run, 'close');
    return this.run.exitCode;
  }

  /** Fails unless every row that was acknowledged is there. */
  async assertKept(node: TestNode): Promise<void> {
    const rows = new Set(
      (await node.sql(NAME, `SELECT n FROM t WHERE writer = '${this.#writer}'`)).split('\n'),
    );
    const lost = this.acked.filter((n) => !rows.has(String(n)));
    if (lost.length > 0) throw new Error(`${lost.join(', ')} of ${this.acked.length} are not on ${node.id}`);
  }
}

describe('HALT', () => {
  let first: TestNode;
  let second: TestNode;
  let third: TestNode;

  beforeAll(async () => {
    // Commits wait for a replica too: for the one that has made them.
    const config = { halt: { ttl: '1s' }, durability: { commit: 'replicas: 1' } };
    cluster = await TestCluster.start({ ttl: '2s', config });
    third = await cluster.add({ ttl: '2s', candidate: false, config });
    [first, second] = [cluster.node(1), cluster.node(2)];
    await first.sql(NAME, 'PRAGMA journal_mode=wal', Load.table);
    await cluster.caughtUp(NAME);
  });
  afterAll(async () => {
    await cluster.stop();
  });

  it('lets a command migrate from a replica under writers of the primary, who ride it out', async () => {
    await first.sql('other.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)');
    const load = new Load([first], NAME, 1);
    const migration = new Migration(second, 'm');
    await migration.goesOn();
    // Readers everywhere see each row, and another database is written as ever.
    await waitFor('rows on the third node', async () => {
      return Number(await third.sql(NAME, "SELECT count(*) FROM t WHERE writer = 'm'")) > 3;
    });
    expect(Number(await second.sql(NAME, 'SELECT count(*) FROM t'))).toBeGreaterThan(3);
    await first.sql('other.db', 'INSERT INTO t VALUES (1)');
    const busy = new Shell(first.path(NAME));
    expect(await busy.ask(insert('busy'))).toContain('locked');
    await busy.close();
    await migration.goesOn();
    migration.run.stdin?.end();
    expect(await migration.end()).toBe(0);
    // Large, with pages that come and go.
    const sql = [
      'CREATE TABLE m AS SELECT value, randomblob(900) AS body FROM generate_series(1, 600)',
      'DELETE FROM m WHERE value > 10',
      'VACUUM',
      'PRAGMA wal_checkpoint(TRUNCATE)',
      'ALTER TABLE m ADD COLUMN more',
    ];
    const long = ['sqlite3', '-bail', second.path(NAME), sql.join(';')];
    expect(await runOn(second, ...long)).toMatchObject({ code: 0, stderr: '' });
    const { rows, errors } = await load.finish(cluster);
    // Their busy timeout may end before a migration does.
    expect(errors.filter((error) => !error.includes('database is locked'))).toEqual([]);
    expect(rows).toBeGreaterThan(10);
    await migration.assertKept(first);
    expect(await first.sql(NAME, 'SELECT count(*), max(more) FROM m')).toBe('10|');
    await cluster.assertSame('other.db');
    // It replicates to where it came from as ever afterwards.
    await first.sql(NAME, insert('after'));
    await cluster.assertSame(NAME);
    for (const node of [second, third]) {
      expect(
        (await node.status()).events.filter(({ kind }) => /resync|lost|apply-failed/.test(kind)),
      ).toEqual([]);
    }
  });

  it('ends with the command, and with whoever renews it', async () => {
    // Killed in a commit.
    const killed = new Migration(second, 'k');
    await killed.goesOn();
    process.kill(killed.pid, 'SIGKILL');
    expect(await killed.end()).toBe(137);
    await first.sql(NAME, insert('after-k'));
    await killed.assertKept(first);

    // Longer than the ttl, and idle in between.
    const slow = ['sh', '-c', `sleep 2.5; sqlite3 ${second.path(NAME)} "${insert('slow')}"`];
    expect(await runOn(second, ...slow)).toMatchObject({ code: 0, stderr: '' });
    expect(await first.sql(NAME, "SELECT count(*) FROM t WHERE writer = 'slow'")).toBe('1');

    // Nobody renews it, and a connection that could write goes on without.
    const orphan = new Shell(second.path(NAME));
    expect((await halt(second, 'POST', 'id=5')).status).toBe(200);
    expect(await orphan.ask(insert('orphan'))).toBe('');
    await waitFor('the end of it', async () =>
      (await ended(second)).some((why) => why.includes('not renewed')),
    );
    expect(await orphan.ask(insert('late'))).toContain('disk I/O error');
    await first.sql(NAME, insert('after-orphan'));
    expect(await orphan.ask("SELECT group_concat(writer, ' ') FROM t WHERE writer LIKE '%orphan'")).toContain(
      'orphan',
    );
    await orphan.close();
    await cluster.assertSame(NAME);
    expect(await first.sql(NAME, "SELECT count(*) FROM t WHERE writer IN ('orphan', 'late')")).toBe('1');
  });

  it('refuses what cannot be, and says why', async () => {
    const one = await halt(second, 'POST', 'id=7');
    expect(one.status).toBe(200);
    const { id, pos, expires } = (await one.json()) as { id: number; pos: object; expires: string };
    const [txid, postApplyChecksum] = (await first.database(NAME))!.position.split('/');
    expect({ id, pos }).toEqual({ id: 7, pos: { txid, postApplyChecksum } });
    expect(Date.parse(expires)).toBeGreaterThan(Date.now());
    // Both say so, the primary and the replica.
    for (const node of [first, second]) {
      expect(await haltOf(node)).toMatchObject({ nodeId: second.id, id: 7, remainingMs: expect.any(Number) });
      expect(formatStatus(await node.status())).toMatch(
        /app\.db .*node2 writes it \(HALT 7\), for .*s unless renewed/,
      );
    }
    // The same id is the same HALT; another one, here or elsewhere, has to wait.
    expect((await halt(second, 'POST', 'id=7')).status).toBe(200);
    expect((await halt(second, 'POST', 'id=8')).status).toBe(409);
    const taken = await halt(third, 'POST', 'id=9&wait=0');
    expect(await taken.text()).toMatch(/node2 writes app\.db/);
    expect(taken.status).toBe(409);
    // One that waits gets it when the other is done or late; also on a node that is never primary.
    const waits = await halt(third, 'POST', 'id=9&wait=5000');
    expect(waits.status).toBe(200);
    expect((await halt(second, 'POST', 'id=7&renew=true')).status).toBe(409);
    await third.sql(NAME, insert('third'));
    expect((await halt(third, 'DELETE', 'id=9')).status).toBe(200);
    expect((await halt(third, 'DELETE', 'id=9')).status).toBe(200);
    await expect(third.sql(NAME, insert('again'))).rejects.toThrow(/readonly/);
    expect([await haltOf(first), await haltOf(third)]).toEqual([undefined, undefined]);
    await cluster.assertSame(NAME);

    // On the primary the command is just run.
    expect(await runOn(first, 'sqlite3', first.path(NAME), insert('primary'))).toMatchObject({ code: 0 });
    const path = ['run', '--with-halt-lock-on', second.path(NAME), '--url', urlOf(second), '--'];
    expect(await runCli([...path, 'sqlite3', second.path(NAME), insert('path')])).toMatchObject({ code: 0 });
    const both = await runCli(['run', '--promote', '--with-halt-lock-on', NAME, '--', 'true']);
    expect(both).toMatchObject({ code: 2, stderr: expect.stringContaining('exclude') });
    expect((await halt(second, 'POST', 'id=x')).status).toBe(400);
    await first.sql('old.db', 'PRAGMA journal_mode=delete', 'CREATE TABLE t(n)');
    await cluster.caughtUp('old.db');
    const old = await fetch(`${urlOf(second)}/halt?name=old.db&id=1`, { method: 'POST' });
    expect(await old.text()).toContain('ERR_HALT_JOURNAL_MODE');
    await first.sql('old.db', 'INSERT INTO t VALUES (1)');
    await cluster.assertSame('old.db');
  });
});

describe('HALT loses nothing that was acknowledged, and lets the primary go on', () => {
  let network: Network;
  let first: TestNode;
  let second: TestNode;

  beforeAll(async () => {
    network = new Network();
    const config = {
      halt: { ttl: '1s' },
      peer: { secret: 'a secret of this test, and long enough' },
      http: { token: TOKEN },
    };
    cluster = await TestCluster.start({ nodes: 0 });
    for (let i = 0; i < 2; i += 1) await cluster.add({ ttl: '6s', config, place: network.add() });
    [first, second] = [cluster.node(1), cluster.node(2)];
    await first.sql(NAME, 'PRAGMA journal_mode=wal', Load.table);
    await cluster.caughtUp(NAME);
  });
  afterAll(async () => {
    await cluster.stop();
    network.stop();
  });

  /** A migration on the second node that something happens to: nothing acknowledged is missing, and the nodes are equal at the end. */
  async function cutOff(
    writer: string,
    happen: () => Promise<void> | void,
    mend: () => Promise<void> | void,
  ): Promise<void> {
    const migration = new Migration(second, writer);
    await migration.goesOn();
    await happen();
    // The lock is let go by itself.
    await first.sql(NAME, insert(`after-${writer}`));
    await mend();
    await migration.end();
    expect(migration.error).toContain('disk I/O error');
    await cluster.assertSame(NAME);
    for (const node of [first, second]) await migration.assertKept(node);
    expect(await haltOf(first)).toBeUndefined();
  }

  it('when the link is cut in one direction or the other', async () => {
    for (const [from, to] of [
      [second, first],
      [first, second],
    ] as const) {
      await cutOff(
        `cut-${from.id}`,
        () => network.cut(from.place, to.place),
        () => network.mend(from.place, to.place),
      );
    }
  });

  it('when the applier of the primary is killed, or the replica stopped beyond the deadline', async () => {
    await cutOff(
      'applier',
      async () => void process.kill(await first.applierPid(), 'SIGKILL'),
      () => undefined,
    );
    await cutOff(
      'stopped',
      () => void process.kill(second.pid, 'SIGSTOP'),
      () => void process.kill(second.pid, 'SIGCONT'),
    );
  });

  it('when the primary does not answer: what it does not take is not kept either, though nobody writes anything else', async () => {
    const refused = new Migration(second, 'r');
    await refused.goesOn();
    process.kill(first.pid, 'SIGSTOP');
    await waitFor('an error', () => refused.error !== undefined);
    process.kill(first.pid, 'SIGCONT');
    await refused.end();
    await cluster.assertSame(NAME);
    await refused.assertKept(first);
  });

  it('when the replica is killed', async () => {
    const killed = new Migration(second, 'k');
    await killed.goesOn();
    await second.kill();
    await first.sql(NAME, insert('while-killed'));
    await killed.assertKept(first);
    await killed.end();
    await second.clear();
    await second.start();
    await cluster.assertSame(NAME);
    await killed.assertKept(second);
  });

  it('when the primary is killed', async () => {
    const migration = new Migration(second, 'm');
    await migration.goesOn(20);
    await first.kill();
    await migration.end();
    expect(migration.error).toContain('disk I/O error');
    await waitFor('node2 to be primary', async () => (await second.status()).role === 'primary');
    await migration.assertKept(second);
    await second.sql(NAME, insert('after'));
    await first.clear();
    await first.start();
    await cluster.assertSame(NAME);
    await migration.assertKept(first);

    // Both are killed, and the primary starts alone: what it does not have was acknowledged to nobody.
    const back = new Migration(first, 'b');
    await back.goesOn(20);
    await second.kill();
    await first.kill();
    await back.end();
    await second.clear();
    await second.start();
    await back.assertKept(second);
    await second.sql(NAME, insert('alone'));
    await first.clear();
    await first.start();
    await cluster.assertSame(NAME);
  });
});
