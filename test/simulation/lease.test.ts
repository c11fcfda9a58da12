import { expect, test } from 'vitest';
import { simulateLease } from './lease-world.js';

const SEEDS = Number(process.env['KITEFS_SIMULATE_SEEDS'] ?? 10_000);
const FIRST = Number(process.env['KITEFS_SIMULATE_FIRST'] ?? 1);

test(
  `in ${SEEDS} random histories no two nodes may write at one time, epochs grow, and a primary returns`,
  { timeout: 60_000 + SEEDS * 50 },
  () => {
    let wins = 0;
    let handOffs = 0;
    let slowestMs = 0;
    let preferred = 0;
    for (let seed = FIRST; seed < FIRST + SEEDS; seed += 1) {
      const result = simulateLease(seed);
      wins += result.wins;
      handOffs += result.handOffs;
      preferred += Number(result.preferred);
      slowestMs = Math.max(slowestMs, result.recoveryMs);
    }
    // The histories must be eventful, or they prove nothing.
    expect(wins).toBeGreaterThan(2 * SEEDS);
    expect(handOffs).toBeGreaterThan(SEEDS);
    expect(preferred).toBeGreaterThan(SEEDS / 20);
    console.log(
      `${SEEDS} histories: ${wins} wins, ${handOffs} hand-offs, ${preferred} elections by preference, slowest recovery ${Math.round(slowestMs)} ms`,
    );
  },
);
