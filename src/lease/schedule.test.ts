import { expect, test } from 'vitest';
import { REMOTE_TTL_MIN_MS, scheduleOf } from './schedule.js';

const allowed = Array.from({ length: 200 }, (_, i) => REMOTE_TTL_MIN_MS + i * 137);

test('at no ttl that is allowed a cluster writes more than twice a second', () => {
  for (const ttlMs of allowed) {
    const { renewMs, turnMs } = scheduleOf(ttlMs, true);
    expect(1000 / renewMs + 1000 / turnMs, `ttl ${ttlMs}`).toBeLessThanOrEqual(1.9001);
  }
});

test('a renewal that is not answered is tried twice again before the deadline', () => {
  for (const ttlMs of allowed) {
    const { beatMs, renewMs } = scheduleOf(ttlMs, true);
    // The machine's: a call ends after beatMs, the next one follows beatMs/4 later. The last try needs one good answer.
    const lastTryMs = renewMs + 2 * (beatMs + beatMs / 4);
    expect(0.9 * ttlMs - lastTryMs, `ttl ${ttlMs}`).toBeGreaterThanOrEqual(99);
  }
});

test('in the default ttl, and on one machine, renewals are a fifth of the ttl apart', () => {
  expect(scheduleOf(5000, true)).toMatchObject({ beatMs: 1000, renewMs: 1000 });
  expect(scheduleOf(500, false)).toEqual({ beatMs: 100, renewMs: 100, turnMs: 0 });
});
