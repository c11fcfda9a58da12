import { expect, it } from 'vitest';

import { CommitSignal } from './commit-signal.js';

it('hands each published slot over once, with its newest end', () => {
  const signal = new CommitSignal();
  const [a, b] = [signal.newSlot(), signal.newSlot()];
  signal.publish(a, 100);
  signal.publish(b, 50);
  signal.publish(a, 200);
  expect([signal.take(), signal.take(), signal.take()]).toEqual([a, b, -1]);
  expect(signal.claim(a)).toBe(200);
  signal.publish(a, 300);
  expect(signal.take()).toBe(a);
});

it('goes on past the end of its ring', () => {
  const signal = new CommitSignal();
  const slot = signal.newSlot();
  for (let i = 0; i < 140_000; i++) {
    signal.publish(slot, i);
    if (signal.take() !== slot) throw new Error(`lost at ${i}`);
  }
  expect(signal.take()).toBe(-1);
});

it('lets the mount overwrite without asking only what capture has not read and will not read', () => {
  const signal = new CommitSignal();
  const slot = signal.newSlot();
  expect(signal.retract(slot, 100).unread).toBe(false); // capture has said nothing yet
  signal.publish(slot, 300);
  expect(signal.claim(slot)).toBe(300);
  expect(signal.retract(slot, 200).unread).toBe(false); // it is being read
  signal.release(slot, 200);
  expect(signal.retract(slot, 200).unread).toBe(true);
  expect(signal.claim(slot)).toBe(200);
  signal.release(slot);
  expect(signal.retract(slot, 200).unread).toBe(false);
});

it('wakes whoever waits, also when the wake came between looking and waiting', async () => {
  const signal = new CommitSignal();
  const slot = signal.newSlot();
  const ticket = signal.ticket;
  signal.publish(slot, 1);
  await signal.wait(ticket, 60_000);
  const waiting = signal.wait(signal.ticket, 60_000);
  signal.publish(slot, 2); // the slot is in the ring already
  expect(signal.take()).toBe(slot);
  signal.publish(slot, 3);
  await waiting;
});
