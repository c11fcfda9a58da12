import { KiteError, toKiteError } from '../errors.js';
import { dumpLtxFile, formatLtxDump, verifyLtxFile } from '../ltx/dump.js';
import { ltxFileName } from '../ltx/position.js';
import { print } from './output.js';

/** `kitefs ltx dump`: each file for a person, or one JSON value a line. */
export async function dumpFiles(files: readonly string[], json: boolean): Promise<void> {
  for (const file of files) {
    const dump = await dumpLtxFile(file).catch((thrown: unknown) => {
      throw errorOf(file, thrown);
    });
    print(json ? JSON.stringify(dump) : formatLtxDump(dump));
  }
}

/** `kitefs ltx verify`: looks at every file, whatever the others are like; returns the exit code. */
export async function verifyFiles(files: readonly string[]): Promise<number> {
  let failed = 0;
  for (const file of files) {
    try {
      const { header, pageCount, sizeBytes } = await verifyLtxFile(file, { exact: true });
      print(`${file}: ok, ${ltxFileName(header)}, ${pageCount} pages, ${sizeBytes} bytes`);
    } catch (thrown) {
      failed += 1;
      process.stderr.write(`${file}: ${errorOf(file, thrown).describe()}\n`);
    }
  }
  return failed === 0 ? 0 : 1;
}

/** A file that is not there or may not be read is the caller's matter, no bug. */
function errorOf(file: string, thrown: unknown): KiteError {
  const code =
    thrown instanceof Error && 'syscall' in thrown ? (thrown as NodeJS.ErrnoException).code : undefined;
  return code === undefined
    ? toKiteError(thrown)
    : new KiteError('ERR_CLI_FILE', `cannot read ${file} (${code})`);
}
