import type { LeaseEvent } from '../lease/types.js';
import { isPrimary, type NodeRole } from '../observability/node-status.js';

/**
 * What may follow on each state of a node, and what brings it about. Whether an application may write is never
 * asked here: the mount asks the deadline of the lease (DESIGN §7), which only a primary has.
 */
export const TRANSITIONS: Readonly<Record<NodeRole, Readonly<Partial<Record<NodeRole, string>>>>> = {
  starting: {
    replica: 'somebody else is the primary, or nobody is and it does not become one at once',
    candidate: 'it has won the lease',
    closed: 'it was asked to stop, or could not start',
  },
  replica: {
    candidate: 'it has won the lease',
    closed: 'it was asked to stop',
  },
  candidate: {
    primary: 'it has recovered, and has what others had and it lacked',
    replica: 'it gave the lease up, or lost it, before it was ready',
    closed: 'it was asked to stop',
  },
  primary: {
    fenced: 'no renewal succeeded before the deadline',
    draining: 'it hands the lease over: to stop, or because it was asked to',
    replica: 'the lease says that somebody else is, or that nobody is',
    closed: 'it was asked to stop and nobody could succeed it',
  },
  fenced: {
    primary: 'a renewal has succeeded after all: nobody else has taken the lease',
    replica: 'the lease says that somebody else is, or that nobody is',
    closed: 'it was asked to stop',
  },
  draining: {
    replica: 'the successor is named',
    primary: 'the hand-off was called off',
    fenced: 'no renewal succeeded before the deadline',
    closed: 'it was asked to stop',
  },
  closed: {},
};

/** Why a node may go from one state to the next; undefined: it may not. */
export const reasonToEnter = (from: NodeRole, to: NodeRole): string | undefined => TRANSITIONS[from][to];

/** The state that an event of the lease leads to; undefined: it changes none. */
export function stateAfter(event: LeaseEvent['kind']): NodeRole | undefined {
  if (event === 'won') return 'candidate';
  return event === 'primary' || event === 'fenced' || event === 'replica' ? event : undefined;
}

/** Whether it holds the databases as a primary does: nobody is to be followed. */
export const isHolder = (role: NodeRole): boolean => isPrimary(role) || role === 'fenced';
