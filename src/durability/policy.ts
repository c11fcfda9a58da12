/** What the COMMITs of some databases wait for. Plain data: it crosses threads. */
export interface DurabilityPolicy {
  /** Which databases: a path in the mount, in which `*` stands for any characters. */
  readonly pattern: string;
  /** How many replicas must have it; `quorum`: so many that with the primary they are more than half of the members. */
  readonly waitFor: 'async' | 'quorum' | number;
  /** Whether it waits for the first destination of the backups too. */
  readonly backup: boolean;
  /** What "has it" means: in the replica's log, fsynced (survives a power cut there) or not. */
  readonly acknowledge: 'fsync' | 'memory';
  /** Whether one of the replicas is to be in another region than the primary: it is no matter, is preferred, or must be. */
  readonly spread: 'any' | 'prefer' | 'require';
  /** How long a COMMIT waits before `onTimeout` is done. */
  readonly timeoutMs: number;
  /** block: it goes on waiting, until the lease ends. degrade: it returns, and so do those after it. */
  readonly onTimeout: 'block' | 'degrade';
}

/** The policy of a database: the first that matches its name. */
export const policyOf = (policies: readonly DurabilityPolicy[], name: string): DurabilityPolicy | undefined =>
  policies.find(({ pattern }) => matches(pattern, name));

/** Whether commits in a database wait for anybody: replicas, or the backups. */
export function waits(policies: readonly DurabilityPolicy[], name: string): boolean {
  const policy = policyOf(policies, name);
  return policy !== undefined && (policy.waitFor !== 'async' || policy.backup);
}

/** The policy of a database whose commits wait for replicas; undefined when they do not. */
export function policyFor(policies: readonly DurabilityPolicy[], name: string): DurabilityPolicy | undefined {
  const policy = policyOf(policies, name);
  return policy?.waitFor === 'async' ? undefined : policy;
}

/** How many replicas a policy asks for in a cluster of so many members. */
export const replicasNeeded = ({ waitFor }: DurabilityPolicy, members: number): number => {
  if (waitFor === 'async') return 0;
  return waitFor === 'quorum' ? Math.floor(members / 2) : waitFor;
};

function matches(pattern: string, name: string): boolean {
  const escaped = pattern.replaceAll(/[.+?^${}()|[\]\\]/g, String.raw`\$&`).replaceAll('*', '.*');
  return new RegExp(`^${escaped}$`, 's').test(name);
}
