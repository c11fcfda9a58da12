;; LZ4 compression and CRC-64/ISO of one page: the two loops that every byte of a transaction goes through. They
;; are WebAssembly because both live from 64-bit words (a product of 64 bits, loads of 8 bytes, a state of 64 bits), which
;; JavaScript has to put together from halves: docs/decisions/014. `npm run build` makes src/ltx/generated/page-codec.ts of it.
;; There are no helper functions: V8 calls them where they stand, at twice the time of the whole.
;;
;; Memory, as src/ltx/page-codec.ts knows it too:
;;   0x00000  where each hash was last seen, u16, plus `base`
;;   0x20000  the page, and room for reading a little past it
;;   0x30040  the block, and room for writing a little past it
;;   0x40200  the CRC
(module
  (memory (export "memory") 5)

  ;; Added to the positions of this page. Every page starts above the positions of those before it, so the table need
  ;; be cleared only when 16 bits are used up: for pages of 4096 bytes, at every 16th.
  (global $base (mut i32) (i32.const 0))

  ;; Compresses the page of `size` (at most 65536) bytes; returns the size of the block.
  ;; It makes the same choices as pierrec/lz4 v4's fast one (internal/lz4block/block.go), which Go's ltx uses, so the same
  ;; pages give the same bytes as Go writes. A hash of 6 bytes x is bits 48-63 of (x << 16) * 227718039650203; the shift
  ;; is in the constant here, and what remains is doubled, as an entry of the table has two bytes.
  (func (export "compress") (param $size i32) (result i32)
    (local $base i32) (local $searchEnd i32) (local $at i32) (local $anchor i32) (local $out i32)
    (local $x i64) (local $hash0 i32) (local $hash1 i32) (local $hash2 i32)
    (local $match i32) (local $match1 i32) (local $match2 i32)
    (local $offset i32) (local $end i32) (local $literals i32) (local $length i32) (local $i i32)

    (if (i32.gt_u (i32.add (global.get $base) (local.get $size)) (i32.const 65536))
      (then
        (memory.fill (i32.const 0) (i32.const 0) (i32.const 0x20000))
        (global.set $base (i32.const 0))))
    (local.set $base (global.get $base))
    (global.set $base (i32.add (global.get $base) (local.get $size)))
    ;; No match starts within the last 14 bytes.
    (local.set $searchEnd (i32.sub (local.get $size) (i32.const 14)))
    (local.set $out (i32.const 0x30040))

    (block $searched
      (loop $search
        (br_if $searched (i32.ge_s (local.get $at) (local.get $searchEnd)))

        ;; Three positions are tried for each 8 bytes loaded. What is not of this page counts as seen at 0.
        (block $found
          (local.set $x (i64.load offset=0x20000 (local.get $at)))
          (local.set $hash0 (i32.wrap_i64 (i64.and (i64.const 0x1fffe) (i64.shr_u
            (i64.mul (local.get $x) (i64.const 0xcf1bbcdcbf9b0000)) (i64.const 47)))))
          (local.set $hash1 (i32.wrap_i64 (i64.and (i64.const 0x1fffe) (i64.shr_u
            (i64.mul (i64.shr_u (local.get $x) (i64.const 8)) (i64.const 0xcf1bbcdcbf9b0000)) (i64.const 47)))))
          (local.set $match (i32.sub (i32.load16_u (local.get $hash0)) (local.get $base)))
          (local.set $match (select (local.get $match) (i32.const 0) (i32.gt_s (local.get $match) (i32.const 0))))
          (local.set $match1 (i32.sub (i32.load16_u (local.get $hash1)) (local.get $base)))
          (local.set $match1 (select (local.get $match1) (i32.const 0) (i32.gt_s (local.get $match1) (i32.const 0))))
          (i32.store16 (local.get $hash0) (i32.add (local.get $base) (local.get $at)))
          (i32.store16 (local.get $hash1) (i32.add (i32.add (local.get $base) (local.get $at)) (i32.const 1)))
          (if (i32.lt_u (local.get $match) (local.get $at))
            (then (br_if $found (i32.eq
              (i32.load offset=0x20000 (local.get $match))
              (i32.wrap_i64 (local.get $x))))))

          (local.set $hash2 (i32.wrap_i64 (i64.and (i64.const 0x1fffe) (i64.shr_u
            (i64.mul (i64.shr_u (local.get $x) (i64.const 16)) (i64.const 0xcf1bbcdcbf9b0000)) (i64.const 47)))))
          (local.set $match2 (i32.sub (i32.load16_u (local.get $hash2)) (local.get $base)))
          (local.set $match2 (select (local.get $match2) (i32.const 0) (i32.gt_s (local.get $match2) (i32.const 0))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (local.set $match (local.get $match1))
          (if (i32.lt_u (local.get $match) (local.get $at))
            (then (br_if $found (i32.eq
              (i32.load offset=0x20000 (local.get $match))
              (i32.wrap_i64 (i64.shr_u (local.get $x) (i64.const 8)))))))

          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (local.set $match (local.get $match2))
          (i32.store16 (local.get $hash2) (i32.add (local.get $base) (local.get $at)))
          (if (i32.lt_u (local.get $match) (local.get $at))
            (then (br_if $found (i32.eq
              (i32.load offset=0x20000 (local.get $match))
              (i32.wrap_i64 (i64.shr_u (local.get $x) (i64.const 16)))))))

          ;; The longer nothing matched, the more is skipped: incompressible data goes fast.
          (local.set $at (i32.add
            (i32.add (local.get $at) (i32.const 2))
            (i32.shr_u (i32.sub (local.get $at) (local.get $anchor)) (i32.const 7))))
          (br $search))

        ;; Backwards first: the match may have begun among the literals.
        (local.set $offset (i32.sub (local.get $at) (local.get $match)))
        (local.set $end (i32.add (local.get $at) (i32.const 4)))
        (block $begun
          (loop $back
            (br_if $begun (i32.le_u (local.get $at) (local.get $anchor)))
            (br_if $begun (i32.eqz (local.get $match)))
            (br_if $begun (i32.ne
              (i32.load8_u offset=0x1ffff (local.get $at))
              (i32.load8_u offset=0x1ffff (local.get $match))))
            (local.set $at (i32.sub (local.get $at) (i32.const 1)))
            (local.set $match (i32.sub (local.get $match) (i32.const 1)))
            (br $back)))
        (block $ended
          (loop $forth
            (br_if $ended (i32.gt_s (i32.add (local.get $end) (i32.const 8)) (local.get $searchEnd)))
            (local.set $x (i64.xor
              (i64.load offset=0x20000 (local.get $end))
              (i64.load offset=0x20000 (i32.sub (local.get $end) (local.get $offset)))))
            (if (i64.ne (local.get $x) (i64.const 0))
              (then
                (local.set $end (i32.add (local.get $end)
                  (i32.wrap_i64 (i64.shr_u (i64.ctz (local.get $x)) (i64.const 3)))))
                (br $ended)))
            (local.set $end (i32.add (local.get $end) (i32.const 8)))
            (br $forth)))

        ;; The token: 4 bits each of the number of literals and of the match's length beyond 4; what does not fit follows as
        ;; bytes of 255 and a rest.
        (local.set $literals (i32.sub (local.get $at) (local.get $anchor)))
        (local.set $length (i32.sub (i32.sub (local.get $end) (local.get $at)) (i32.const 4)))
        (i32.store8 (local.get $out) (i32.or
          (i32.shl
            (select (local.get $literals) (i32.const 15) (i32.lt_u (local.get $literals) (i32.const 15)))
            (i32.const 4))
          (select (local.get $length) (i32.const 15) (i32.lt_u (local.get $length) (i32.const 15)))))
        (local.set $out (i32.add (local.get $out) (i32.const 1)))
        (if (i32.ge_u (local.get $literals) (i32.const 15))
          (then
            (local.set $i (i32.sub (local.get $literals) (i32.const 15)))
            (block $put
              (loop $more
                (br_if $put (i32.lt_u (local.get $i) (i32.const 255)))
                (i32.store8 (local.get $out) (i32.const 255))
                (local.set $out (i32.add (local.get $out) (i32.const 1)))
                (local.set $i (i32.sub (local.get $i) (i32.const 255)))
                (br $more)))
            (i32.store8 (local.get $out) (local.get $i))
            (local.set $out (i32.add (local.get $out) (i32.const 1)))))
        (local.set $i (i32.const 0))
        (block $copied
          (loop $copy
            (br_if $copied (i32.ge_u (local.get $i) (local.get $literals)))
            (i64.store
              (i32.add (local.get $out) (local.get $i))
              (i64.load offset=0x20000 (i32.add (local.get $anchor) (local.get $i))))
            (local.set $i (i32.add (local.get $i) (i32.const 8)))
            (br $copy)))
        (local.set $out (i32.add (local.get $out) (local.get $literals)))
        (i32.store16 (local.get $out) (local.get $offset))
        (local.set $out (i32.add (local.get $out) (i32.const 2)))
        (if (i32.ge_u (local.get $length) (i32.const 15))
          (then
            (local.set $i (i32.sub (local.get $length) (i32.const 15)))
            (block $put
              (loop $more
                (br_if $put (i32.lt_u (local.get $i) (i32.const 255)))
                (i32.store8 (local.get $out) (i32.const 255))
                (local.set $out (i32.add (local.get $out) (i32.const 1)))
                (local.set $i (i32.sub (local.get $i) (i32.const 255)))
                (br $more)))
            (i32.store8 (local.get $out) (local.get $i))
            (local.set $out (i32.add (local.get $out) (i32.const 1)))))

        (local.set $at (local.get $end))
        (local.set $anchor (local.get $end))
        (br_if $searched (i32.ge_s (local.get $at) (local.get $searchEnd)))
        (i32.store16
          (i32.wrap_i64 (i64.and (i64.const 0x1fffe) (i64.shr_u
            (i64.mul (i64.load offset=0x1fffe (local.get $at)) (i64.const 0xcf1bbcdcbf9b0000)) (i64.const 47))))
          (i32.sub (i32.add (local.get $base) (local.get $at)) (i32.const 2)))
        (br $search)))

    ;; A block ends with literals.
    (local.set $literals (i32.sub (local.get $size) (local.get $anchor)))
    (i32.store8 (local.get $out) (i32.shl
      (select (local.get $literals) (i32.const 15) (i32.lt_u (local.get $literals) (i32.const 15)))
      (i32.const 4)))
    (local.set $out (i32.add (local.get $out) (i32.const 1)))
    (if (i32.ge_u (local.get $literals) (i32.const 15))
      (then
        (local.set $i (i32.sub (local.get $literals) (i32.const 15)))
        (block $put
          (loop $more
            (br_if $put (i32.lt_u (local.get $i) (i32.const 255)))
            (i32.store8 (local.get $out) (i32.const 255))
            (local.set $out (i32.add (local.get $out) (i32.const 1)))
            (local.set $i (i32.sub (local.get $i) (i32.const 255)))
            (br $more)))
        (i32.store8 (local.get $out) (local.get $i))
        (local.set $out (i32.add (local.get $out) (i32.const 1)))))
    (memory.copy (local.get $out) (i32.add (i32.const 0x20000) (local.get $anchor)) (local.get $literals))
    (i32.sub (i32.add (local.get $out) (local.get $literals)) (i32.const 0x30040)))

  ;; Puts the CRC of the page, `size` bytes (a multiple of 8) from a zero state, at 0x40200. The polynomial
  ;; x^64 + x^4 + x^3 + x + 1 is so sparse that no table is needed: a step of 64 bits is three shifts of the state, and the at
  ;; most 4 bits that they push out are put back the same way.
  (func (export "crc") (param $size i32)
    (local $state i64) (local $at i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $size)))
        (local.set $state (i64.xor (local.get $state) (i64.load offset=0x20000 (local.get $at))))
        ;; What the shifts push out comes in at the top, before they are done.
        (local.set $state (i64.xor (local.get $state) (i64.xor
          (i64.shl (local.get $state) (i64.const 63))
          (i64.xor (i64.shl (local.get $state) (i64.const 61)) (i64.shl (local.get $state) (i64.const 60))))))
        (local.set $state (i64.xor
          (i64.xor (local.get $state) (i64.shr_u (local.get $state) (i64.const 1)))
          (i64.xor (i64.shr_u (local.get $state) (i64.const 3)) (i64.shr_u (local.get $state) (i64.const 4)))))
        (local.set $at (i32.add (local.get $at) (i32.const 8)))
        (br $next)))
    (i64.store (i32.const 0x40200) (local.get $state))))
