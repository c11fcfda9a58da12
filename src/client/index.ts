export { KiteClient, KiteClientError, type DatabaseState, type KiteClientOptions } from './client.js';
export { express, fastify, hono, type MiddlewareOptions } from './middleware.js';
