/**
 * How much each thread of ours may keep of objects that were just made. V8 takes up to 48 MB before it looks for what is
 * garbage; our threads make little that lives, so a small one costs nothing to sweep (docs/decisions/009).
 */
const SEMI_SPACE_MB = 2;

/** For a worker thread: V8 counts three semi-spaces. */
export const SMALL_YOUNG_GENERATION = { maxYoungGenerationSizeMb: 3 * SEMI_SPACE_MB } as const;

/** For a process of ours. */
export const SMALL_YOUNG_GENERATION_FLAG = `--max-semi-space-size=${SEMI_SPACE_MB}`;
