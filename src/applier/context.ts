import { join } from 'node:path';

import { checkDatabaseName } from '../store/database-name.js';
import type { BackgroundCheck } from '../store/background-check.js';
import type { Checkpointer } from './checkpointer.js';
import type { Arm } from './database-files.js';
import type { ApplierEvent } from './messages.js';

/** What every part of the applier process works with. */
export interface ApplierContext {
  readonly mountDir: string;
  readonly dataDir: string;
  readonly arm: Arm | undefined;
  readonly checkpointer: Checkpointer;
  /** Full checks of the databases that are served. */
  readonly check: BackgroundCheck;
  readonly emit: (event: ApplierEvent) => void;
}

/** Where applications see the database. Throws ERR_STORE_NAME: nothing outside of the mount is ever opened. */
export function mountPath(context: ApplierContext, name: string): string {
  checkDatabaseName(name);
  return join(context.mountDir, name);
}
