import { expect, it } from 'vitest';
import { progressText, sizeText } from './progress.js';
import { parseMoment } from './restore.js';

const NOW = Date.parse('2026-11-20T12:00:00Z');

it('reads moments as RFC 3339 and as how long ago', () => {
  for (const [text, expected] of [
    ['2026-11-20T15:04:05Z', '2026-11-20T15:04:05.000Z'],
    ['2026-11-20T15:04:05.250+02:00', '2026-11-20T13:04:05.250Z'],
    ['2026-11-20 15:04:05Z', '2026-11-20T15:04:05.000Z'],
    ['2h ago', '2026-11-20T10:00:00.000Z'],
    ['1h30m ago', '2026-11-20T10:30:00.000Z'],
    ['3d ago', '2026-11-17T12:00:00.000Z'],
    ['1d12h ago', '2026-11-19T00:00:00.000Z'],
  ] as const)
    expect(new Date(parseMoment(text, NOW)).toISOString(), text).toBe(expected);
  // A time without a zone is another one on every machine.
  for (const text of [
    '2026-11-20T15:04:05',
    '2026-11-20',
    'yesterday',
    ' ago',
    'x ago',
    '2026-13-40T99:00:00Z',
    '',
  ])
    expect(() => parseMoment(text, NOW), text).toThrow(/-timestamp/);
});

it('says how far a restore is', () => {
  expect(progressText(370e6, 1e9, 180e6)).toBe('37 % of 1.0 GB, 180 MB/s, 4 s left');
  expect(progressText(0, 90e9, 0)).toBe('0 % of 90 GB, 0 B/s');
  expect(progressText(0, 90e9, 30e6)).toBe('0 % of 90 GB, 30 MB/s, 50 min left');
  expect([0, 999, 1000, 12_345, 1.5e6].map(sizeText)).toEqual(['0 B', '999 B', '1.0 kB', '12 kB', '1.5 MB']);
});
