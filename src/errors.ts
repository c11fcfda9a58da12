/**
 * The one error table. Every error that a person or a peer can meet has a code here, with what to do
 * about it, whether trying again can help, and how it shows as an exit code, an HTTP status and a gRPC
 * status. docs/errors.md is made from it (`npm run docs`).
 */

/** What the table says of one error. */
export interface ErrorRow {
  /** What a person should do about it. */
  readonly action: string;
  /** Whether the same call may succeed later with nothing changed. */
  readonly retry: boolean;
  /** Exit code of the command line: 1 failed, 2 usage or configuration. */
  readonly exit: 1 | 2;
  readonly http: number;
  /** gRPC status code number (see grpc.status). */
  readonly grpc: number;
}

const row = (action: string, at: Partial<Omit<ErrorRow, 'action'>> = {}): ErrorRow => ({
  action,
  retry: false,
  exit: 1,
  http: 500,
  grpc: 13,
  ...at,
});

/** Rows are sorted by area; an area is a folder of src/. */
export const ERRORS = {
  ERR_INTERNAL: row('This is a bug in KiteFS: report it with the log.'),

  ERR_LTX_DAMAGED: row(
    'The LTX file was cut off or changed. Take it from a peer or a backup; KiteFS uses nothing of it.',
    { http: 422, grpc: 15 },
  ),
  ERR_LTX_FOREIGN: row('Give an LTX file, as LiteFS, Litestream or KiteFS writes them.', {
    http: 415,
    grpc: 3,
  }),
  ERR_LTX_INVALID: row('This is a bug in KiteFS: it tried to write an LTX file that the format forbids.'),
  ERR_LTX_NOT_CONTIGUOUS: row(
    'Give files that follow one another, oldest first, with none left out between them.',
    { http: 409, grpc: 9 },
  ),
  ERR_LTX_POSITION: row('Give a position as <txid>/<checksum>, 16 hex digits each.', {
    exit: 2,
    http: 400,
    grpc: 3,
  }),
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof ERRORS;

/** An error of the table. `message` says what happened and to what; the row says what to do. */
export class KiteError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'KiteError';
    this.code = code;
  }

  get row(): ErrorRow {
    return ERRORS[this.code];
  }

  /** One line for a person: what happened, and what to do. */
  describe(): string {
    return `${this.message}. ${this.row.action} [${this.code}]`;
  }
}

/** Takes anything thrown; returns it as a KiteError (ERR_INTERNAL when it is none). */
export function toKiteError(thrown: unknown): KiteError {
  if (thrown instanceof KiteError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new KiteError('ERR_INTERNAL', message, { cause: thrown });
}
