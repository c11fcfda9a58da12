import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { waitFor } from './cluster.js';

export interface Instruction {
  readonly instruction: string;
  readonly rest: string;
}

/** A stage of deploy/docker/Dockerfile by its name, as instructions, FROM first. */
export function stage(name: string): Instruction[] {
  const lines = readFileSync(join(process.cwd(), 'deploy/docker/Dockerfile'), 'utf8')
    .replaceAll(/\\\n/g, ' ')
    .split('\n')
    .flatMap((line) => {
      const match = /^([A-Z]+) (.*)$/.exec(line);
      return match?.[1] !== undefined && match[2] !== undefined
        ? [{ instruction: match[1], rest: match[2] }]
        : [];
    });
  const from = lines.findIndex(
    ({ instruction, rest }) => instruction === 'FROM' && rest.endsWith(` AS ${name}`),
  );
  expect(from, `a stage ${name}`).not.toBe(-1);
  const next = lines.findIndex(({ instruction }, i) => i > from && instruction === 'FROM');
  return lines.slice(from, next === -1 ? undefined : next);
}

/** Where a node of the example is when it is started alone on this machine: `root` is the image's root as the node sees it. */
export interface ExamplePlace {
  readonly root: string;
  readonly proxy: number;
  readonly app: number;
  readonly http: number;
  readonly peer: number;
}

/** What makes of compose's node configuration that of one node by itself. */
export const alone = ({ root, proxy, app, http, peer }: ExamplePlace): Record<string, string> => ({
  HOSTNAME: 'node1',
  KITEFS_FUSE_DIR: `${root}/litefs`,
  KITEFS_DATA_DIR: `${root}/var/lib/kitefs`,
  KITEFS_LEASE_TYPE: 'local',
  KITEFS_LEASE_PATH: `${root}/lease.db`,
  KITEFS_HTTP_ADDR: `127.0.0.1:${http}`,
  KITEFS_PEER_ADDR: `127.0.0.1:${peer}`,
  KITEFS_PEER_ADVERTISE: `127.0.0.1:${peer}`,
  KITEFS_PROXY_ADDR: `127.0.0.1:${proxy}`,
  KITEFS_PROXY_TARGET: `127.0.0.1:${app}`,
  KITEFS_BACKUPS: `file://${root}/backups`,
  KITEFS_EXEC: `node ${root}/opt/kitefs/example/server.mjs`,
  PORT: String(app),
  DATABASE: `${root}/litefs/guestbook.db`,
});

/** Waits for the example behind a node's proxy, signs its guest book, and reads it with the cookie of the answer. */
export async function signTheBook(node: ChildProcess, proxyPort: number): Promise<void> {
  let log = '';
  node.stderr!.on('data', (chunk: Buffer) => (log += chunk.toString()));
  const url = `http://127.0.0.1:${proxyPort}/`;
  await waitFor(
    () => `the example to answer; the log: ${log}`,
    async () => {
      expect(node.exitCode, log).toBeNull();
      return (await fetch(url).catch(() => undefined))?.status === 200;
    },
  );
  const body = new URLSearchParams({ name: 'Ada & <Grace>' });
  const signed = await fetch(url, { method: 'POST', body, redirect: 'manual' });
  expect([signed.status, signed.headers.get('location')]).toEqual([303, '/']);
  const cookie = signed.headers.get('set-cookie')!.split(';')[0]!;
  expect(cookie).toMatch(/^kitefs-token=guestbook\.db=\d+:\d+$/);
  const page = await fetch(url, { headers: { cookie } });
  expect(await page.text()).toContain('<li>Ada &#38; &#60;Grace&#62;,');
  expect(page.headers.get('cache-control')).toBe('private, no-cache');
}
