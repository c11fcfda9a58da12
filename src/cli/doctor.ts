import { formatRemark, type LoadedConfig } from '../config/load.js';
import { toKiteError } from '../errors.js';
import { machineChecks, nodeChecks, type Check } from './checks.js';
import { print } from './output.js';

/** `kitefs doctor`: looks at everything, whatever fails; returns the exit code. */
export async function doctor(load: () => LoadedConfig): Promise<number> {
  let loaded: LoadedConfig | undefined;
  let configuration: Check;
  try {
    loaded = load();
    configuration = { what: 'configuration', ok: true, found: loaded.file ?? 'defaults and environment' };
  } catch (thrown) {
    const { message, row } = toKiteError(thrown);
    configuration = { what: 'configuration', ok: false, found: message, fix: row.action };
  }
  const checks = [
    ...machineChecks(loaded?.config.fuse.driver ?? 'kernel'),
    configuration,
    ...(loaded ? await nodeChecks(loaded.config) : []),
  ];
  for (const check of checks) print(formatCheck(check));
  for (const note of loaded?.notes ?? []) print(`note  ${formatRemark(note)}`);
  return checks.every(({ ok }) => ok) ? 0 : 1;
}

export function formatCheck({ what, ok, found, fix }: Check): string {
  return `${ok ? 'ok   ' : 'FAIL '} ${what}: ${found}${fix === undefined ? '' : `\n      -> ${fix}`}`;
}
