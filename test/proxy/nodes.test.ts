import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { freePort, run, TestCluster, type TestNode, waitFor } from '../helpers/cluster.js';

/** Three nodes, each with its application behind its proxy; the cases go on where the one before has ended. */
const APPLICATION = join(process.cwd(), 'test/proxy/application.mjs');

interface Served {
  readonly node: TestNode;
  readonly proxy: number;
  readonly app: number;
}

let cluster: TestCluster;
const served: Served[] = [];

beforeAll(async () => {
  cluster = await TestCluster.start({ nodes: 0, ttl: '1s' });
  for (let i = 0; i < 3; i++) {
    const [proxy, app] = [await freePort(), await freePort()];
    const node = await cluster.prepare({
      ttl: '1s',
      config: {
        peer: { secret: 'a secret of the cluster' },
        proxy: { addr: `127.0.0.1:${proxy}`, target: `127.0.0.1:${app}`, drain: '2s', buffer: '64KB' },
      },
    });
    served.push({ node, proxy, app });
    await node.start(process.execPath, APPLICATION, String(app), node.path('app.db'));
    if (i === 0)
      await node.sql('app.db', 'PRAGMA journal_mode=WAL; CREATE TABLE notes (id TEXT PRIMARY KEY, size INT)');
  }
  await cluster.caughtUp('app.db');
});
afterAll(async () => await cluster?.stop());

async function answerOf(answer: Response): Promise<Record<string, unknown>> {
  return (await answer.json()) as Record<string, unknown>;
}

const post = (at: Served, id: string, body = 'text'): Promise<Response> =>
  fetch(`http://127.0.0.1:${at.proxy}/notes?id=${id}`, { method: 'POST', body });

/** A hand-off is called off when the target cannot keep up with the writers in time; then it is asked for again. */
async function promote(node: TestNode): Promise<void> {
  await waitFor(`${node.id} to become the primary`, async () => {
    const answer = await fetch(`http://127.0.0.1:${node.httpPort}/promote`, { method: 'POST' });
    return answer.status === 200;
  });
}

