import { expect, it } from 'vitest';

import { SpecialCopies } from './special-copies.js';

it('uses a name again when the kernel has forgotten it and nobody has it open', () => {
  let now = 0;
  const copies = new SpecialCopies(() => now);
  const bytes = (text: string): Buffer => Buffer.from(text);
  expect([copies.add(bytes('a')), copies.add(bytes('b'))]).toEqual([0, 1]);
  expect(copies.open(0)?.toString()).toBe('a');
  now = 1500;
  expect(copies.look(1)?.toString()).toBe('b');
  now = 3000;
  // The one is open, the other was asked for 1.5 s ago.
  expect(copies.add(bytes('c'))).toBe(2);
  copies.close(0);
  now = 4000;
  expect(copies.add(bytes('d'))).toBe(1);
  expect(copies.look(0)?.toString()).toBe('a');
  expect(copies.look(1)?.toString()).toBe('d');
  expect(copies.look(3)).toBeUndefined();
  now = 10_000;
  for (let i = 0; i < 3; i += 1) copies.add(bytes('e'));
  expect(copies.look(3)).toBeUndefined();
});
