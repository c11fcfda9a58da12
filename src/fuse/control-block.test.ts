import { afterEach, expect, it, vi } from 'vitest';
import { ControlBlock, MountState } from './control-block.js';

afterEach(() => {
  vi.restoreAllMocks();
});

const soon = (): bigint => process.hrtime.bigint() + 60_000_000_000n;

it('lets a primary write until its deadline, in every thread that shares the memory', () => {
  const control = new ControlBlock();
  const other = new ControlBlock(control.buffer);
  expect(other.mayWrite()).toBe(false);
  control.deadlineNs = soon();
  control.state = MountState.primary;
  expect(other.mayWrite()).toBe(true);
  control.deadlineNs = 0n;
  expect(other.mayWrite()).toBe(false);
});

it('counts a suspended guest out, whose monotonic clock stood still', () => {
  const control = new ControlBlock();
  control.state = MountState.primary;
  control.deadlineNs = soon();
  const now = Date.now();
  vi.spyOn(Date, 'now').mockReturnValue(now + 61_000);
  expect(control.mayWrite()).toBe(false);
});

it('does not live longer by a wall clock that was set back', () => {
  const control = new ControlBlock();
  control.state = MountState.primary;
  vi.spyOn(Date, 'now').mockReturnValue(0);
  control.deadlineNs = process.hrtime.bigint() - 1n;
  expect(control.mayWrite()).toBe(false);
});