describe('three nodes behind their proxies', () => {
  it('write at the primary wherever the request comes in, and read what was written', async () => {
    const [first, second, third] = served as [Served, Served, Served];
    for (const [i, at] of [first, second, third].entries()) {
      const answer = await post(at, `a${i}`);
      expect(answer.status).toBe(200);
      expect(await answerOf(answer)).toMatchObject({ port: String(first.app) });
      const cookie = (answer.headers.get('set-cookie') ?? '').split(';')[0] ?? '';
      expect(cookie).toMatch(/^kitefs-token=/);
      const read = await fetch(`http://127.0.0.1:${at.proxy}/notes`, { headers: { cookie } });
      const body = await answerOf(read);
      expect(body['port']).toBe(String(at.app));
      expect(body['ids']).toContain(`a${i}`);
    }
    // The primary's application is told of the client, not of the node between.
    const who = await fetch(`http://127.0.0.1:${second.proxy}/who`, { method: 'POST' });
    expect(await answerOf(who)).toEqual({ port: String(first.app), forwarded: '127.0.0.1' });
  });

  it('pass large bodies on as they come', async () => {
    const { proxy } = served[1]!;
    const size = 8 << 20;
    const { stdout } = await promisify(execFile)('sh', [
      '-c',
      `head -c ${size} /dev/zero | curl -sS -T - -X POST 'http://127.0.0.1:${proxy}/notes?id=large'`,
    ]);
    expect(JSON.parse(stdout)).toEqual({ port: String(served[0]!.app), id: 'large', size });
  });

  it('speak HTTP/2 with clients that know it, as curl does', async () => {
    const curl = async (at: Served, ...args: string[]): Promise<Record<string, unknown>> => {
      const path = args.pop();
      const { stdout } = await promisify(execFile)('curl', [
        '-sS',
        '--http2-prior-knowledge',
        '-w',
        '\n%{http_version} %{http_code}',
        ...args,
        `http://127.0.0.1:${at.proxy}${path}`,
      ]);
      const [body, how] = stdout.split('\n');
      expect(how).toBe('2 200');
      return JSON.parse(body ?? '') as Record<string, unknown>;
    };
    const [first, second] = served as [Served, Served];
    const jar = join(cluster.dir, 'cookies');
    const [zeros, size] = [join(cluster.dir, 'zeros'), 8 << 20];
    await writeFile(zeros, Buffer.alloc(size));
    const body = ['-X', 'POST', '-T', zeros];
    const written = await curl(second, '-c', jar, ...body, '/notes?id=h2');
    expect(written).toEqual({ port: String(first.app), id: 'h2', size });
    const read = await curl(second, '-b', jar, '/notes');
    expect(read['port']).toBe(String(second.app));
    expect(read['ids']).toContain('h2');
  });

  it('send on what the application of a replica does not want', async () => {
    const answer = await fetch(`http://127.0.0.1:${served[2]!.proxy}/ask`, {
      headers: { 'x-at': 'primary' },
    });
    expect(await answerOf(answer)).toEqual({ port: String(served[2]!.app) });
    // Asked for, so that the primary answers: there it is passed on as it is.
    const asked = await fetch(`http://127.0.0.1:${served[2]!.proxy}/ask`);
    expect(asked.status).toBe(409);
    expect(asked.headers.has('kitefs-forward')).toBe(false);
  });

  it('lose no write and refuse none over hand-offs', async () => {
    const ids: string[] = [];
    const failed: string[] = [];
    const ended = new AbortController();
    const writers = served.map(async (at, w) => {
      for (let i = 0; !ended.signal.aborted; i++) {
        const id = `h${w}-${i}`;
        const answer = await post(at, id);
        if (answer.status === 200) ids.push(id);
        else failed.push(`${id}: ${answer.status} ${await answer.text()}`);
      }
    });
    try {
      for (const target of [1, 0]) {
        const from = ids.length;
        await waitFor('some writes', () => ids.length > from + 10);
        await promote(served[target]!.node);
      }
    } finally {
      ended.abort();
      await Promise.all(writers);
    }
    expect(failed).toEqual([]);
    expect(ids.length).toBeGreaterThan(30);
    await cluster.caughtUp('app.db');
    for (const at of served) {
      const { ids: there } = await answerOf(await fetch(`http://127.0.0.1:${at.proxy}/notes`));
      expect(new Set(there as string[])).toEqual(new Set([...(there as string[]), ...ids]));
    }
  });

  it('keep upgraded connections here, and those of a stopping node until they end', async () => {
    const [first] = served as [Served];
    const socket = connect(first.proxy, '127.0.0.1');
    let text = '';
    socket.on('data', (chunk) => (text += String(chunk)));
    socket.write('GET /echo HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly');
    await waitFor('the echo', () => text.endsWith('early'));
    expect(text).toContain(`101 Switching Protocols`);
    expect(text).toContain(`\r\n\r\n${first.app}\n`);
    const closed = new Promise((resolve) => socket.once('close', resolve));
    // It is the primary: its successor takes the writes that come in meanwhile.
    const stopped = first.node.stop();
    const answers = await Promise.all([post(served[1]!, 's1'), post(served[2]!, 's2')]);
    expect(answers.map(({ status }) => status)).toEqual([200, 200]);
    await closed;
    await stopped;
    expect(await run('sh', ['-c', `cat ${first.node.logPath} | grep -c 'the proxy ended' || true`])).toBe(
      '0',
    );
  });

  it('hold writes while the primary is gone, and start the proxy again when it is killed', async () => {
    const primary = await cluster.primary();
    const at = served.find(({ node }) => node !== primary && node.running)!;
    await primary.kill();
    // A write that was on its way there would be in doubt: 502, and never sent twice.
    const { proxy } = served.find(({ node }) => node === primary)!;
    await waitFor('its proxy to end', async () => {
      const open = await fetch(`http://127.0.0.1:${proxy}/who`).then(
        () => true,
        () => false,
      );
      return !open;
    });
    let answer!: Response;
    await waitFor('a new primary to take it', async () => {
      answer = await post(at, 'k1');
      // Sent on a connection of which the end was not seen yet, it is in doubt as well.
      if (answer.status !== 200) expect(answer.status, await answer.clone().text()).toBe(502);
      return answer.status === 200;
    });
    expect(await answerOf(answer)).toMatchObject({ port: String(at.app) });
    const pids = await run('ps', ['-o', 'pid=,args=', '--ppid', String(at.node.pid)]);
    const pid = /(\d+) .*proxy\/main/.exec(pids)?.[1];
    process.kill(Number(pid), 'SIGKILL');
    await waitFor('another proxy', async () => {
      const again = await post(at, 'k2').catch(() => undefined);
      return again?.status === 200 || again?.status === 500;
    });
    expect(await at.node.metric('kitefs_proxy_restart_count')).toBe(1);
  });
});
