// The float types of floats.h inside a kernel.
#pragma once

#include "device.cuh"
#include "floats.h"

namespace memoir {

#ifdef MEMOIR_FAST_EMULATE

template <class T>
DEVICE float to_float(T value) {
  return widen(value);
}
template <class T>
DEVICE T from_float(float value) {
  return narrow<T>(value);
}
DEVICE float float_of_bits(unsigned int bits) { return float_from_bits(bits); }

#else

DEVICE float float_of_bits(unsigned int bits) { return __uint_as_float(bits); }
DEVICE float to_float(float value) { return value; }
DEVICE float to_float(BFloat16 value) { return float_of_bits(static_cast<unsigned int>(value.bits) << 16); }
DEVICE float to_float(Half value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

// Round to nearest, ties to even.
template <class T>
DEVICE T from_float(float value);
template <>
DEVICE float from_float<float>(float value) {
  return value;
}
template <>
DEVICE BFloat16 from_float<BFloat16>(float value) {
  BFloat16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
}
template <>
DEVICE Half from_float<Half>(float value) {
  Half narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
}

#endif

// The values of 16 bytes.
DEVICE void unpack(const uint4& piece, float (&value)[4], float) {
  value[0] = float_of_bits(piece.x), value[1] = float_of_bits(piece.y);
  value[2] = float_of_bits(piece.z), value[3] = float_of_bits(piece.w);
}
DEVICE void unpack(const uint4& piece, float (&value)[8], BFloat16) {
  const unsigned int words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[2 * i] = float_of_bits(words[i] << 16);
    value[2 * i + 1] = float_of_bits(words[i] & 0xffff0000u);
  }
}
DEVICE void unpack(const uint4& piece, float (&value)[8], Half) {
  const unsigned int words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[2 * i] = to_float(Half{static_cast<uint16_t>(words[i])});
    value[2 * i + 1] = to_float(Half{static_cast<uint16_t>(words[i] >> 16)});
  }
}

}  // namespace memoir
