import type { IncomingHttpHeaders } from 'node:http';
import { describe, expect, it } from 'vitest';
import { type Answered, answerHeaders, readNeeds } from './annotate.js';
import type { NodeSnapshot, NodeView } from './node-view.js';
import type { Token } from './token.js';

const SECRET = 'a secret that only nodes know';
const SETTINGS = {
  databases: [] as string[],
  token: 'cookie',
  tokenSecret: undefined as string | undefined,
  responseHeaders: false,
} as const;
const at = (epoch: number, txid: number) => ({ epoch: BigInt(epoch), txid: BigInt(txid) });

const NODE: NodeSnapshot = {
  nodeId: 'node1',
  clusterId: 'c',
  region: '',
  role: 'replica',
  ready: true,
  epoch: 7n,
  writableUntilMs: 0,
  primary: undefined,
  databases: new Map([['app.db', { position: at(7, 26), ends: [at(6, 20)], freshAtMs: 1000 }]]),
};

/** What is added to an answer, name by name, of a node that may have shown 7:1b. */
async function added(
  request: IncomingHttpHeaders,
  answer: Partial<Answered> & { cache?: string } = {},
  settings: Partial<Record<keyof typeof SETTINGS, unknown>> = {},
  node: Partial<NodeSnapshot> = {},
): Promise<Record<string, string>> {
  const all = { ...SETTINGS, ...settings } as typeof SETTINGS;
  const seen: Token = new Map([['app.db', at(7, 27)]]);
  const view: Partial<NodeView> = { now: { ...NODE, ...node }, seen: () => Promise.resolve(seen) };
  const list = await answerHeaders(
    {
      kind: 'read',
      needs: readNeeds(request, all),
      headers: request,
      waitedMs: 0,
      status: 200,
      rawHeaders: answer.cache === undefined ? [] : ['Cache-Control', answer.cache],
      ...answer,
    },
    view as NodeView,
    all,
    1250,
  );
  return Object.fromEntries(list.flatMap((name, i) => (i % 2 === 0 ? [[name, list[i + 1] ?? '']] : [])));
}

const COOKIE = 'kitefs-token=app.db=7:1b; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax';

