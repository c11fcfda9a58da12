import { z } from 'zod';
import { KiteError } from '../errors.js';
import type { LeaseRecord, Member } from './types.js';

const counter = z
  .string()
  .regex(/^\d+$/)
  .transform((text) => BigInt(text));
const positions = z.record(z.string(), z.string());
const holder = {
  nodeId: z.string().min(1),
  incarnation: z.string().min(1),
  advertiseUrl: z.string(),
  peerAddress: z.string(),
  proxyAddress: z.string().optional(),
  instance: z.string().optional(),
};

const recordSchema = z.object({
  clusterId: z.string().min(1),
  epoch: counter,
  holder: z.object(holder).optional(),
  heartbeat: counter,
  ttlMs: z.number().positive(),
  positions,
  syncSet: z.array(z.string()),
  handoffTo: z.string().optional(),
});

const memberSchema = z.object({
  ...holder,
  clusterId: z.string().min(1),
  candidate: z.boolean(),
  region: z.string(),
  priority: z.number(),
  epoch: counter,
  seen: counter,
  positions,
});

const encode = (value: unknown): string =>
  JSON.stringify(value, (_key, item: unknown) => (typeof item === 'bigint' ? String(item) : item));

/** The record as every adapter stores it: one JSON object, bigints as decimal strings. */
export const encodeRecord = (record: LeaseRecord): string => encode(record);

export const encodeMember = (member: Member): string => encode(member);

/** Throws ERR_LEASE_RECORD for anything that is no lease record. */
export function decodeRecord(text: string): LeaseRecord {
  const { holder: by, handoffTo, ...rest } = decode(recordSchema, text);
  return { ...rest, holder: by, handoffTo };
}

/** Throws ERR_LEASE_RECORD for anything that is no member. */
export const decodeMember = (text: string): Member => decode(memberSchema, text);

function decode<T>(schema: z.ZodType<T>, text: string): T {
  try {
    return schema.parse(JSON.parse(text));
  } catch (error) {
    throw new KiteError('ERR_LEASE_RECORD', `${JSON.stringify(text.slice(0, 80))} is no lease record`, {
      cause: error,
    });
  }
}
