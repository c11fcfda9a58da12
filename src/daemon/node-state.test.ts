import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { NodeRole } from '../observability/node-status.js';
import { isHolder, reasonToEnter, TRANSITIONS } from './node-state.js';

const STATES = Object.keys(TRANSITIONS) as NodeRole[];

describe('the states of a node', () => {
  it('are all reached from the start, and each ends in closed, which is the end', () => {
    const reach = (from: NodeRole): Set<NodeRole> => {
      const seen = new Set<NodeRole>([from]);
      for (const state of seen)
        for (const next of Object.keys(TRANSITIONS[state])) seen.add(next as NodeRole);
      return seen;
    };
    expect([...reach('starting')].toSorted()).toEqual(STATES.toSorted());
    for (const state of STATES) expect(reach(state)).toContain('closed');
    expect(TRANSITIONS.closed).toEqual({});
  });

  it('let nobody become a primary who was not a candidate, on any way through the table', () => {
    const way = fc.array(fc.nat({ max: 100 }), { maxLength: 40 });
    fc.assert(
      fc.property(way, (choices) => {
        let state: NodeRole = 'starting';
        let hasWon = false;
        for (const choice of choices) {
          const next = Object.keys(TRANSITIONS[state]) as NodeRole[];
          if (next.length === 0) return;
          const to: NodeRole = next[choice % next.length]!;
          expect(reasonToEnter(state, to)).toBeTruthy();
          if (to === 'candidate') hasWon = true;
          if (to === 'replica') hasWon = false;
          if (isHolder(to)) expect(hasWon).toBe(true);
          state = to;
        }
      }),
    );
  });
});
