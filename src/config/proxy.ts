import type { Pattern, Route } from '../proxy/settings.js';
import { BadValue } from './backups.js';
import { nearest } from './nearest.js';
import { parseAddress, parseDuration, parseList, type Address } from './values.js';

const METHOD = /^[A-Z]+$/;
const KEYS = ['path', 'methods', 'as', 'without-primary', 'upgrade', 'max-staleness', 'read-wait'] as const;

/** `localhost:8080`, or several as a list or separated by commas. LiteFS's file has one. */
export function parseAddresses(raw: unknown): readonly Address[] | undefined {
  const found = parseList(raw)?.map((item) => parseAddress(item.replace(/^http:\/\//, '')));
  return found?.every((one) => one !== undefined) && found.length > 0 ? found : undefined;
}

/** `/path`, `*.css`, `POST /search`. */
export function parsePatterns(raw: unknown): readonly Pattern[] | undefined {
  const found = parseList(raw)?.map(parsePattern);
  return found?.every((one) => one !== undefined) ? found : undefined;
}

function parsePattern(text: string): Pattern | undefined {
  const [method, path, ...more] = text.split(/\s+/);
  if (path === undefined) return { path: text, methods: undefined };
  return more.length === 0 && METHOD.test(method ?? '') ? { path, methods: [method!] } : undefined;
}

/** Reads `proxy.routes`; elsewhere than in a file `/path=write,GET /other/*=read`. Throws BadValue for what cannot be. */
export function parseRoutes(raw: unknown): readonly Route[] | undefined {
  const items: unknown[] | undefined = Array.isArray(raw)
    ? raw
    : parseList(raw)?.map((item) => {
        const pattern = parsePattern(item.replace(/=[^=]*$/, ''));
        return { ...pattern, as: /=([^=]*)$/.exec(item)?.[1] };
      });
  return items?.map((item, index) => parseRoute(item, `entry ${index + 1}`));
}

function parseRoute(raw: unknown, where: string): Route {
  const fail = (text: string): never => {
    throw new BadValue(`${where}: ${text}`);
  };
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) return fail('expected {path: …}');
  const given = raw as Readonly<Record<string, unknown>>;
  for (const key of Object.keys(given)) {
    if ((KEYS as readonly string[]).includes(key)) continue;
    const meant = nearest(key, KEYS);
    fail(`${key} is no key of a route${meant === undefined ? '' : `; did you mean ${meant}?`}`);
  }
  const { path, methods } = given;
  if (typeof path !== 'string' || path === '') return fail('path: expected a path such as /admin/*');
  const names = methods === undefined ? undefined : parseList(methods);
  if (methods !== undefined && !names?.every((name) => METHOD.test(name)))
    return fail('methods: expected names such as GET, POST');
  const word = <const T extends string>(key: (typeof KEYS)[number], words: readonly T[]): T | undefined => {
    if (given[key] === undefined) return undefined;
    return words.find((one) => one === given[key]) ?? fail(`${key}: expected one of ${words.join(', ')}`);
  };
  const time = (key: (typeof KEYS)[number]): number | undefined => {
    if (given[key] === undefined) return undefined;
    return parseDuration(given[key]) ?? fail(`${key}: expected a duration such as 500ms`);
  };
  return {
    path,
    methods: names,
    as: word('as', ['read', 'write', 'passthrough']),
    withoutPrimary: word('without-primary', ['serve', 'refuse']),
    upgrade: word('upgrade', ['local', 'primary']),
    maxStalenessMs: time('max-staleness'),
    readWaitMs: time('read-wait'),
  };
}
