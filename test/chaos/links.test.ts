import { afterEach, expect, it } from 'vitest';
import { generator } from '../equivalence/statements.js';
import { TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';
import { TestConsul } from '../helpers/consul.js';
import { Network, type Place } from '../helpers/network.js';

/**
 * Links that lose everything in one direction or in both, between the primary and Consul, and between the primary and the replica that
 * its commits wait for, of two. At no time do two nodes take writes, commits go on by the other replica, and every row whose
 * COMMIT returned is there at the end. LINKS=30 is the campaign (`npm run links`).
 */
const LINKS = Number(process.env['LINKS'] ?? 2);
const SEED = Number(process.env['SEED'] ?? Math.floor(Math.random() * 1_000_000));
const SECRET = 'a secret of this test, and long enough to be one';

let network: Network | undefined;
let consul: TestConsul | undefined;
let cluster: TestCluster | undefined;

afterEach(async () => {
  await cluster?.stop();
  await consul?.stop();
  network?.stop();
});

const KINDS = [
  'from-consul',
  'to-replica',
  'to-consul',
  'from-replica',
  'with-consul',
  'with-replica',
] as const;

it(
  `has one primary and loses nothing while ${LINKS} links are cut`,
  async () => {
    console.log(`links: SEED=${SEED} LINKS=${LINKS}`);
    const next = generator(SEED);
    const net = (network = new Network());
    consul = await TestConsul.start({ config: { client_addr: '0.0.0.0' } });
    const url = `http://${net.machine.address}:${consul.httpPort}`;
    const config = {
      lease: { type: 'consul', consul: { url, key: 'app/primary' } },
      peer: { secret: SECRET },
      durability: { commit: 'replicas: 1' },
    };
    const all = (cluster = await TestCluster.start({ nodes: 0 }));
    const places = new Map<TestNode, Place>();
    for (let i = 0; i < 3; i += 1) {
      const place = net.add();
      const node = await all.prepare({ place, ttl: '2s', config });
      places.set(node, place);
      await node.start();
    }
    await all.node(1).sql('app.db', 'PRAGMA journal_mode=wal', 'CREATE TABLE t(n)');
    const insert = (node: TestNode, n: number): Promise<string> =>
      node.sql('app.db', `INSERT INTO t VALUES (${n})`);

    for (let round = 0; round < LINKS; round += 1) {
      const kind = KINDS[LINKS <= KINDS.length ? round : next(KINDS.length)]!;
      const primary = await all.primary();
      const others = all.nodes.filter((node) => node !== primary);
      await insert(primary, 2 * round);
      await all.caughtUp('app.db');
      const { durability } = await primary.status();
      const replica = others.find(({ id }) => durability?.syncSet.includes(id))!;
      expect(durability?.syncSet).toHaveLength(2);
      const [direction, who] = kind.split('-');
      const [one, other] = [places.get(primary)!, who === 'consul' ? net.machine : places.get(replica)!];
      const cuts: [Place, Place][] = [];
      if (direction !== 'from') cuts.push([one, other]);
      if (direction !== 'to') cuts.push([other, one]);
      for (const [from, to] of cuts) net.cut(from, to);
      if (who === 'consul') {
        // The primary itself cannot be asked: this test is where Consul is.
        // A member of the sync set, and nobody else.
        await waitFor(`${replica.id} to be primary (${kind})`, async () => {
          return (await replica.status()).role === 'primary';
        });
        await expect(insert(primary, 666)).rejects.toThrow(/readonly|disk I\/O/);
        await insert(replica, 2 * round + 1);
      } else {
        await insert(primary, 2 * round + 1);
        expect((await primary.status()).durability?.syncSet).not.toContain(replica.id);
        for (const node of others) expect((await node.status()).role).toBe('replica');
      }
      for (const [from, to] of cuts) net.mend(from, to);
      await all.assertSame('app.db');
    }
    const rows = Array.from({ length: 2 * LINKS }, (_, n) => n).join(',');
    for (const node of all.nodes)
      expect(await node.sql('app.db', 'SELECT group_concat(n) FROM t')).toBe(rows);
  },
  120_000 + LINKS * 20_000,
);
