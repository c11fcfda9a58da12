import { expect, test } from 'vitest';
import { ClockWatch } from './clock-watch.js';

test('only clocks that run apart are a gap, each gap once', () => {
  const clocks = { monotonicMs: 1000, wallMs: 5000, bootMs: 2000 };
  const watch = new ClockWatch(500, () => ({ ...clocks }));
  const pass = (monotonic: number, wall: number, boot: number): string | undefined => {
    clocks.monotonicMs += monotonic;
    clocks.wallMs += wall;
    clocks.bootMs += boot;
    return watch.check();
  };
  expect(pass(1000, 1000, 1000)).toBeUndefined();
  expect(pass(60_000, 60_000, 60_000)).toBeUndefined(); // SIGSTOP: the deadline covers it
  expect(pass(10, 3000, 10)).toContain('the wall clock moved 2990 ms');
  expect(pass(10, 10, 4000)).toContain('the boot time moved 3990 ms');
  expect(pass(10, 10, 10)).toBeUndefined();
});
