import { createHmac } from 'node:crypto';
import { expect, it } from 'vitest';
import { fingerprint, keyType, knownHostKeys, parseHostKey } from './known-hosts.js';

const ED = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5K2BbE3bD6wB0tOq0m1mZfJm1r1kq0b1b4pGvWl3kI';
const key = parseHostKey(ED)!;
const other = Buffer.from(key);
other[other.length - 1]! ^= 1;
const OTHER = `ssh-ed25519 ${other.toString('base64')}`;

it('reads a key, and says what it is', () => {
  expect(keyType(key)).toBe('ssh-ed25519');
  expect(parseHostKey(`${ED} root@host`)).toEqual(key);
  expect(fingerprint(key)).toMatch(/^SHA256:[A-Za-z0-9+/]{43}$/);
  for (const bad of ['', 'ssh-rsa', ED.replace('ssh-ed25519', 'ssh-rsa'), 'ssh-ed25519 AAAA', 'a b c'])
    expect(parseHostKey(bad), bad).toBeUndefined();
});

it('finds the keys of a host as ssh does', () => {
  const salt = Buffer.from('0123456789abcdefghij');
  const hash = createHmac('sha1', salt).update('hidden.example').digest('base64');
  const text = [
    '# a comment',
    '',
    `plain.example,10.0.0.1 ${ED}`,
    `[plain.example]:2222 ${OTHER} a comment`,
    `*.wild.example,!not.wild.example ${ED}`,
    `|1|${salt.toString('base64')}|${hash} ${ED}`,
    `@cert-authority * ${ED}`,
    `gone.example ${ED}`,
    `@revoked gone.example ${ED}`,
    'broken.example ssh-ed25519',
  ].join('\n');
  const of = (host: string, port = 22): Buffer[] => knownHostKeys(text, host, port);
  expect(of('plain.example')).toEqual([key]);
  expect(of('10.0.0.1')).toEqual([key]);
  expect(of('plain.example', 2222)).toEqual([other]);
  expect(of('a.wild.example')).toEqual([key]);
  expect(of('not.wild.example')).toEqual([]);
  expect(of('hidden.example')).toEqual([key]);
  for (const unknown of ['gone.example', 'broken.example', 'plain.example.com', 'plainXexample'])
    expect(of(unknown), unknown).toEqual([]);
});