describe('an answer', () => {
  it('sets a cookie only when the client has been shown something new', async () => {
    expect(await added({})).toEqual({ 'Set-Cookie': COOKIE });
    expect(await added({ cookie: 'a=b; kitefs-token=app.db=7:1a; c=d' })).toEqual({ 'Set-Cookie': COOKIE });
    expect(await added({ cookie: 'kitefs-token=app.db=7:1b' })).toEqual({});
    expect(await added({ cookie: 'a=b;kitefs-token=app.db=7:ff' })).toEqual({});
    // Names that only end like it.
    expect(await added({ cookie: 'my-kitefs-token=app.db=7:ff' })).toEqual({ 'Set-Cookie': COOKIE });
  });

  it('takes the latest of several tokens, and nonsense for none', async () => {
    const both = 'kitefs-token=app.db=7:1; kitefs-token=app.db=7:1b';
    expect(await added({ cookie: both })).toEqual({});
    expect(await added({ cookie: 'kitefs-token=%%%' })).toEqual({ 'Set-Cookie': COOKIE });
    expect(await added({ cookie: `kitefs-token=${'x'.repeat(30_000)}` })).toEqual({ 'Set-Cookie': COOKIE });
  });

  it('is Secure where the edge says that the client came by TLS', async () => {
    const answer = await added({ 'x-forwarded-proto': 'https' });
    expect(answer['Set-Cookie']).toBe(`${COOKIE}; Secure`);
  });

  it('gives the token in a header to who sends it in one, or to all', async () => {
    expect(await added({ 'kitefs-token': '' })).toEqual({ 'Kitefs-Token': 'app.db=7:1b' });
    expect(await added({ 'kitefs-token': 'app.db=7:1b' })).toEqual({});
    expect(await added({}, {}, { token: 'header' })).toEqual({ 'Kitefs-Token': 'app.db=7:1b' });
    expect(await added({ cookie: 'kitefs-token=app.db=7:1' }, {}, { token: 'off' })).toEqual({});
  });

  it('signs tokens, and takes no others, when there is a secret', async () => {
    const { 'Kitefs-Token': text = '' } = await added({}, {}, { token: 'header', tokenSecret: SECRET });
    expect(text).toMatch(/^app\.db=7:1b~/);
    expect(await added({ 'kitefs-token': text }, {}, { tokenSecret: SECRET })).toEqual({});
    expect(await added({ 'kitefs-token': 'app.db=7:1b' }, {}, { tokenSecret: SECRET })).not.toEqual({});
  });

  it.each([
    ['public, max-age=60', {}],
    ['max-age=60', {}],
    ['s-maxage=5', {}],
    ['public', {}],
    ['private, max-age=60', { 'Set-Cookie': COOKIE }],
    ['max-age=0', { 'Set-Cookie': COOKIE }],
    ['no-store', { 'Set-Cookie': COOKIE }],
    ['no-cache', { 'Set-Cookie': COOKIE }],
    ['must-revalidate', { 'Set-Cookie': COOKIE }],
  ])('with Cache-Control: %s', async (cache, expected) => {
    expect(await added({}, { cache })).toEqual(expected);
    // What was written must be seen, whatever is said of its answer.
    expect(await added({}, { cache, kind: 'write' })).toEqual({ 'Set-Cookie': COOKIE });
    expect(await added({}, { cache, kind: 'passthrough' })).toEqual({});
  });

  it('says what was lost, and goes on from what there is', async () => {
    expect(await added({ cookie: 'kitefs-token=app.db=6:19' })).toEqual({
      'Kitefs-Lost': 'app.db=6:19',
      'Set-Cookie': COOKIE,
    });
    expect(await added({ cookie: 'kitefs-token=app.db=6:14' })).toEqual({ 'Set-Cookie': COOKIE });
    // It may still come here; on the primary it cannot.
    expect(await added({ cookie: 'kitefs-token=app.db=7:ff' })).toEqual({});
    const primary = await added({ cookie: 'kitefs-token=app.db=7:ff' }, {}, {}, { role: 'primary' });
    expect(primary).toEqual({ 'Kitefs-Lost': 'app.db=7:ff', 'Set-Cookie': COOKIE });
  });

  it('says who has served it, how fresh, from where, and after what wait', async () => {
    const about = { responseHeaders: true, token: 'off' };
    expect(await added({}, { waitedMs: 12.4 }, about)).toEqual({
      'Kitefs-Node': 'node1',
      'Kitefs-Freshness': '250ms',
      'Kitefs-Position': 'app.db=7:1a',
      'Kitefs-Waited': '12ms',
    });
    const primary = { role: 'primary', writableUntilMs: 2000 } as const;
    expect(await added({}, {}, about, primary)).toMatchObject({ 'Kitefs-Freshness': '0ms' });
    expect(await added({}, {}, about, { ...primary, writableUntilMs: 1200 })).toMatchObject({
      'Kitefs-Freshness': '250ms',
    });
    expect(await added({}, {}, about, { databases: new Map() })).toMatchObject({
      'Kitefs-Freshness': 'unknown',
    });
  });

  it('is not made worse by a node that is about to end', async () => {
    const view: Partial<NodeView> = { now: NODE, seen: () => Promise.reject(new Error('gone')) };
    const answered = {
      kind: 'write',
      needs: undefined,
      headers: {},
      waitedMs: 0,
      status: 200,
      rawHeaders: [],
    } as const;
    expect(await answerHeaders(answered, view as NodeView, SETTINGS, 0)).toEqual([]);
  });
});

describe('a bound on staleness', () => {
  it('is a duration, and nothing else is taken for one', () => {
    expect(readNeeds({ 'kitefs-max-staleness': '1.5s' }, SETTINGS)?.maxStalenessMs).toBe(1500);
    expect(readNeeds({ 'kitefs-max-staleness': '0' }, SETTINGS)?.maxStalenessMs).toBe(0);
    for (const text of ['', '5', '-1s', 'soon', '1s, 2s'])
      expect(() => readNeeds({ 'kitefs-max-staleness': text }, SETTINGS), text).toThrow(
        'Kitefs-Max-Staleness',
      );
  });
});
