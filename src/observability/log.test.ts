import { describe, expect, it } from 'vitest';
import { createLogger } from './log.js';

describe('the log', () => {
  it('hides secrets wherever they stand', () => {
    const lines: string[] = [];
    const logger = createLogger({ format: 'json', level: 'info' }, (line) => lines.push(line));
    logger.info({ secret: 'one', peer: { secret: 'two', addr: 'a' } }, 'configured');
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({
      level: 'info',
      msg: 'configured',
      secret: '[secret]',
      peer: { secret: '[secret]', addr: 'a' },
    });
  });

  it('writes text for people, at and above its level', () => {
    const lines: string[] = [];
    const logger = createLogger({ format: 'text', level: 'info' }, (line) => lines.push(line));
    logger.debug('not this');
    logger.warn({ database: 'a.db', why: 'two words', err: new Error('broken') }, 'stopped');
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} warn {2}stopped database=a\.db why="two words" error=broken\n$/,
    );
  });
});
