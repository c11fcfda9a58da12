import { join } from 'node:path';

/** What was set aside, and why: `manifest.json` beside the files. */
export interface LostManifest {
  /** The database's name. */
  readonly name: string;
  readonly reason: string;
  /** File names, oldest first. */
  readonly files: readonly string[];
  /** ISO time of this node's clock, for people only. */
  readonly time: string;
}

/** `<data>/lost+found/<encoded name>/<time>/`: LTX files of transactions this node had to give up. Never deletes. */
export class LostAndFound {
  readonly path: string;

  constructor(dataDir: string) {
    this.path = join(dataDir, 'lost+found');
  }

  /** Moves files (oldest first) of a database here; returns the folder they are in. Durable when it returns. */
  setAside(_name: string, _files: readonly string[], _reason: string): string {
    throw new Error('coming');
  }

  /** Everything that was ever set aside, oldest first per database. */
  list(): { directory: string; manifest: LostManifest }[] {
    throw new Error('coming');
  }
}
