import { readFileSync } from 'node:fs';
import type { Config } from '../config/load.js';
import { formatAddress, parseAddress } from '../config/values.js';
import { KiteError } from '../errors.js';
import type { LeaseHolder, Member } from '../lease/types.js';
import { isPrimary, type NodeRole } from '../observability/node-status.js';
import type { NodeFacts } from '../proxy/messages.js';
import type { DatabaseView, PrimaryView } from '../proxy/node-view.js';
import type { ProxySettings } from '../proxy/settings.js';
import type { Upstream } from '../follow/bucket-follower.js';
import { monotonicMs } from '../util/clock.js';
import type { NodeStore } from './node-store.js';
import { hostOf } from './special-files.js';
import { remainingMs } from './status.js';
import type { StatusSources } from './status.js';

/** The settings of the proxy; undefined: there is none. Throws ERR_CONFIG_FILE when the maintenance page cannot be read. */
export function proxySettings({ proxy, peer }: Config): ProxySettings | undefined {
  const { addr, target, db, maintenancePage } = proxy;
  if (!addr || !target) return undefined;
  return {
    ...proxy,
    addr,
    targets: target,
    databases: db,
    maintenancePage: maintenancePage === undefined ? undefined : readPage(maintenancePage),
    secret: peer.secret,
  };
}

function readPage(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new KiteError('ERR_CONFIG_FILE', `proxy.maintenance-page: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/** What is known of the node. */
export type FactSources = Pick<
  StatusSources,
  'config' | 'control' | 'store' | 'clusterId' | 'role' | 'ready' | 'holder' | 'members'
>;

/** How fresh a database of a replica is. */
export type Freshness = (name: string) => ReturnType<Upstream['freshness']>;

/** What the proxy is told of the node. */
export function nodeFacts(from: FactSources): NodeFacts {
  const { config, control, store, role, holder } = from;
  const serves = isPrimary(role);
  return {
    nodeId: store.nodeId,
    clusterId: from.clusterId,
    region: config.node.region,
    role,
    ready: from.ready,
    epoch: store.epoch(),
    writableUntilMs: serves ? Math.round(monotonicMs() + remainingMs(control)) : 0,
    primary: role === 'replica' && holder ? primaryView(holder, from.members, config) : undefined,
  };
}

function primaryView(holder: LeaseHolder, members: readonly Member[], { proxy }: Config): PrimaryView {
  const { nodeId, advertiseUrl, peerAddress, instance } = holder;
  const host = parseAddress(peerAddress)?.host;
  // A static lease does not say it: nodes are configured alike.
  const alike = host !== undefined && proxy.addr ? formatAddress({ host, port: proxy.addr.port }) : undefined;
  return {
    nodeId,
    proxyAddress: holder.proxyAddress ?? alike,
    instance,
    region: members.find((member) => member.nodeId === nodeId)?.region ?? '',
    hostname: hostOf(advertiseUrl),
  };
}

/** What readers here see of a database; undefined: it is not here. */
export function databaseView(
  name: string,
  store: NodeStore,
  role: NodeRole,
  freshness: Freshness,
): DatabaseView | undefined {
  const history = store.history(name);
  if (!history) return undefined;
  const ageMs = isPrimary(role) ? undefined : freshness(name)?.maxAgeMs;
  const freshAtMs = ageMs === undefined ? undefined : monotonicMs() - ageMs;
  return { ...history, freshAtMs: isPrimary(role) ? Infinity : freshAtMs };
}
