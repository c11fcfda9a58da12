import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from '../test/helpers/cluster.js';

const START_LIMIT_MS = 20_000;

/** Whether `litefs` is on PATH: then it is measured beside us. It needs fusermount3. */
export const hasLiteFs: boolean = spawnSync('litefs', ['version']).status === 0;

/** A LiteFS primary, and a replica if wanted, on this machine with a static lease. */
export class LiteFsNodes {
  readonly #dir: string;
  readonly #processes: ChildProcess[] = [];

  private constructor(dir: string) {
    this.#dir = dir;
  }

  /** Resolves when all are mounted. */
  static async start(nodes: 1 | 2 = 2): Promise<LiteFsNodes> {
    const started = new LiteFsNodes(mkdtempSync(join(tmpdir(), 'litefs-bench-')));
    const ports = await Promise.all([freePort(), freePort()].slice(0, nodes));
    for (const [index, port] of ports.entries()) {
      const node = join(started.#dir, `node${index + 1}`);
      mkdirSync(join(node, 'mount'), { recursive: true });
      const lines = [
        `fuse: { dir: ${join(node, 'mount')} }`,
        `data: { dir: ${join(node, 'data')} }`,
        `http: { addr: "127.0.0.1:${port}" }`,
        `lease: { type: static, candidate: ${index === 0}, hostname: node1, advertise-url: "http://127.0.0.1:${ports[0]}" }`,
      ];
      writeFileSync(join(node, 'litefs.yml'), lines.join('\n'));
      const log = openSync(join(node, 'log'), 'w');
      started.#processes.push(
        spawn('litefs', ['mount', '-config', join(node, 'litefs.yml')], { stdio: ['ignore', log, log] }),
      );
      for (const limitMs = Date.now() + START_LIMIT_MS; !isMounted(join(node, 'mount')); await sleep(50)) {
        if (Date.now() > limitMs) throw new Error(`litefs: ${readFileSync(join(node, 'log'), 'utf8')}`);
      }
    }
    return started;
  }

  path(node: 1 | 2, name: string): string {
    return join(this.#dir, `node${node}`, 'mount', name);
  }

  async stop(): Promise<void> {
    for (const child of this.#processes.toReversed()) {
      if (child.exitCode !== null) continue;
      child.kill('SIGTERM');
      await Promise.race([once(child, 'exit'), sleep(5000)]);
      child.kill('SIGKILL');
    }
    for (const index of this.#processes.keys()) {
      spawnSync('umount', ['-l', join(this.#dir, `node${index + 1}`, 'mount')]);
    }
    rmSync(this.#dir, { recursive: true, force: true });
  }
}

const isMounted = (dir: string): boolean => readFileSync('/proc/mounts', 'utf8').includes(` ${dir} fuse`);
