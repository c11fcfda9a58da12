import { stringify } from 'yaml';
import { formatRemark, type LoadedConfig } from '../config/load.js';
import { SETTINGS } from '../config/schema.js';
import { formatAddress, type Address } from '../config/values.js';
import { print } from './output.js';

/** `kitefs config check`: the configuration has been read without an error; says what has no effect. */
export function checkConfiguration({ file, notes }: LoadedConfig): void {
  for (const note of notes) print(formatRemark(note));
  print(`${file ?? 'no configuration file, defaults and environment'}: ok`);
}

/** `kitefs config print`: every value that has an effect, as YAML, with where it comes from. */
export function printConfiguration({ config, given }: LoadedConfig): void {
  let group = '';
  for (const { key, path, secret, noEffect, default: fallback } of SETTINGS) {
    if (noEffect !== undefined) continue;
    const names = key.split('.');
    const indent = '  '.repeat(names.length - 1);
    const parent = names.slice(0, -1).join('.');
    if (parent !== group && parent !== '') print(`${'  '.repeat(names.length - 2)}${names.at(-2)}:`);
    group = parent;
    const at = given.get(key);
    const value = at?.raw ?? fallback ?? valueAt(config, path);
    const shown = secret && value !== undefined ? '(secret)' : yamlOf(value);
    print(`${indent}${names.at(-1)}: ${shown}${at ? ` # ${at.where}` : ''}`);
  }
}

/** Words stay as they are written, since that is how they are read. */
function yamlOf(value: unknown): string {
  if (value === undefined) return '';
  const isAddress = typeof value === 'object' && value !== null && 'port' in value;
  const plain = isAddress ? formatAddress(value as Address) : value;
  if (typeof plain === 'string' && /^[\w./:-]*$/.test(plain)) return plain;
  return stringify(plain, { collectionStyle: 'flow', lineWidth: 0 }).trim();
}

function valueAt(config: unknown, path: readonly string[]): unknown {
  return path.reduce((at, name) => (at as Record<string, unknown> | undefined)?.[name], config);
}
