const BAR_WIDTH = 28;
const DRAW_MS = 200;
const LINE_MS = 10_000;
/** The rate is that of the last seconds, or the time left would not follow a link that gets slower. */
const WINDOW_MS = 5_000;

/**
 * A bar with rate and time left on a terminal; elsewhere a line now and then, for long runs only. On stderr: stdout is for what was asked.
 */
export class ProgressBar {
  readonly #what: string;
  readonly #terminal = process.stderr.isTTY;
  #drawnMs = Date.now();
  #shown = false;
  #window: { ms: number; bytes: number }[] = [];

  constructor(what: string) {
    this.#what = what;
  }

  update(doneBytes: number, totalBytes: number): void {
    const now = Date.now();
    this.#window.push({ ms: now, bytes: doneBytes });
    while (this.#window.length > 2 && now - this.#window[0]!.ms > WINDOW_MS) this.#window.shift();
    if (now - this.#drawnMs < (this.#terminal ? DRAW_MS : LINE_MS)) return;
    this.#drawnMs = now;
    const first = this.#window[0]!;
    const perSecond = (1000 * (doneBytes - first.bytes)) / Math.max(1, now - first.ms);
    const line = `${this.#what} ${progressText(doneBytes, totalBytes, perSecond)}`;
    if (!this.#terminal) process.stderr.write(`${line}\n`);
    else {
      const filled = Math.round((BAR_WIDTH * doneBytes) / Math.max(1, totalBytes));
      process.stderr.write(`\r\x1b[K[${'#'.repeat(filled).padEnd(BAR_WIDTH, '.')}] ${line}`);
      this.#shown = true;
    }
  }

  /** Takes the bar away. */
  end(): void {
    if (this.#shown) process.stderr.write('\r\x1b[K');
    this.#shown = false;
  }
}

/** `37 % of 1.2 GB, 180 MB/s, 4 s left`. */
export function progressText(doneBytes: number, totalBytes: number, perSecond: number): string {
  const percent = totalBytes === 0 ? 100 : Math.floor((100 * doneBytes) / totalBytes);
  const left = perSecond > 0 ? `, ${secondsText((totalBytes - doneBytes) / perSecond)} left` : '';
  return `${percent} % of ${sizeText(totalBytes)}, ${sizeText(perSecond)}/s${left}`;
}

/** A size for a person: `1.2 GB`; decimal units. */
export function sizeText(bytes: number): string {
  for (const [unit, name] of [
    [1e9, 'GB'],
    [1e6, 'MB'],
    [1e3, 'kB'],
  ] as const) {
    if (bytes >= unit) return `${(bytes / unit).toFixed(bytes < 10 * unit ? 1 : 0)} ${name}`;
  }
  return `${Math.round(bytes)} B`;
}

function secondsText(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (whole < 90) return `${whole} s`;
  return whole < 5400 ? `${Math.ceil(whole / 60)} min` : `${(whole / 3600).toFixed(1)} h`;
}
