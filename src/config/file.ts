import {
  isAlias,
  isMap,
  isPair,
  isScalar,
  isSeq,
  LineCounter,
  parseDocument,
  type Document,
  type Node,
  type Pair,
} from 'yaml';
import { expandEnvironment, type ExpandedText } from './expand.js';
import { nearest } from './nearest.js';
import { SETTINGS } from './schema.js';

/** What is wrong or worth saying, and where: `kitefs.yml:12`, `KITEFS_LEASE_TTL`, `--lease.ttl`. */
export interface Remark {
  readonly where: string;
  readonly text: string;
}

/** A configuration file as far as it can be read without knowing what values mean. */
export interface FileValues {
  /** Key to what stands there: text (or, for lists, what YAML makes of it) and its place. */
  readonly values: ReadonlyMap<string, { readonly raw: unknown; readonly where: string }>;
  readonly problems: readonly Remark[];
  readonly notes: readonly Remark[];
}

const EXEC_KEYS = ['cmd', 'if-candidate'];

/** Reads the text of a file; unknown keys and bad YAML are problems with their line. */
export function readFileValues(
  fileName: string,
  original: string,
  environment: Readonly<Record<string, string | undefined>> | undefined,
): FileValues {
  const { text, unset, ...map } = environment ? expandEnvironment(original, environment) : asItIs(original);
  const whereOriginal = (offset: number): string =>
    `${fileName}:${original.slice(0, offset).split('\n').length}`;
  const whereOf = (offset: number): string => whereOriginal(map.originalOffset(offset));

  const values = new Map<string, { raw: unknown; where: string }>();
  const problems: Remark[] = [];
  const notes: Remark[] = unset.map(({ name, offset }) => ({
    where: whereOriginal(offset),
    text: `the environment variable ${name || '(without a name)'} is not set and reads as empty`,
  }));

  const document = parseDocument(text, { lineCounter: new LineCounter(), prettyErrors: false });
  // The first one only: the others are most often its consequences.
  for (const error of document.errors.slice(0, 1))
    problems.push({ where: whereOf(error.pos[0]), text: error.message });
  if (problems.length > 0) return { values, problems, notes };

  const visit = (pair: Pair, prefix: string): void => {
    const keyNode = pair.key as Node;
    const where = whereOf(keyNode.range?.[0] ?? 0);
    const key = `${prefix}${String(isScalar(keyNode) ? keyNode.value : keyNode)}`;
    const value = pair.value as Node | null;
    const isSetting = SETTINGS.some((setting) => setting.key === key);
    const isGroup = SETTINGS.some((setting) => setting.key.startsWith(`${key}.`));
    if (!isSetting && !isGroup) {
      problems.push({
        where,
        text: `unknown key ${key}${suggestion(
          key,
          SETTINGS.map((s) => s.key),
        )}`,
      });
    } else if (isSetting) {
      if (key === 'exec') checkExecKeys(value);
      const raw = rawOf(value, document);
      if (raw !== undefined) values.set(key, { raw, where });
    } else if (isMap(value)) {
      visitMap(value, `${key}.`);
    } else if (rawOf(value, document) !== undefined) {
      problems.push({ where, text: `${key} holds other keys; expected an indented block` });
    }
  };
  const visitMap = (map: Node, prefix: string): void => {
    if (isMap(map)) for (const pair of map.items) if (isPair(pair)) visit(pair, prefix);
  };
  const checkExecKeys = (value: Node | null): void => {
    const pairs = isSeq(value) ? value.items.flatMap((item) => (isMap(item) ? item.items : [])) : [];
    for (const { key } of pairs) {
      const name = String((key as { value?: unknown }).value);
      if (!EXEC_KEYS.includes(name)) {
        const where = whereOf((key as Node).range?.[0] ?? 0);
        problems.push({ where, text: `unknown key ${name} in exec${suggestion(name, EXEC_KEYS)}` });
      }
    }
  };

  if (isMap(document.contents)) visitMap(document.contents, '');
  else if (rawOf(document.contents, document) !== undefined)
    problems.push({
      where: `${fileName}:1`,
      text: 'expected keys and values (YAML), such as fuse: { dir: /litefs }',
    });
  return { values, problems, notes };
}

const asItIs = (text: string): ExpandedText => ({ text, unset: [], originalOffset: (offset) => offset });

const suggestion = (key: string, known: readonly string[]): string => {
  const near = nearest(key, known);
  return near === undefined ? '' : `; did you mean ${near}?`;
};

/** Scalars as they are written, so that `0644` and `10` mean what they look like; nothing for an empty one. */
function rawOf(node: Node | null, document: Document): unknown {
  if (isAlias(node)) return rawOf(node.resolve(document) ?? null, document);
  if (isScalar(node)) return node.value === null ? undefined : node.source;
  if (isSeq(node)) return node.items.map((item) => rawOf(item as Node, document));
  if (isMap(node)) {
    return Object.fromEntries(
      node.items.map(({ key, value }) => [
        String((key as { value?: unknown }).value),
        rawOf(value as Node, document),
      ]),
    );
  }
  return undefined;
}
