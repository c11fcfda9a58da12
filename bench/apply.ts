import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { Applier } from '../src/applier/applier.js';
import { createLogger } from '../src/observability/log.js';
import { Source } from '../test/applier/source.js';
import type { LogFile } from '../src/store/types.js';

/** How fast the applier applies, without a mount between: the upper limit of a replica. */
export interface ApplyFigures {
  /** One-row transactions per second, sent one call each as they come from a stream. */
  readonly smallPerSecond: number;
  /** Large transactions, bytes of pages per second. */
  readonly largeBytesPerSecond: number;
}

const SMALL = 5000;
const LARGE_BYTES = 200 << 20;

export async function benchApply(): Promise<ApplyFigures> {
  const dir = mkdtempSync(join(tmpdir(), 'kitefs-bench-apply-'));
  mkdirSync(join(dir, 'mnt'));
  const dataDir = join(dir, 'data');
  const logger = createLogger({ level: 'warn', format: 'auto' });
  const applier = await Applier.start({ mountDir: join(dir, 'mnt'), dataDir, logger });
  try {
    const small = new Source(join(dir, 'small'), dataDir, 'small.db');
    await applier.apply('small.db', [small.run('CREATE TABLE t(id INTEGER PRIMARY KEY, x)')]);
    const files = Array.from({ length: SMALL }, () => small.run('INSERT INTO t(x) VALUES (randomblob(100))'));
    const smallSeconds = await seconds(() =>
      Promise.all(files.map((file) => applier.apply('small.db', [file]))),
    );

    const large = new Source(join(dir, 'large'), dataDir, 'large.db');
    await applier.apply('large.db', [large.run('CREATE TABLE t(id INTEGER PRIMARY KEY, x)')]);
    const file: LogFile = large.run(
      `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${LARGE_BYTES / 10_000})
       INSERT INTO t(x) SELECT randomblob(10000) FROM n`,
    );
    const largeSeconds = await seconds(() => applier.apply('large.db', [file]));
    return {
      smallPerSecond: SMALL / smallSeconds,
      largeBytesPerSecond: (file.commitPages * file.pageSize) / largeSeconds,
    };
  } finally {
    await applier.stop();
    rmSync(dir, { recursive: true, force: true });
  }
}

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return (performance.now() - start) / 1000;
}
