import type { Pattern, ProxySettings, Route } from './settings.js';

/** How a request is to be treated, before anything about the node is asked. */
export interface RequestClass {
  readonly kind: 'read' | 'write' | 'passthrough';
  /** The entry of `proxy.routes`. */
  readonly route: Route | undefined;
}

const READS = new Set(['GET', 'HEAD', 'OPTIONS']);

/** Tells reads from writes. `path` is the request's, byte for byte, without its query. Pure. */
export function classify(
  request: { readonly method: string; readonly path: string; readonly upgrade: boolean },
  settings: Pick<ProxySettings, 'routes' | 'passthrough' | 'alwaysForward' | 'reads'>,
): RequestClass {
  const { method, path, upgrade } = request;
  const matches = (pattern: Pattern): boolean =>
    (pattern.methods === undefined || pattern.methods.includes(method)) && matchesPath(pattern.path, path);
  const route = settings.routes.find(matches);
  const at = (kind: RequestClass['kind']): RequestClass => ({ kind, route });
  if (upgrade && route?.upgrade) return at(route.upgrade === 'primary' ? 'write' : 'passthrough');
  if (route?.as) return at(route.as);
  if (settings.passthrough.some(matches)) return at('passthrough');
  if (settings.alwaysForward.some(matches)) return at('write');
  return at(READS.has(method) || settings.reads.some(matches) ? 'read' : 'write');
}

/** LiteFS's patterns: the whole path, `*` stands for any characters, `/` too. No regular expression: it cannot be slow. */
export function matchesPath(pattern: string, path: string): boolean {
  const [first = '', ...rest] = pattern.split('*');
  if (rest.length === 0) return pattern === path;
  if (!path.startsWith(first)) return false;
  const last = rest.pop() ?? '';
  let at = first.length;
  for (const part of rest) {
    const found = path.indexOf(part, at);
    if (found < 0) return false;
    at = found + part.length;
  }
  return path.length >= at + last.length && path.endsWith(last);
}
