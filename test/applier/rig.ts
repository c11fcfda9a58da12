import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

import { createLogger } from '../../src/observability/log.js';
import type { Applier as ApplierClass, ApplierOptions } from '../../src/applier/applier.js';
import type { ApplierEvent } from '../../src/applier/messages.js';
import { run } from '../helpers/cluster.js';
import { Source, withoutJournalMode, type SourceOptions } from './source.js';

const CLI =
  process.env['TEST_KITEFS_CLI'] ?? fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
/** The built one: its process is a program of its own. */
const { Applier } = (await import(pathToFileURL(join(dirname(CLI), '../applier/applier.js')).href)) as {
  Applier: typeof ApplierClass;
};

const READ_BYTES = fileURLToPath(new URL('read-bytes.mjs', import.meta.url));

/** An applier over a plain folder in place of a mount, and a primary that makes transactions for it. */
export class Rig {
  readonly dir = fs.mkdtempSync(join(tmpdir(), 'kitefs-applier-'));
  readonly mountDir = join(this.dir, 'mnt');
  readonly dataDir = join(this.dir, 'data');
  readonly name = 'app.db';
  readonly path = join(this.mountDir, this.name);
  readonly events: ApplierEvent[] = [];
  readonly source: Source;
  applier!: ApplierClass;
  readonly #others: Source[] = [];

  private constructor(options: SourceOptions) {
    fs.mkdirSync(this.mountDir);
    this.source = new Source(join(this.dir, 'source'), this.dataDir, this.name, options);
  }

  static async start(options: SourceOptions & Partial<ApplierOptions> = {}): Promise<Rig> {
    const rig = new Rig(options);
    rig.applier = await Applier.start({
      mountDir: rig.mountDir,
      dataDir: rig.dataDir,
      logger: createLogger({ level: 'warn', format: 'text' }, (line) => process.stdout.write(line)),
      onEvent: (event) => rig.events.push(event),
      ...options,
    });
    return rig;
  }

  /** Another database, with a primary of its own. */
  other(name: string, options: SourceOptions = {}): Source {
    const source = new Source(join(this.dir, `source-${name}`), this.dataDir, name, options);
    this.#others.push(source);
    return source;
  }

  /** The database as SQLite reads it, journal-mode bytes aside; in a process of its own, as applications are. */
  async bytes(): Promise<Buffer> {
    const file = join(this.dir, 'bytes');
    await run(process.execPath, [READ_BYTES, this.path, file]);
    return withoutJournalMode(fs.readFileSync(file));
  }

  /** Fails unless the replica's bytes are the primary's. (A matcher would compare the buffers number by number.) */
  async assertSame(): Promise<void> {
    const [ours, theirs] = [await this.bytes(), this.source.bytes()];
    if (ours.equals(theirs)) return;
    const at = ours.findIndex((byte, i) => byte !== theirs[i]);
    throw new Error(
      `${ours.length} bytes here, ${theirs.length} on the primary, different from offset ${at} on`,
    );
  }

  async stop(): Promise<void> {
    await this.applier.stop();
    for (const source of [this.source, ...this.#others]) source.database.close();
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}
