import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { text } from 'node:stream/consumers';
import type { TestCluster, TestNode } from '../helpers/cluster.js';

const WRITER = join(process.cwd(), 'test/daemon/load.mjs');

interface Report {
  readonly acked: readonly number[];
  readonly at: readonly number[];
  readonly errors: Readonly<Record<string, number>>;
}

/** Several processes that commit as fast as they can, wherever the primary is, and know what was acknowledged. */
export class Load {
  readonly #writers: { child: ChildProcessByStdio<Writable, Readable, null>; report: Promise<string> }[] = [];
  readonly #name: string;

  constructor(nodes: readonly TestNode[], name: string, writers = 3) {
    this.#name = name;
    for (let i = 0; i < writers; i += 1) {
      const args = [WRITER, `w${i}`, ...nodes.map((node) => node.path(name))];
      const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
      this.#writers.push({ child, report: text(child.stdout) });
    }
  }

  static readonly table = 'CREATE TABLE t(writer, n INTEGER, body, PRIMARY KEY(writer, n))';

  /**
   * Ends the writers. Fails unless every acknowledged row is on every node; returns how it went. `longestGapsMs`: in each of `spans`
   * (ms of the epoch), the longest time without an acknowledged row that was not over when it began.
   */
  async finish(
    cluster: TestCluster,
    spans: readonly (readonly [number, number])[] = [],
  ): Promise<{ rows: number; longestGapMs: number; longestGapsMs: number[]; errors: string[] }> {
    for (const { child } of this.#writers) child.stdin.end();
    const reports = await Promise.all(
      this.#writers.map(async ({ report }) => JSON.parse(await report) as Report),
    );
    await cluster.assertSame(this.#name);
    for (const node of cluster.nodes.filter((one) => one.running)) {
      const rows = new Set((await node.sql(this.#name, "SELECT writer || '/' || n FROM t")).split('\n'));
      const lost = reports.flatMap(({ acked }, i) => acked.filter((n) => !rows.has(`w${i}/${n}`)));
      if (lost.length > 0) {
        const of = reports.map(({ acked }, i) => {
          const missing = acked.filter((n) => !rows.has(`w${i}/${n}`));
          return `w${i}: ${missing.length} from ${missing[0]} to ${missing.at(-1)} of ${acked.length}`;
        });
        throw new Error(`${lost.length} acknowledged rows are not on ${node.id}: ${of.join('; ')}`);
      }
    }
    const at = reports.flatMap((report) => report.at).toSorted((a, b) => a - b);
    const gaps = at.map((ms, i) => ms - (at[i - 1] ?? ms));
    return {
      rows: at.length,
      longestGapMs: Math.round(Math.max(...gaps)),
      longestGapsMs: spans.map(([from, to]) => {
        const within = gaps.filter((gap, i) => at[i]! >= from && at[i]! - gap <= to);
        return Math.round(Math.max(...within));
      }),
      errors: reports.flatMap((report) => Object.entries(report.errors).map(([text, n]) => `${n}x ${text}`)),
    };
  }
}
