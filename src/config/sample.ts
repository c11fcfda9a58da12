import { SETTINGS } from './schema.js';

const WIDTH = 100;

/**
 * A kitefs.yml with the given values set and every other setting as a comment with its default: a
 * starting point for one's own.
 */
export function sampleConfig(heading: string, values: Readonly<Record<string, string>>): string {
  const lines = wrap(heading, '');
  let groups: readonly string[] = [];
  for (const setting of SETTINGS) {
    if (setting.noEffect !== undefined) continue;
    const names = setting.key.split('.');
    const parents = names.slice(0, -1);
    for (const [depth, parent] of parents.entries()) {
      if (groups[depth] === parent) continue;
      if (depth === 0) lines.push('');
      const group = parents.slice(0, depth + 1).join('.');
      // A group is a comment too when nothing in it is set: an empty key would hold nothing.
      const isSet = Object.keys(values).some((key) => key.startsWith(`${group}.`));
      lines.push(`${'  '.repeat(depth)}${isSet ? '' : '# '}${parent}:`);
    }
    if (parents.length === 0 && groups.length > 0) lines.push('');
    groups = parents;
    const value = values[setting.key];
    const indent = '  '.repeat(parents.length);
    lines.push(...wrap(setting.doc, indent));
    const name = names.at(-1);
    if (value === undefined) lines.push(`${indent}# ${name}: ${setting.default ?? ''}`.trimEnd());
    else lines.push(`${indent}${name}: ${JSON.stringify(value)}`);
  }
  return `${lines.join('\n')}\n`;
}

/** A text as comment lines. */
function wrap(text: string, indent: string): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && indent.length + line.length + word.length + 3 > WIDTH) {
      lines.push(line);
      line = '';
    }
    line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line].map((part) => `${indent}# ${part}`);
}
