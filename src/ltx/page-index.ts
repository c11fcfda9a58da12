/** Where a page's frame is in a file. */
export interface PageLocation {
  readonly offset: number;
  readonly sizeBytes: number;
}

/**
 * The index at the end of a v2, v3a or v3b file, for reading single pages. Nothing is verified but the
 * index's own shape: run the file through LtxDecoder before you trust it.
 */
export class LtxPageIndex {
  declare readonly pageCount: number;

  static fromBuffer(_file: Uint8Array): LtxPageIndex {
    throw new Error('not yet');
  }

  static fromFile(_fd: number): LtxPageIndex {
    throw new Error('not yet');
  }

  /** Where the frame of a page is, or undefined when the file has not got that page. */
  find(_pgno: number): PageLocation | undefined {
    throw new Error('not yet');
  }

  /** The page numbers, ascending. */
  pgnos(): Iterable<number> {
    throw new Error('not yet');
  }
}

/** Takes one frame's bytes (v3a or v3b); returns the page. Throws ERR_LTX_DAMAGED. */
export function decodePageFrame(_frame: Buffer, _pgno: number, _pageSize: number): Buffer {
  throw new Error('not yet');
}
