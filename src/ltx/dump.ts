import type { LtxHeader, LtxTrailer, LtxVersion } from './format.js';

/** What one LTX file says. */
export interface LtxSummary {
  readonly path: string;
  readonly version: LtxVersion;
  readonly sizeBytes: number;
  readonly header: LtxHeader;
  readonly trailer: LtxTrailer;
  readonly pageCount: number;
}

export interface VerifyOptions {
  /**
   * Also compress every page again and compare (v3b only): then a changed byte is noticed even where it
   * decompresses to the same page. Files of other writers pass when they compress as Go's ltx does.
   */
  readonly exact?: boolean;
}

/**
 * Reads and checks a whole file; lets other work run between pieces of 1 MiB. Rejects with ERR_LTX_DAMAGED,
 * ERR_LTX_FOREIGN, or what opening it says.
 */
export async function verifyLtxFile(_path: string, _options: VerifyOptions = {}): Promise<LtxSummary> {
  throw new Error('not yet');
}

/** `kitefs ltx dump FILE`: the file for a person. */
export async function dumpLtxFile(_path: string): Promise<string> {
  throw new Error('not yet');
}

/** `kitefs ltx dump --json FILE`: the file for a program; bigints as hex text. */
export async function dumpLtxFileJson(_path: string): Promise<unknown> {
  throw new Error('not yet');
}
