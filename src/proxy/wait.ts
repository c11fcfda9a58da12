import { monotonicMs } from '../util/clock.js';
import { decide, type Decision, type Question } from './decide.js';
import type { NodeView } from './node-view.js';
import type { ProxySettings } from './settings.js';

type Final = Exclude<Decision, { kind: 'wait' }>;

/** Decides where a request goes; waits, woken by what it waits for, until that is known. Ends early when the client has gone. */
export async function route(
  question: Omit<Question, 'nowMs'>,
  settings: ProxySettings,
  view: NodeView,
  signal: AbortSignal,
  onWaited?: (ms: number) => void,
): Promise<Final> {
  for (;;) {
    const decision = decide({ ...question, nowMs: monotonicMs() }, settings, view.now);
    if (decision.kind !== 'wait') return decision;
    if (signal.aborted) return { kind: 'refuse', code: 'ERR_PROXY_NO_PRIMARY', why: 'the client has gone' };
    const fromMs = monotonicMs();
    await changed(decision, view, signal);
    onWaited?.(monotonicMs() - fromMs);
  }
}

async function changed(
  { untilMs, position }: Extract<Decision, { kind: 'wait' }>,
  view: NodeView,
  signal: AbortSignal,
): Promise<void> {
  const over = new AbortController();
  const end = (): void => over.abort();
  signal.addEventListener('abort', end);
  const waitMs = Math.max(0, untilMs - monotonicMs());
  try {
    const waits = [nodeChange(view, waitMs, over.signal)];
    if (position)
      waits.push(
        view.waitForPosition(position.database, position.at, waitMs, over.signal).then(() => undefined),
      );
    await Promise.race(waits);
  } finally {
    signal.removeEventListener('abort', end);
    over.abort();
  }
}

/** Resolves at the next change of the node, after `waitMs`, or when the signal aborts. */
export async function nodeChange(view: NodeView, waitMs: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      forget();
      signal.removeEventListener('abort', done);
      resolve();
    };
    // At least one turn of the clock: a deadline that has just not passed must not become a busy loop.
    const timer = setTimeout(done, Math.max(1, Math.ceil(waitMs)));
    const forget = view.onChange(done);
    signal.addEventListener('abort', done);
  });
}
