import { createHash, createHmac } from 'node:crypto';

/** Which keys a host may show, from what a person wrote: pure. */

/** `type base64 [comment]`, as in a `.pub` file, in what ssh-keyscan prints after the host, and in `host-key`; undefined for anything else. */
export function parseHostKey(text: string): Buffer | undefined {
  const [type, base64] = text.trim().split(/\s+/);
  if (type === undefined || base64 === undefined) return undefined;
  const key = Buffer.from(base64, 'base64');
  return keyType(key) === type ? key : undefined;
}

/** The type that a key names in itself; empty for bytes that are no key. */
export function keyType(key: Buffer): string {
  const length = key.length >= 4 ? key.readUInt32BE(0) : 0;
  return length > 0 && length <= 64 && key.length > 4 + length ? key.toString('latin1', 4, 4 + length) : '';
}

/** As `ssh` shows it to a person. */
export const fingerprint = (key: Buffer): string =>
  `SHA256:${createHash('sha256').update(key).digest('base64').replace(/=+$/, '')}`;

/**
 * The keys that known_hosts files (sshd(8)) name for a host, without those that are revoked there. Certificate authorities are
 * not understood: hosts that only they vouch for are unknown.
 */
export function knownHostKeys(text: string, host: string, port: number): Buffer[] {
  const name = port === 22 ? host : `[${host}]:${port}`;
  const known: Buffer[] = [];
  const revoked: Buffer[] = [];
  for (const line of text.split('\n')) {
    const words = line.trim().split(/\s+/);
    const mark = words[0]?.startsWith('@') ? words.shift() : undefined;
    const [patterns, ...rest] = words;
    if (patterns === undefined || patterns.startsWith('#') || mark === '@cert-authority') continue;
    const key = parseHostKey(rest.join(' '));
    if (key && names(patterns, name)) (mark === undefined ? known : revoked).push(key);
  }
  return known.filter((key) => !revoked.some((other) => other.equals(key)));
}

function names(patterns: string, name: string): boolean {
  const [, one, salt, hash] = patterns.split('|');
  if (one === '1' && salt !== undefined) {
    return createHmac('sha1', Buffer.from(salt, 'base64')).update(name).digest('base64') === hash;
  }
  const all = patterns.split(',');
  const fits = (pattern: string): boolean => asRegExp(pattern).test(name);
  return all.some(fits) && !all.some((pattern) => pattern.startsWith('!') && fits(pattern.slice(1)));
}

const asRegExp = (pattern: string): RegExp =>
  new RegExp(
    `^${pattern
      .replaceAll(/[.+^${}()|[\]\\]/g, String.raw`\$&`)
      .replaceAll('*', '.*')
      .replaceAll('?', '.')}$`,
    'i',
  );
